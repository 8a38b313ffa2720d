"""A run that was stopped or killed logs, evaluates, pushes and names as broken what the uninterrupted one does."""

import json
import logging
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dinov2_hf.data import Broken, SSLBatch
from dinov2_hf.runs import read_metrics
from dinov2_hf.runs.checkpoint import find_checkpoints
from dinov2_hf.runs.metrics import MeanMetrics
from dinov2_hf.train import Callback, Trainer, build_accelerator
from dinov2_hf.train.broken import BrokenLog
from dinov2_hf.train.health import CollapseWatch

UPDATES = 6
CADENCE = ["train.log_every=4", "train.checkpoint_epochs=1.5"]
"""Logs after updates 4 and 6, checkpoints after 3 and 6, pushes after 2 and 4."""


class Kill(BaseException):
    """Ends a run where a kill would."""


@pytest.fixture
def images(image_folder, tmp_path):
    """The photographs, a quarter of them broken."""
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    for path in sorted(folder.rglob("*.jpg"))[::4]:
        path.write_bytes(path.read_bytes()[:300])
    return folder


@pytest.fixture
def run(tiny_config, images, tmp_path):
    """Trains in a folder of a name; `at` gets the name of each moment and the trainer, and may end the run there."""

    def start(name, *overrides, at=lambda moment, trainer: None):
        places = [f"data.train.path={images}", f"train.output_dir={tmp_path / name}", "data.max_broken_share=0.5"]
        config = tiny_config(*CADENCE, *places, *overrides)
        pushed = []

        def measure(student):
            at("in an evaluation", trainer)
            cls, _ = student(torch.linspace(-1, 1, 6144).view(2, 3, 32, 32), 1)[-1]
            return {"score": cls.abs().mean().item()}

        def publish(step, results):
            at("before a push", trainer)
            pushed.append(step)

        callbacks = [Callback(1, measure), Callback(1.5, lambda _: {"other": 1.0}), Callback(1, act=publish)]
        trainer = Trainer.from_config(config, build_accelerator(config.train), callbacks)
        next_batch, save = trainer._next_batch, trainer._save

        def before_update(loader):
            at("in an update", trainer)
            return next_batch(loader)

        def before_checkpoint(*arguments):
            at("before a checkpoint", trainer)
            save(*arguments)

        trainer._next_batch, trainer._save = before_update, before_checkpoint
        trainer.pushed = pushed
        try:
            trainer.run()
        except Kill:
            pass
        return trainer

    return start


def lines_of(trainer):
    """Every line as it was written, keys in order, without the one value that is measured."""
    lines = [list(line.items()) for line in read_metrics(trainer.folder)]
    return [[(name, "measured" if name == "images_per_second" else value) for name, value in line] for line in lines]


def broken_of(trainer):
    return (trainer.folder / "broken.txt").read_text()


def test_run_that_is_stopped_after_every_update_logs_evaluates_and_pushes_as_the_uninterrupted_one(run):
    whole = run("whole")
    stops = [run("parts", at=lambda moment, trainer: signal.raise_signal(signal.SIGTERM)) for _ in range(UPDATES)]
    assert [trainer.step for trainer in stops] == [1, 2, 3, 4, 5, 6]
    assert [trainer.stopped for trainer in stops] == [True] * 5 + [False]
    assert lines_of(stops[-1]) == lines_of(whole)
    assert [[line["step"], len(line)] for line in read_metrics(whole.folder) if "epoch" not in line] == [
        [0, 3],
        [2, 2],
        [3, 2],
        [4, 2],
        [6, 3],
    ]
    assert [step for trainer in stops for step in trainer.pushed] == whole.pushed == [2, 4]
    assert broken_of(stops[-1]) == broken_of(whole)
    assert read_metrics(whole.folder)[-2]["broken_images"] == len(broken_of(whole).splitlines()) > 2


@pytest.mark.parametrize(
    "moment",
    [pytest.param("in an update", marks=pytest.mark.slow), "in an evaluation", "before a checkpoint", "before a push"],
)
def test_run_that_is_killed_at_every_such_moment_logs_and_pushes_as_the_uninterrupted_one(run, moment):
    whole = run("whole")
    killed = [0 if moment == "in an evaluation" else -1]

    def at(what, trainer):
        if what == moment and trainer.step > killed[-1]:
            killed.append(trainer.step)
            raise Kill

    launches, last = 0, None
    while last != killed[-1]:
        last = killed[-1]
        trainer = run("parts", at=at)
        launches += 1
    assert launches == {"in an update": 7, "in an evaluation": 4, "before a checkpoint": 3, "before a push": 3}[moment]
    assert lines_of(trainer) == lines_of(whole) and broken_of(trainer) == broken_of(whole)
    state = [json.loads((find_checkpoints(run.checkpoints)[-1] / "run.json").read_text()) for run in (trainer, whole)]
    assert state[0] == state[1]


def test_evaluation_that_was_logged_is_not_repeated_and_one_that_a_kill_cut_short_is(run):
    seen = []

    def at(moment, trainer):
        if moment == "in an evaluation":
            seen.append(trainer.step)
        elif moment == "in an update" and trainer.step == 6 - 2 and stop:
            raise Kill

    stop = True
    trainer = run("run", "train.checkpoint_epochs=1", at=at)
    assert seen == [0, 2, 4] and trainer.step == 4
    stop = False
    metrics = trainer.folder / "metrics.jsonl"
    whole = metrics.read_text()
    run("run", "train.checkpoint_epochs=1", at=at)
    assert seen == [0, 2, 4, 6]
    shutil.rmtree(find_checkpoints(trainer.checkpoints)[-1])
    metrics.write_text(whole[:-10])
    again = run("run", "train.checkpoint_epochs=1", at=at)
    assert seen == [0, 2, 4, 6, 4, 6] and metrics.read_text().startswith(whole)
    assert [line["step"] for line in read_metrics(again.folder) if "score" in line] == [0, 2, 4, 6]


