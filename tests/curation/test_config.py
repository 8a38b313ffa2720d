"""Configurations of curation, and what is said of bad ones."""

import logging
import re

import pytest
from PIL import Image

from dinov2_hf.cli import main
from dinov2_hf.config import load_config
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.curation.collections import _opened, open_collections

from .made import ROOT

GIVEN = ["output_dir=out", "pool.web.path=/web", "embed.model=m", "select=all"]


def load(*overrides, path=None):
    return load_config(path, overrides, CurationConfig)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/curate").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_parses_and_says_what_it_needs(path):
    load(*(["embed.model=m"] if path.stem == "quickstart" else []), path=path)
    head = path.read_text().split("\n\n")[0]
    for word in ("Paper:", "Hardware:", "Time:", "Expected:"):
        assert word in head, word


def test_published_thresholds_are_the_defaults_and_those_of_lvd142m():
    """Oquab et al., 2023, appendix A."""
    for config in (load(*GIVEN), load(path=ROOT / "configs/curate/lvd142m.yaml")):
        assert (config.dedup.num_neighbours, config.dedup.threshold, config.dedup.relative_threshold) == (64, 0.6, 0.45)
        retrieve = config.retrieve
        assert (retrieve.large_seed, retrieve.num_clusters, retrieve.per_cluster) == (1_000_000, 100_000, 10_000)
        assert (retrieve.min_queries, retrieve.cap) == (3, 1_000_000)
    seeds = load(path=ROOT / "configs/curate/lvd142m.yaml").seeds
    assert seeds["imagenet1k"].num_neighbours == 32 and seeds["imagenet22k"].num_neighbours == 4
    assert seeds["imagenet22k"].include and not seeds["imagenet1k"].include


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pool.web.path=null"], "pool.web.path is not set"),
        (["seeds.x.path=/s"], "select=all does not use seeds.x"),
        (["select=auto"], "there is no seed set and balance.target=0; say what to take"),
        (["select=retrieve"], "select=retrieve needs a seed set"),
        (["embed.model=null"], "embed.model is not set"),
        (["output_dir=''"], "output_dir is not set"),
        (["dedup.threshold=60"], "dedup.threshold=60.0 is not a cosine"),
        (["hashes.max_distance=32"], "hashes.max_distance=32 is not in -1 to 15"),
        (["filter.hooks=[mine]"], "filter.hooks has 'mine', not module:function"),
        (["executor.kind=slurm"], "executor.partition is not set"),
        (["embed.resize_size=64", "embed.crop_size=96"], "embed.resize_size=64 is below crop_size=96"),
        (
            ["dedup.treshold=0.5"],
            "dedup.treshold in the command line is not a config key; did you mean dedup.threshold",
        ),
    ],
)
def test_impossible_values_are_refused(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(*GIVEN, *overrides)


def test_a_pool_has_to_be_named():
    with pytest.raises(ValueError, match="pool has no source; give one under a name of your own: pool.web.path="):
        load("output_dir=out", "embed.model=m", "select=all")


@pytest.fixture
def refused(overrides, capsys):
    """What the command line says of a configuration that cannot be run."""

    def run(*more, stage=()):
        with pytest.raises(SystemExit) as ended:
            main(["curate", *stage, *overrides, *more])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return run


def test_an_empty_pool_is_told(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (
        "pool.pile.path=" in (said := refused(f"pool.pile.path={tmp_path / 'empty'}")) and "is an empty folder" in said
    )


def test_a_source_without_images_is_told(refused, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "table.csv").write_text("a,b\n1,2\n")
    assert "lacks a column of images; its columns are a, b" in refused(f"seeds.discs.path={tmp_path / 'texts'}")


def test_pool_is_read_as_training_reads_it(config_of, collections, tmp_path, caplog):
    """A pattern, a list, and a folder of which only one split is wanted; the log says what each holds."""
    for name in ("train/a.png", "val/b.png", "val/c.png", "d/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "list.txt").write_text("d/e.jpg\nval/c.png\n")
    pool = [f"pool.list.path={tmp_path / 'list.txt'}", f"pool.pattern.path={tmp_path}/*/?.png"]
    pool += [f"pool.split.path={tmp_path}", "pool.split.split=validation", "pool.split.split_folders=true"]
    with caplog.at_level(logging.INFO, "dinov2_hf"):
        shards = open_collections(config_of(*pool))["pool"].shards
    read = {name: [] for name in ("list", "pattern", "split", "pile")}
    for shard in shards:
        read[shard.source] += [data.decode(errors="replace") for _, data, _ in shard.read()]
    assert read["list"] == ["d/e.jpg", "val/c.png"]
    assert read["pattern"] == ["train/a.png", "val/b.png", "val/c.png"]
    assert read["split"] == ["val/b.png", "val/c.png"]
    assert f"pool.list: {tmp_path / 'list.txt'}: 2 images" in caplog.messages
    assert any(
        message.startswith(f"pool.split: {tmp_path}: 2 images; split validation (also: 1 in train)")
        for message in caplog.messages
    )


def test_pool_that_changes_while_it_is_read_is_refused(config_of, tmp_path):
    """A row of a shard would be another image than the one that was embedded."""
    for name in "bcd":
        (tmp_path / f"{name}.png").write_text(name)
    shard = open_collections(config_of(f"pool.new.path={tmp_path}", "pool.pile.path=" + str(tmp_path)))["pool"].shards[
        0
    ]
    assert [data for _, data, _ in shard.read()] == [b"b", b"c", b"d"]
    (tmp_path / "a.png").write_text("a")
    _opened.cache_clear()  # as in a task that starts now
    with pytest.raises(ValueError, match="were added, removed or renamed while it was read"):
        list(shard.read())


def test_a_pool_of_which_nothing_passes_is_told(refused, tmp_path):
    (tmp_path / "blank").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "blank" / "a.png")
    said = refused(f"pool.pile.path={tmp_path / 'blank'}", stage=["--stage", "filter"])
    assert "the pool has no image that passes the filter: 1 blank" in said


def test_a_model_that_cannot_be_read_is_told_before_any_work(refused, tmp_path):
    said = refused(f"embed.model={tmp_path / 'nowhere'}")
    assert "embed.model" in said and "nowhere" in said
    assert not (tmp_path / "curated" / "stages").exists()


def test_a_size_that_the_model_cannot_take_is_told(refused):
    assert "embed.crop_size=70 is not a multiple of the model's patch of 64" in refused(
        "embed.crop_size=70", "embed.resize_size=80"
    )


def test_a_stage_that_is_not_a_part_is_told(refused):
    assert "--stage balance is not a part of this configuration; it has filter" in refused(stage=["--stage", "balance"])


def test_several_processes_share_stages_that_embed_alone(refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes were launched, but only stages that embed" in refused()


def test_more_clusters_than_images_are_told(refused):
    said = refused("seeds.discs.method=clusters")
    assert "retrieve.num_clusters=100000 of 35 images that are left" in said
