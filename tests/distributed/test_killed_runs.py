"""Training processes that are killed, stopped, continued on other processes or left without disk: what they leave."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from dinov2_hf.runs.checkpoint import read_model_tensors
from dinov2_hf.runs.integrity import damage_of
from dinov2_hf.runs.provenance import Provenance, digest_of

from ..conftest import tiny_run
from ..patience import HANGS
from .conftest import use_one_core
from .server import (
    ROOT,
    Launch,
    assert_same_tensors,
    content,
    folder_of,
    names_in,
    newest_step,
    read_log,
    read_tensors,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


# --------------------------------------------------------------------------------------------------------------- kills

SAVED_EVERY = 2
KILLS = {
    (1, 0): ["in the first checkpoint", "in a checkpoint", "anywhere", "in a checkpoint"],
    (1, 1): ["in a checkpoint", "anywhere", "in a checkpoint", "anywhere"],
    (1, 2): ["anywhere", "in a checkpoint", "in a checkpoint", "anywhere"],
    (2, 0): ["in a checkpoint", "anywhere", "in a checkpoint"],
    (2, 1): ["in the first checkpoint", "in a checkpoint", "anywhere"],
    (2, 2): ["anywhere", "in a checkpoint"],
}
CONTROLLED = ["teacher.target_entropy=0.8", "teacher.sinkhorn_queue=24"]
KINDS = {
    (1, 0): ["objective=dino", "dino.batch_norm=true"],
    (2, 1): ["objective=ibot", "ibot.mask_start_epoch=3"],
    (1, 2): ["objective=simdino", "ibot.loss_weight=1", "data.train.streaming=true", "data.shuffle_buffer=8"],
    (1, 1): ["optim.optimizer=sgd", "teacher.update=previous_update", *CONTROLLED],
    (2, 0): CONTROLLED,
    (2, 2): [
        *("optim.optimizer=lars", "optim.clip_by=parameter", "optim.freeze_last_layer_by=gradients"),
        *("optim.freeze_last_layer_epochs=3", "teacher.update=previous_epoch"),
    ],
}
"""Of the runs of so many processes and workers: other objectives, ways to read images and to update."""
UPDATES = {1: 60, 2: 28}
FEW_UPDATES = {1: 20, 2: 14}
CASES = [(*case, ["in a checkpoint"], FEW_UPDATES) for case in KILLS]
CASES += [pytest.param(*case, kills, UPDATES, marks=pytest.mark.slow) for case, kills in KILLS.items()]
"""Of each case a run with one kill, and one with all of them."""
CASE_NAMES = [f"{processes}-{workers}-{kills}" for kills in ("one", "all") for processes, workers in KILLS]


def wait_for_moment(launch: Launch, folder: Path, moment: str, rng: np.random.Generator) -> None:
    """Returns at a random moment; within the writing of a checkpoint the processes stand still then."""
    start = newest_step(folder)
    if moment == "anywhere":
        updates = rng.integers(0, 6, endpoint=True)  # none: while it starts
        launch.wait_until(lambda: newest_step(folder) >= start + updates, f"update {start + updates}")
        time.sleep(rng.uniform(0, 0.25 if updates else 1.5))
        return
    checkpoints = 0 if moment == "in the first checkpoint" else rng.integers(1, 3, endpoint=True)
    earliest = start + checkpoints * SAVED_EVERY
    share = rng.uniform(0, 1)

    def being_written() -> list[Path]:
        return [path for path in (folder / "checkpoints").glob("writing-*") if int(path.name[-8:]) > earliest]

    while True:
        launch.wait_until(being_written, f"the writing of a checkpoint after {earliest}")
        time.sleep(0.1 * share)
        launch.stop()
        if being_written():
            return
        share /= 2  # it was written before that moment: sooner, in the next one
        launch.signal(signal.SIGCONT)


@contextlib.contextmanager
def naming_seed(seed: int):
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{error}\nthe moments were drawn with KILLS_SEED={seed}") from error


@pytest.fixture(scope="module")
def uninterrupted(server, fsdp2, tmp_path_factory):
    """Folder of the run of some processes and overrides, without data workers or kills."""
    folders: dict[tuple[str, ...], Path] = {}

    def run(processes: int, overrides: list[str]) -> Path:
        key = (str(processes), *(item for item in overrides if not item.startswith("train.output_dir=")))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("uninterrupted") / "run"
            server.launch(processes, [*overrides, f"train.output_dir={folders[key]}"], fsdp2).finish_well()
        return folders[key]

    return run


def test_20_kills_are_drawn_and_half_of_them_fall_into_the_writing_of_a_checkpoint():
    moments = [moment for kills in KILLS.values() for moment in kills]
    assert len(moments) == 20 and sum("checkpoint" in moment for moment in moments) >= 10
    assert KILLS.keys() == {(processes, workers) for processes in (1, 2) for workers in (0, 1, 2)}


@pytest.mark.parametrize(("processes", "workers", "kills", "updates"), CASES, ids=CASE_NAMES)
def test_killed_run_ends_in_the_tensors_of_the_uninterrupted_one(
    server, fsdp2, uninterrupted, image_folder, tmp_path, processes, workers, kills, updates
):
    total, kind = updates[processes], KINDS.get((processes, workers), [])
    overrides = [
        *tiny_run(image_folder, tmp_path / "run", *kind),
        f"train.epochs={total / 2}",
        "train.log_every=1",
        "train.keep_checkpoints=2",
    ]
    assert {"train.epoch_length=2", "train.checkpoint_epochs=1", "model.drop_path_rate=0.3"} < set(overrides)
    whole = uninterrupted(processes, overrides)
    folder = folder_of(overrides)
    overrides.append(f"data.num_workers={workers}")

    seed = int(os.environ.get("KILLS_SEED", time.time_ns() % 1_000_000))
    rng = np.random.default_rng([seed, processes, workers])
    starts = []
    with naming_seed(seed):
        for moment in kills:
            starts.append(newest_step(folder))
            launch = server.launch(processes, overrides, fsdp2)
            wait_for_moment(launch, folder, moment, rng)
            launch.kill()
            assert newest_step(folder) < total
            if moment != "anywhere":
                assert any(name.startswith("writing-") for name in names_in(folder))
        starts.append(newest_step(folder))
        last = server.launch(processes, overrides, fsdp2).finish_well()

        assert starts == sorted(starts) and 0 < starts[-1] < total
        assert f"continuing from {folder}/checkpoints/step-{starts[-1]:08d}" in last.logs()[0]
        newest = [f"step-{step:08d}" for step in (total - SAVED_EVERY, total)]
        assert names_in(folder) == names_in(whole) == newest
        for name in newest:
            checkpoints = [run / "checkpoints" / name for run in (folder, whole)]
            assert_same_tensors(*map(read_tensors, checkpoints))
            assert len({(checkpoint / "run.json").read_text() for checkpoint in checkpoints}) == 1
        assert [line["step"] for line in read_log(folder)] == list(range(1, total + 1))
        assert read_log(folder) == read_log(whole)


def test_what_a_kill_left_of_a_checkpoint_goes_at_the_next_launch(server, tiny_overrides):
    """Also where the next run saves at other updates and so never writes that checkpoint again."""
    folder = folder_of(tiny_overrides)
    launch = server.launch(1, [*tiny_overrides, "train.checkpoint_epochs=1.5"])
    launch.wait_until(lambda: names_in(folder), "a checkpoint")
    launch.stop()
    launch.kill()
    assert names_in(folder) == ["writing-00000003"] and (folder / ".lock").exists()
    again = server.launch(1, tiny_overrides).finish_well()
    assert f"took over the lock of a run that was killed: process {launch.pids[0]} on " in again.logs()[0]
    assert names_in(folder) == ["step-00000004", "step-00000006"] and not (folder / ".lock").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_launch_into_the_folder_of_a_run_is_refused_and_disturbs_nothing(server, tiny_overrides, processes):
    folder = folder_of(tiny_overrides)
    overrides = [*tiny_overrides, "train.epochs=5000", "train.checkpoint_epochs=1000", "train.log_every=1"]
    launch = server.launch(1, overrides)
    launch.wait_until(lambda: (folder / "metrics.jsonl").exists() and read_log(folder), "the first line")
    second = server.launch(processes, overrides, example="pretrain")
    assert second.finish() == [2] * processes
    line = f"{folder} is in use by another run: process {launch.pids[0]} on "
    assert all("Traceback" not in log for log in second.logs()) and line in second.logs()[0]
    launch.signal(signal.SIGTERM)
    assert launch.finish() == [143]
    steps = [line["step"] for line in read_log(folder)]
    assert steps == list(range(1, len(steps) + 1))


def test_a_run_whose_data_worker_is_killed_says_so_and_continues_to_the_same_weights(
    server, fsdp2, uninterrupted, tiny_overrides
):
    """torch looks for it every five seconds."""
    overrides = [*tiny_overrides, "train.epochs=10", "train.log_every=1", "train.keep_checkpoints=2"]
    whole = uninterrupted(1, overrides)
    folder = folder_of(overrides)
    overrides.append("data.num_workers=1")
    launch = server.launch(1, overrides, example="pretrain")
    launch.wait_until(lambda: newest_step(folder) >= 4, "update 4")
    launch.stop()
    (worker,) = psutil.Process(launch.pids[0]).children()
    worker.kill()
    launch.signal(signal.SIGCONT)
    assert launch.finish() == [1]
    (log,) = launch.logs()
    assert re.search(
        rf"\npretrain.py: error: the data worker {worker.pid} was killed by SIGKILL; most often .* memory", log
    )
    assert "Traceback" not in log and "cannot be written" not in log
    server.launch(1, overrides).finish_well()
    checkpoints = [run / "checkpoints" / "step-00000020" for run in (folder, whole)]
    assert_same_tensors(*map(read_tensors, checkpoints))
    assert read_log(folder) == read_log(whole)


# ----------------------------------------------------------------------------------------------- other processes go on


@pytest.fixture(scope="module")
def written(server, fsdp2, tmp_path_factory):
    """A checkpoint after update 4 of 6 that one or two (FSDP2) processes wrote, global batch 8."""
    found: dict[int, Path] = {}

    def write(processes: int, overrides: list[str]) -> Path:
        if processes not in found:
            folder = tmp_path_factory.mktemp("written")
            batch = f"train.batch_size={8 // processes}"
            server.launch(processes, [*overrides, batch, f"train.output_dir={folder}"], fsdp2).finish_well()
            found[processes] = folder / "checkpoints" / "step-00000004"
        return found[processes]

    return write


def go_on_from(checkpoint: Path, folder: Path) -> Path:
    """Makes `folder` that of a run which has come as far as `checkpoint`."""
    return Path(shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name))


@pytest.mark.parametrize(
    ("writers", "readers", "sharded"),
    [(2, 1, False), (2, 2, False), (2, 4, True), (1, 2, True)],
    ids=["fsdp2_of_2_to_1", "fsdp2_of_2_to_ddp_of_2", "fsdp2_of_2_to_fsdp2_of_4", "1_to_fsdp2_of_2"],
)
def test_other_processes_load_a_checkpoint_bit_for_bit_and_finish_the_run(
    server, fsdp2, written, tiny_overrides, tmp_path, writers, readers, sharded
):
    checkpoint = written(writers, tiny_overrides)
    folder = folder_of(tiny_overrides)
    go_on_from(checkpoint, folder)
    loaded = tmp_path / "loaded.safetensors"
    overrides = [*tiny_overrides, f"train.batch_size={8 // readers}"]
    server.launch(readers, overrides, fsdp2 if sharded else None, dump=loaded).finish_well()
    assert len({path.name for path in checkpoint.glob("*.distcp")}) >= writers
    assert_same_tensors(load_file(loaded), read_tensors(checkpoint))
    assert names_in(folder) == ["step-00000004", "step-00000006"]
    after = read_tensors(folder / "checkpoints" / "step-00000006")
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


# --------------------------------------------------------------------------------------- what a checkpoint records


def test_digest_of_sharded_weights_is_that_of_the_whole_tensors(written, tiny_overrides):
    for processes in (1, 2):
        checkpoint = written(processes, tiny_overrides)
        recorded = Provenance.read(checkpoint)
        assert recorded.weights == digest_of(read_model_tensors(checkpoint))
        assert recorded.environment["processes"] == processes and damage_of(checkpoint) is None
        listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
        assert {name for name in listed if name.endswith(".distcp")} == {f"__{r}_0.distcp" for r in range(processes)}


def test_two_processes_agree_on_the_checkpoint_before_a_damaged_one(server, fsdp2, written, tiny_overrides):
    """The second process finds the damage, as each reads a share of the files."""
    last = written(2, tiny_overrides).with_name("step-00000006")
    folder = folder_of(tiny_overrides)
    go_on_from(written(2, tiny_overrides), folder)
    damaged = go_on_from(last, folder)
    for name in ("__0_0.distcp", "__1_0.distcp"):
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / name).write_bytes(content)
        launch = server.launch(2, [*tiny_overrides, "train.batch_size=4"], fsdp2).finish_well()
        assert f"the checkpoint {damaged} is damaged: the checksum of __" in launch.logs()[0]
        assert [log.count("continuing from") for log in launch.logs()] == [1, 0]
        assert f"continuing from {folder}/checkpoints/step-00000004" in launch.logs()[0]
        assert Provenance.read(damaged).weights == Provenance.read(last).weights
    assert names_in(folder) == ["damaged-00000006", "damaged-00000006-2", "step-00000004", "step-00000006"]


@pytest.mark.slow
def test_stretch_of_a_run_of_two_processes_is_verified_by_two(launch, fsdp2, written, tiny_overrides):
    run = written(2, tiny_overrides).parents[1]
    before = content(run)
    output = launch(2, "-m", "dinov2_hf.cli", "verify", run, environment=fsdp2)
    assert output.count("equal: updates 5 to 6 give the weights of the checkpoint, bit for bit") == 1
    assert content(run) == before


# -------------------------------------------------------------------------------------------------- Ctrl-C and SIGTERM


@contextlib.contextmanager
def example(*arguments: str, launcher: tuple[str, ...] = ()):
    """`examples/pretrain.py` as a process, in a group of its own as a job is."""
    process = subprocess.Popen(
        [sys.executable, *launcher, "examples/pretrain.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
        preexec_fn=use_one_core,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def stop_after(process: subprocess.Popen, folder: Path, update: int, number: signal.Signals) -> tuple[int, str]:
    """Sends a signal to the group after an update; gives the update after which the run saved, and what it printed."""
    end = time.monotonic() + HANGS
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or not re.search(rf'"step": {update}\b', metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 128 + number and "Traceback" not in errors, errors
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    told = re.search(rf"stopped by {name} after update (\d+); saved (\S+), launch again to continue", output)
    saved = folder / "checkpoints" / f"step-{int(told[1]):08d}"
    assert told[2] == str(saved) and saved.is_dir()
    return int(told[1]), errors


def test_example_saves_at_sigterm_and_at_ctrl_c_and_the_next_launch_continues(tiny_overrides):
    """The whole process group gets them, data worker included."""
    folder = folder_of(tiny_overrides)
    overrides = [*tiny_overrides, "data.num_workers=1", "train.epochs=5000", "train.log_every=1"]
    overrides += ["train.checkpoint_epochs=1000"]
    with example(*overrides) as process:
        stopped, _ = stop_after(process, folder, 3, signal.SIGTERM)
    assert stopped >= 3 and names_in(folder) == [f"step-{stopped:08d}"]
    with example(*overrides) as process:
        again, errors = stop_after(process, folder, stopped + 2, signal.SIGINT)
    assert f"continuing from {folder}/checkpoints/step-{stopped:08d}" in errors
    assert again >= stopped + 2 and names_in(folder) == [f"step-{stopped:08d}", f"step-{again:08d}"]
    assert [line["step"] for line in read_log(folder)] == list(range(1, again + 1))


@pytest.mark.slow
def test_a_run_saves_and_ends_when_accelerate_launch_of_one_process_is_terminated(tiny_overrides):
    """That passes no signal on, and ends at once."""
    folder = folder_of(tiny_overrides)
    overrides = [*tiny_overrides, "train.epochs=5000", "train.log_every=1", "train.checkpoint_epochs=1000"]
    launcher = ("-m", "accelerate.commands.launch", "--quiet", "--config_file", "configs/accelerate/cpu.yaml")
    with example(*overrides, launcher=launcher) as process:
        end = time.monotonic() + HANGS
        while not (folder / "metrics.jsonl").exists() or not read_log(folder):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        (training,) = psutil.Process(process.pid).children()
        process.terminate()
        output, errors = process.communicate(timeout=HANGS)  # ends when the run has closed its output
        assert process.returncode == -signal.SIGTERM and "Traceback" not in errors
        training.wait(HANGS)
    (saved,) = names_in(folder)
    assert f"saved {folder}/checkpoints/{saved}, launch again to continue" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_end_after_the_same_update_with_one_checkpoint(server, fsdp2, tiny_overrides, number):
    folder = folder_of(tiny_overrides)
    overrides = [*tiny_overrides, "data.num_workers=1", "train.epochs=5000", "train.checkpoint_epochs=1000"]
    launch = server.launch(2, [*overrides, "train.log_every=5"], fsdp2)
    launch.wait_until(lambda: (folder / "metrics.jsonl").exists() and read_log(folder), "the first line")
    launch.signal(number)
    assert launch.finish() == [128 + number] * 2
    ends = [re.search(r"ended after update (\d+)", log)[1] for log in launch.logs()]
    assert ends[0] == ends[1] and names_in(folder) == [f"step-{int(ends[0]):08d}"]
    assert "Traceback" not in "".join(launch.logs())


# ----------------------------------------------------------------------------------------- disks, folders, broken data


@pytest.mark.parametrize(
    ("processes", "limits"),
    [(1, {0: 200_000}), (2, {0: 200_000, 1: 200_000}), (2, {1: 200_000})],
    ids=["one_process", "two_processes", "the_second_of_two_processes"],
)
def test_checkpoint_that_cannot_be_written_ends_the_run_and_spoils_nothing(
    server, fsdp2, written, tiny_overrides, processes, limits
):
    """A file may not grow beyond a limit, so that writing fails halfway as on a full disk."""
    folder = folder_of(tiny_overrides)
    good = go_on_from(written(processes, tiny_overrides), folder)
    before = content(good)
    assert max(map(len, before.values())) > 200_000
    overrides = [*tiny_overrides, f"train.batch_size={8 // processes}"]
    launch = server.launch(processes, overrides, fsdp2, file_bytes=limits)
    assert launch.finish() == [1] * processes
    for log in launch.logs():
        assert re.search(
            rf"OSError: the checkpoint after update 6 cannot be written to {folder}/checkpoints: "
            rf".*File too large.*; the last good checkpoint is {good}; make room or repair the folder",
            log,
        )
    assert names_in(folder) == [good.name] and content(good) == before
    launch = server.launch(processes, overrides, fsdp2).finish_well()
    assert f"continuing from {good}" in launch.logs()[0]
    assert names_in(folder) == [good.name, "step-00000006"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_output_folder_that_cannot_be_made_is_answered_in_one_line(server, tiny_overrides, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    launch = server.launch(1, [*tiny_overrides, f"train.output_dir={tmp_path / place}"], example="pretrain")
    assert launch.finish() == [2]
    (log,) = launch.logs()
    message = rf"^pretrain.py: error: train.output_dir={tmp_path / place} .*is a file; give (a folder|another path)"
    assert "Traceback" not in log and re.search(message, log, re.MULTILINE), log


@pytest.mark.parametrize("broken", ["all", "some"])
def test_run_that_its_data_end_does_not_wait_for_its_workers(server, tiny_overrides, image_folder, tmp_path, broken):
    """The exception comes from the workers where no file is readable, else from the loop while they read on."""
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    for number, path in enumerate(sorted(images.rglob("*.jpg"))):
        if broken == "all" or number % 2:
            path.write_text("not an image")
    overrides = [*tiny_overrides, "data.num_workers=2", f"data.train.path={images}", "data.max_broken_share=0.001"]
    launch = server.launch(1, [*overrides, "train.epochs=5000"])
    assert launch.finish() == [1]
    message = "100 images in a row cannot be decoded" if broken == "all" else r"more than data.max_broken_share=0.001"
    assert re.search(rf"ValueError: .*{message}", launch.logs()[0])
    with pytest.raises(ProcessLookupError):  # nobody is left in its group
        os.killpg(launch.pids[0], 0)