def test_tensorboard_has_every_value_once_after_a_kill(run):
    def at(moment, trainer):
        if moment == "in an update" and trainer.step == 5:
            raise Kill

    run("run", at=at)
    trainer = run("run")
    events = EventAccumulator(str(trainer.folder), size_guidance={"scalars": 0}).Reload()
    lines = read_metrics(trainer.folder)
    names = {name for line in lines for name in line} - {"step"}
    assert set(events.Tags()["scalars"]) == names
    for name in names - {"images_per_second"}:
        logged = [(line["step"], line[name]) for line in lines if name in line]
        assert [event.step for event in events.Scalars(name)] == [step for step, _ in logged], name
        assert [event.value for event in events.Scalars(name)] == pytest.approx([value for _, value in logged])


def test_collapse_that_was_warned_of_is_not_warned_of_again_after_a_resume():
    lines = [{"rankme": 100.0, "epoch": 1.0}, {"rankme": 10.0, "epoch": 2.0}, {"knn_accuracy": 30.0}, {"rankme": 9.0}]
    watch = CollapseWatch(100)
    assert [len(watch.look(line)) for line in lines] == [0, 1, 0, 0]
    assert len(watch.look({"rankme": 90.0, "target_entropy/dino": float("nan")})) == 0
    assert len(watch.look({"rankme": 9.0, "target_entropy/dino": 0.999})) == 1


def process(rank=0, count=1):
    return SimpleNamespace(num_processes=count, process_index=rank, device="cpu", gather=lambda values: values)


def test_sums_of_a_window_survive_a_checkpoint_bit_for_bit_and_are_shared_by_another_number_of_processes():
    values = torch.tensor([0.1, 1e-45, 3.4e38, float("inf"), float("-inf"), -0.0, float("nan"), 1 / 3])
    means = MeanMetrics()
    for scale in (1.0, 0.3):
        means.add({str(index): value * scale for index, value in enumerate(values)})
    state = json.loads(json.dumps(means.state(process())))
    again = MeanMetrics()
    again.load(state, process())
    assert again._counts == means._counts and list(again._sums) == list(means._sums)
    for name, expected in means._sums.items():
        assert torch.equal(again._sums[name].view(torch.int32), expected.view(torch.int32)) or expected.isnan()
    for rank in range(3):
        of_two = MeanMetrics()
        of_two.load({"loss": [2, [1.0, 3.0]]}, process(rank, 3))
        of_two.add({"loss": torch.tensor(1.0)})
        assert of_two._sums["loss"] / of_two._counts["loss"] == 1.0
    exact = MeanMetrics()
    exact.load({"loss": [2, [1.0, 3.0]]}, process(1, 2))
    assert exact._sums["loss"] == 3.0


def test_share_of_broken_images_is_that_of_all_launches(tmp_path):
    single = SimpleNamespace(
        is_main_process=True, process_index=0, device="cpu", reduce=lambda values, reduction: values
    )
    items, reads = [["image", "a", "cut off"]], [290, 90]
    for broken, refused in (([], False), ([Broken("shard", "t", "empty")], False), ([Broken("image", "b", "")], True)):
        log = BrokenLog(tmp_path, single, items, reads)
        log.add(SSLBatch(*[torch.zeros(20, 1)] * 5, broken=broken))
        log.merge()
        if refused:
            with pytest.raises(ValueError, match="91 of 301 .*data.max_broken_share=0.3; the last: b: "):
                log.check(0.3)
        else:
            log.check(0.3)


@pytest.mark.parametrize("merges", [(), (1,), (1, 2, 3), (2, 3)])
def test_list_of_broken_files_does_not_depend_on_when_the_processes_share_it(tmp_path, monkeypatch, merges, caplog):
    """Two processes, four batches: the same file met by both, kinds apart."""
    image, shard = (lambda name, kind=kind: Broken(kind, name, "cut off") for kind in ("image", "shard"))
    met = [[[image("a")], [image("b")]], [[], [image("a"), shard("t")]], [[image("c")], []], [[image("b")], []]]
    logs = [BrokenLog(tmp_path / str(rank), None) for rank in range(2)]
    for rank, log in enumerate(logs):
        (tmp_path / str(rank)).mkdir()
        log._accelerator = SimpleNamespace(
            is_main_process=rank == 0,
            process_index=rank,
            device="cpu",
        )

    def merge():
        everything = [entry for log in logs for entry in log._new]
        monkeypatch.setattr("dinov2_hf.train.broken.gather_object", lambda _: everything)
        sums = [torch.tensor([*log._new_reads, len(log._new)]) for log in logs]
        for rank, log in enumerate(logs):
            log._accelerator.reduce = lambda values, reduction, rank=rank: values + sums[1 - rank]
            log.merge()

    with caplog.at_level(logging.WARNING):
        for number, batch in enumerate(met):
            for rank, log in enumerate(logs):
                log.add(SSLBatch(*[torch.zeros(8, 1)] * 5, broken=batch[rank]))
            if number in merges:
                merge()
        merge()
    expected = [image("a"), image("b"), shard("t"), image("c")]
    assert logs[0].items == logs[1].items == expected
    assert (tmp_path / "0" / "broken.txt").read_text() == "".join(item.line for item in expected)
    assert not (tmp_path / "1" / "broken.txt").exists()
    assert logs[0].counts == {"broken_images": 3.0, "broken_shards": 1.0}
    assert logs[0].state[1] == [4 * 2 * 4 + 5, 5]
    assert [record.getMessage() for record in caplog.records] == [f"skipped a broken {i.kind}: {i}" for i in expected]
