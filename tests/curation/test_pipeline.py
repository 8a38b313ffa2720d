"""All stages together, from a pile of images to updates of a network."""

import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from dinov2_hf.cli import main
from dinov2_hf.config import load_config
from dinov2_hf.curation.stage import Stage
from dinov2_hf.curation.tables import read_json, read_table
from dinov2_hf.train import Trainer, build_accelerator

from .made import NUM_DISCS, ROOT, result_of


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """A place for a curation that several tests look at."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(keep, overrides):
    """The folder of a curation from the command line, made once."""
    folder = keep / "curated"
    if not folder.exists():
        main(["curate", *overrides, f"output_dir={folder}"])
    return folder


def names_in(folder):
    return sorted(name.split("/")[-1] for name in load_dataset(str(folder / "images"), split="train")["name"])


def counts_of(folder, stage):
    return read_json(folder / "stages" / stage / "counts.json")["counts"]


def test_the_class_comes_out_once_each(whole):
    names = names_in(whole)
    assert [name[:7] for name in names] == [f"disc-{number:02}" for number in range(NUM_DISCS)]


def test_every_stage_drops_what_was_planted_for_it(whole):
    assert counts_of(whole, "filter") == {"images": 56, "kept": 56, "dropped": {}}
    hashes, dedup = counts_of(whole, "hashes"), counts_of(whole, "dedup")
    assert hashes["exact"] == 4
    assert dedup["kept"] == 36  # 16 photographs, 8 of noise, 12 discs: nothing unrelated was merged
    assert counts_of(whole, "relative")["kept"] == 35  # the photograph that the test set has, too
    retrieved = counts_of(whole, "retrieve")
    assert retrieved["with_repeats"] == 6 * NUM_DISCS and retrieved["kept"] == NUM_DISCS


def test_unrelated_images_are_in_no_group(whole):
    images = {row["id"]: row["name"] for row in read_tables(whole, "filter/parts")}
    for stage in ("hashes", "dedup"):
        groups = {}
        for row in read_table(whole / "stages" / stage / "groups.parquet").to_pylist():
            number = re.search(r"(noise-\d|photo-\d\d|disc-\d\d|zz-copy-\d)", images[row["id"]])[1]
            groups.setdefault(row["group"], set()).add(number.replace("zz-copy-", "disc-0"))
        assert groups and all(len(members) == 1 for members in groups.values()), stage


def read_tables(folder, name):
    return [row for file in sorted((folder / "stages" / name).glob("*")) for row in read_table(file).to_pylist()]


def test_training_streams_what_was_assembled(whole, tiny_overrides, tmp_path):
    own = [item for item in tiny_overrides if not item.startswith(("data.train.path", "train.batch_size"))]
    data = [f"data.train.path={whole / 'images'}", "data.train.streaming=true", "train.batch_size=2"]
    config = load_config(None, [*own, *data, "train.epochs=1", "optim.warmup_epochs=0"])
    results = Trainer.from_config(config, build_accelerator(config.train)).run()
    assert results and (tmp_path / "run" / "metrics.jsonl").read_text().count('"loss"') >= 1


def test_card_tells_counts_sources_and_settings(whole, projection):
    card = (whole / "images" / "README.md").read_text()
    for text in (
        "12 images in",
        "| filter | 56 images, 56 kept |",
        "| relative | 35 kept |",
        "| seeds.discs | seeds | train |",
        "| `dedup.threshold` | `0.955` |",
        f"| `embed.model` | `{projection.name}` |",
        "| datasets | ",
    ):
        assert text in card, text
    assert str(projection.parent) not in card and str(ROOT) not in card


def test_report_shows_groups_neighbours_and_similarities(whole):
    page = (whole / "report" / "index.html").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert {"hashes.png", "dedup.png", "similarities.png", "nearest-discs.png", "similarities-discs.png"} <= {*pictures}
    for picture in pictures:
        with Image.open(whole / "report" / picture) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50, picture


def test_assembled_bytes_are_those_of_the_pool(whole, collections):
    rows = load_dataset("parquet", data_files=str(whole / "images" / "*.parquet"), split="train")
    raw = rows.with_format("arrow")[:]["image"].to_pylist()
    for name, image in zip(rows["name"], raw):
        assert image["bytes"] == (collections / "pool" / name.split("/")[-1]).read_bytes()
        assert image["path"].endswith(".png")


def test_a_second_run_does_nothing(whole, run):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()}
    lines, _ = run(f"output_dir={whole}")
    assert all("was complete" in line for line in lines)
    changed = {file.name for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed <= {"curation.yaml"}


@pytest.mark.slow
def test_four_tasks_give_the_result_of_one(whole, run):
    _, folder = run("executor.tasks=4", "executor.workers=1")
    assert result_of(folder) == result_of(whole)


@pytest.mark.slow
def test_tasks_in_processes_of_their_own_give_the_result_of_one(whole, run):
    _, folder = run("executor.tasks=3", "executor.workers=2", only="filter")
    expected = {name: digest for name, digest in result_of(whole).items() if name.startswith("stages/filter/")}
    assert {name: digest for name, digest in result_of(folder).items()} == expected


@pytest.mark.slow
def test_a_run_that_is_interrupted_everywhere_gives_the_same_result(whole, run, monkeypatch):
    """Each try ends within its third unit, whose files are there but for its mark."""
    complete, tries = Stage.complete, 0

    class Killed(BaseException):
        pass

    while True:
        done = []

        def interrupted(self, step, unit, done=done):
            if not self.mark(step, unit).is_file():
                done.append(unit)
                if len(done) == 3:
                    self.do(step, unit)
                    raise Killed
            complete(self, step, unit)

        monkeypatch.setattr(Stage, "complete", interrupted)
        try:
            _, folder = run(f"executor.tasks={1 + tries % 2 * 3}", "executor.workers=1")
            break
        except Killed:
            tries += 1
    assert tries > 10
    assert result_of(folder) == result_of(whole)


KILLER = """
import os, signal, pathlib
seen = []
def keep_or_die(image):
    seen.append(image)
    if len(seen) == 30 and pathlib.Path("armed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return True
"""


@pytest.mark.slow
def test_a_killed_process_leaves_whole_shards_alone(overrides, tmp_path):
    (tmp_path / "killer.py").write_text(KILLER)
    (tmp_path / "armed").touch()
    command = [sys.executable, "-m", "dinov2_hf.cli", "curate", "--stage", "filter", *overrides]
    command += ["filter.hooks=[killer:keep_or_die]"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    assert first.wait() == -signal.SIGKILL
    os.killpg(first.pid, signal.SIGKILL)  # a process that datatrove keeps beside its tasks
    parts = tmp_path / "curated" / "stages" / "filter" / "parts"
    written = {file.name: file.read_bytes() for file in parts.iterdir()}
    assert set(written) == {"00000.parquet", "00001.parquet"}
    (tmp_path / "armed").unlink()
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "filter: 56 images, 56 kept" in second.stdout, second.stderr
    assert {name: (parts / name).read_bytes() for name in written} == written
    assert len(list(parts.iterdir())) == 6


def test_changed_settings_redo_their_stage_and_those_after_it(whole, run, tmp_path):
    folder = tmp_path / "curated"
    shutil.copytree(whole, folder)
    lines, _ = run("dedup.threshold=0.999")
    states = {line.split(":")[0]: "made anew" in line or "(was complete)" not in line for line in lines}
    stages = ["filter", "hashes", "embed", "dedup", "embed-evaluations.test", "relative", "embed-seeds.discs"]
    assert [states[stage] for stage in stages] == [False, False, False, True, False, True, False]
    assert states["retrieve"] and states["assemble"] and states["report"]
    assert sum("made anew, because" in line for line in lines) == 5
    assert counts_of(folder, "dedup")["kept"] > counts_of(whole, "dedup")["kept"]


def test_a_stage_alone_needs_those_before_it(run):
    with pytest.raises(ValueError, match="--stage dedup builds on stage filter.*run --stage filter first"):
        run(only="dedup")
    for stage in ("filter", "hashes", "embed", "dedup"):
        lines, _ = run(only=stage)
    assert lines[-1].startswith("dedup: 36 kept")


def test_clusters_bring_the_class_of_a_small_seed_set(run):
    """The method of the paper for small seed sets: clusters that more than 3 queries fall in."""
    method = ["seeds.discs.method=auto", "retrieve.num_clusters=8", "retrieve.per_cluster=100"]
    lines, folder = run(*method)
    names = names_in(folder)
    discs = [name for name in names if name.startswith("disc")]
    assert len(discs) == NUM_DISCS and len(names) - len(discs) <= 2, names
    assert (folder / "report" / "clusters-discs.png").is_file()


def test_a_pool_without_seeds_is_balanced(overrides, tmp_path):
    own = [item for item in overrides if not item.startswith("seeds.")]
    main(["curate", *own, "balance.target=12", "balance.sizes=[10,3]"])
    names = names_in(tmp_path / "curated")
    assert len(names) == 12
    assert len({name[:4] for name in names}) == 3  # not of the largest kind alone
    assert (tmp_path / "curated" / "report" / "clusters.png").is_file()


def test_repeats_are_counted_and_written_where_asked(run):
    _, folder = run("seeds.discs.num_neighbours=2", "assemble.repeat=true", "assemble.format=webdataset")
    counts = counts_of(folder, "retrieve")
    assert counts["with_repeats"] == 12 > counts["kept"]
    assert counts_of(folder, "assemble")["written"] == 12
    rows = list(load_dataset("webdataset", data_files=str(folder / "images" / "*.tar"), split="train", streaming=True))
    assert len(rows) == 12
    keys = [row["json"]["id"] for row in rows]
    assert sorted(keys.count(key) for key in set(keys)) == sorted(
        row["repeats"] for row in read_tables(folder, "retrieve/parts")
    )


def test_a_seed_set_is_included_as_it_is(run, collections):
    _, folder = run("seeds.discs.include=true")
    rows = load_dataset(str(folder / "images"), split="train")
    assert sum(source == "seeds.discs" for source in rows["source"]) == 6
    assert len(rows) == NUM_DISCS + 6


@pytest.mark.slow
def test_a_second_network_is_used_for_concepts(run, projection):
    lines, folder = run(f"concepts.model={projection}", "concepts.part=cls", "concepts.num_workers=0")
    assert any(line.startswith("concepts: 35 kept") for line in lines)
    assert any(line.startswith("concepts-seeds.discs: 6 kept") for line in lines)


def test_streamed_files_give_the_images_of_a_folder(run, collections, tmp_path):
    """Parquet of several files, each a shard, read from the front."""
    pool = sorted((collections / "pool").iterdir())
    for number in range(3):
        rows = {"image": [str(path) for path in pool[number::3]]}
        table = Dataset.from_dict(rows, Features({"image": ImageFeature()}))
        table.to_parquet(tmp_path / f"tables-{number}.parquet")
    _, folder = run(f"pool.pile.path={tmp_path}/tables-*.parquet", "pool.pile.streaming=true")
    assert counts_of(folder, "filter")["kept"] == 56 and counts_of(folder, "dedup")["kept"] == 36
    assert len(load_dataset(str(folder / "images"), split="train")) == NUM_DISCS


HOOKS = """
import numpy as np
def no_noise(image):
    near = np.asarray(image.convert("L"), dtype=float)
    return bool(np.abs(np.diff(near)).mean() < 40)
def darker(image):
    return image.point(lambda value: value // 2)
"""


def test_hooks_drop_and_replace_before_anything_else_sees_the_images(run, tmp_path, monkeypatch):
    (tmp_path / "my_filters.py").write_text(HOOKS)
    monkeypatch.chdir(tmp_path)
    _, folder = run("filter.hooks=[my_filters:no_noise,my_filters:darker]", "dedup.relative_threshold=1")
    assert counts_of(folder, "filter")["dropped"] == {"hook my_filters:no_noise": 8}
    images = load_dataset(str(folder / "images"), split="train")
    assert max(np.asarray(row["image"]).max() for row in images) <= 127


@pytest.mark.slow
def test_webdataset_is_the_same_in_every_run(run, tmp_path):
    webdataset = "assemble.format=webdataset"
    _, folder = run(webdataset)
    before = result_of(folder)
    assert any(name.endswith(".tar") for name in before)
    shutil.rmtree(folder / "stages" / "assemble")
    shutil.rmtree(folder / "images")
    run(webdataset, only="assemble")
    assert result_of(folder) == before
