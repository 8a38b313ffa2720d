"""Runs on streams with broken shards: they go on, name each once, stop where too many are, and resume exactly."""

import logging
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dinov2_hf.data.loader import TrainingBatches, build_loader
from dinov2_hf.data.sources.training import open_training_source
from dinov2_hf.runs.metrics import read_metrics
from dinov2_hf.train import build_accelerator
from dinov2_hf.train.broken import BrokenLog

from .running import train

SHARDS = 4


@pytest.fixture
def shards(tmp_path, image_folder):
    """Four tars and four tables of six photographs each; `break_tar` and `break_table` damage one."""
    photographs = sorted(image_folder.rglob("*.jpg"))
    for shard in range(SHARDS):
        mine = photographs[shard::SHARDS]
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for file in mine:
                archive.add(file, arcname=file.name)
        table = pa.table({"image": [file.read_bytes() for file in mine]})
        pq.write_table(table, tmp_path / f"{shard}.parquet", row_group_size=2, use_dictionary=False)
    return tmp_path


def break_tar(path):
    path.write_bytes(path.read_bytes()[:3000])


def break_table(path):
    chunk = pq.read_metadata(path).row_group(1).column(0)
    with open(path, "r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(b"\xff" * chunk.total_compressed_size)


KINDS = pytest.mark.parametrize("kind, harm", [("tar", break_tar), ("parquet", break_table)])


def options(shards, kind, *more):
    path = f"data.train.path={shards}/*.{kind}"
    return [path, "data.train.streaming=true", "data.shuffle_buffer=16", "train.log_every=1", *more]


@KINDS
def test_run_goes_on_over_a_broken_shard_and_names_it_once(kind, harm, shards, tiny_config, caplog):
    harm(shards / f"2.{kind}")
    config = tiny_config(*options(shards, kind, "data.num_workers=2"))
    with caplog.at_level(logging.WARNING):
        trainer = train(config)
    assert trainer.step == 6
    folder = Path(config.train.output_dir)
    (line,) = (folder / "broken.txt").read_text().splitlines()
    assert line.startswith(f"shard\t{shards / f'2.{kind}'}\t")
    assert len([record for record in caplog.records if f"2.{kind}" in record.getMessage()]) == 1
    last = read_metrics(folder)[-1]
    assert last["broken_shards"] == 1 and last["broken_images"] == 0


@KINDS
def test_run_over_a_broken_shard_resumes_exactly(kind, harm, shards, tiny_config, tmp_path):
    harm(shards / f"1.{kind}")
    chosen = options(shards, kind, "train.epochs=5")
    whole = train(tiny_config(*chosen, f"train.output_dir={tmp_path / 'whole'}"))
    config = tiny_config(*chosen, f"train.output_dir={tmp_path / 'parts'}")
    train(config, until=7)
    again = train(config)
    assert again.step == whole.step == 10
    first, second = whole.objective.state_dict(), again.objective.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    lines = [read_metrics(tmp_path / name) for name in ("whole", "parts")]
    for one, other in zip(*lines, strict=True):
        assert one["step"] == other["step"] and one.get("broken_shards") == other.get("broken_shards")
    assert (tmp_path / "parts/broken.txt").read_text() == (tmp_path / "whole/broken.txt").read_text()


@KINDS
def test_batches_do_not_depend_on_the_number_of_workers(kind, harm, shards, tiny_config):
    harm(shards / f"0.{kind}")
    config = tiny_config(*options(shards, kind))
    read = []
    for num_workers in (0, 1, 3):
        source = open_training_source(config.data, config.train.seed)
        read.append(list(build_loader(TrainingBatches(source, config, 0, 8), num_workers, False)))
    for batches in zip(*read, strict=True):
        for batch in batches[1:]:
            assert torch.equal(batch.global_crops, batches[0].global_crops)
            assert torch.equal(batch.global_colors, batches[0].global_colors)
    for batches in read:
        assert {item.name for batch in batches for item in batch.broken} == {str(shards / f"0.{kind}")}


@pytest.mark.parametrize(
    "broken, shards, share, stops",
    [
        (0, 4, 0.0, False),
        (1, 4, 0.0, True),
        (1, 4, 0.1, False),
        (2, 4, 0.1, True),
        (2, 4, 0.5, False),
        (3, 4, 0.5, True),
        (1, 1, 0.9, True),
        (1, 1, 1.0, False),
        (10, 100, 0.1, False),
        (11, 100, 0.1, True),
        (0, 0, 0.1, False),
    ],
)
def test_more_broken_shards_than_allowed_are_refused_with_the_last(broken, shards, share, stops, tiny_config, tmp_path):
    items = [("shard", f"{number}.tar", "broken off") for number in range(broken)]
    log = BrokenLog(tmp_path, build_accelerator(tiny_config().train), [*items, ("image", "a.png", "not one")])
    if stops:
        message = rf"{broken} of {shards} shards .* data.max_broken_shards={share} .*{broken - 1}\.tar: broken off"
        with pytest.raises(ValueError, match=message):
            log.check_shards(share, shards)
    else:
        log.check_shards(share, shards)


def test_single_shard_that_is_broken_stops_the_run_unless_all_may_be(shards, tiny_config):
    break_tar(shards / "0.tar")
    for tar in range(1, SHARDS):
        (shards / f"{tar}.tar").unlink()
    with pytest.raises(ValueError, match="1 of 1 shards"):
        train(tiny_config(*options(shards, "tar")))
    assert (
        train(
            tiny_config(
                *options(shards, "tar", "data.max_broken_shards=1"),
            ),
            resume="auto",
        ).step
        == 6
    )
