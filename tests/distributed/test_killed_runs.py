"""Training processes that are killed, stopped, continued on other processes or left without disk: what they leave.

This file is a server as well, which imports everything once and forks training processes on demand, so that a kill does
not cost an import. It computes nothing itself: a fork of it is like a fresh process.
"""

import contextlib
import gc
import json
import logging
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from dinov2_hf.config import load_config
from dinov2_hf.train import Pretrainer, build_accelerator
from dinov2_hf.train.checkpoint import find_checkpoints, step_of

ROOT = Path(__file__).parents[2]
TIMEOUT = 240  # seconds; what hangs waits for ever

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


# ---------------------------------------------------------------------------------------------------------- the server


def serve() -> None:
    """Answers requests, a line of JSON each, until standard input ends: `start`, `poll` and `stop` processes."""
    import torch._dynamo  # noqa: F401  as all that a run would import later
    import torch.utils.tensorboard  # noqa: F401

    gc.collect()
    gc.freeze()
    codes: dict[int, int | None] = {}

    def look(pid: int, flags: int) -> None:
        ended, status = os.waitpid(pid, flags)
        if ended and not os.WIFSTOPPED(status):
            codes[pid] = os.waitstatus_to_exitcode(status)

    for line in sys.stdin:
        request = json.loads(line)
        pids = request.get("pids", [])
        if job := request.get("start"):
            port = free_port()
            for rank in range(job["processes"]):
                pid = os.fork()
                if pid == 0:
                    train(job, rank, port)
                with contextlib.suppress(OSError):  # the child does it, too: whoever comes first
                    os.setpgid(pid, pid)
                codes[pid] = None
                pids.append(pid)
        for pid in pids:
            if codes[pid] is None:
                if request.get("stop"):
                    os.kill(pid, signal.SIGSTOP)
                look(pid, os.WUNTRACED if request.get("stop") else os.WNOHANG)
        print(json.dumps([[pid, codes[pid]] for pid in pids]), flush=True)
    for pid, code in codes.items():
        if code is None:
            os.killpg(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(job: dict, rank: int, port: int) -> None:
    """A training process, from the fork to its end; an exception ends it as it would end a script."""
    os.setpgid(0, 0)
    log = os.open(f"{job['log']}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(file, number)
    os.environ |= job["environment"]
    if (processes := job["processes"]) > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_PORT": str(port)}
    if limit := job["file_bytes"].get(str(rank)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    logging.basicConfig(level=logging.INFO)
    config = load_config(None, job["overrides"])
    accelerator = build_accelerator(config.train)
    torch.set_num_threads(1)  # tensors are so small that threads would only wait for each other
    trainer = Pretrainer(config, accelerator, resume="auto")
    if job["dump"]:
        dump(trainer, job["dump"])
    trainer.run()
    print("ended after update", trainer.step, flush=True)
    os._exit(128 + signal.SIGTERM if trainer.stopped else 0)  # to take the modules apart lasts a second


def dump(trainer: Pretrainer, path: str) -> None:
    """Saves the whole tensors of model and optimiser as a process has them, under a checkpoint's names."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = get_state_dict(trainer.model, trainer.training_step.optimizer, options=options)
    tensors = {f"model.{name}": tensor for name, tensor in model.items()}
    for name, moments in optimizer.get("state", {}).items():
        tensors |= {f"optimizer.state.{name}.{key}": tensor for key, tensor in moments.items()}
    if trainer.accelerator.is_main_process:
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


class Server:
    """Starts training processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._launches = 0
        environment = {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )

    def ask(self, **request) -> dict[int, int | None]:
        """Exit codes by process, None while it runs."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))

    def launch(
        self, processes: int, overrides: list[str], environment=None, file_bytes=None, dump: Path | None = None
    ) -> "Launch":
        """Starts a run of `overrides`, in which rank `r` cannot write files longer than `file_bytes[r]`."""
        self._launches += 1
        log = self.folder / f"log{self._launches:03}"
        job = {
            "processes": processes,
            "overrides": overrides,
            "environment": environment or {},
            "file_bytes": file_bytes or {},
            "dump": dump and str(dump),
            "log": str(log),
        }
        return Launch(self, list(self.ask(start=job)), log)


class Launch:
    """The processes of one launch."""

    def __init__(self, server: Server, pids: list[int], log: Path) -> None:
        self._server, self.pids, self._log = server, pids, log

    def logs(self) -> list[str]:
        """What each process has printed."""
        return [Path(f"{self._log}-{rank}.txt").read_text() for rank in range(len(self.pids))]

    def codes(self) -> list[int | None]:
        """Exit codes, None for those that run."""
        return list(self._server.ask(pids=self.pids).values())

    def wait_until(self, condition, what: str):
        """Waits until `condition()`, and gives its value."""
        end = time.monotonic() + TIMEOUT
        while not (found := condition()):
            assert None in self.codes(), f"ended before {what}: {self._tails()}"
            assert time.monotonic() < end, f"{what} did not come: {self._tails()}"
            time.sleep(0.001)
        return found

    def finish(self, timeout: float = TIMEOUT) -> list[int]:
        """Waits for the end of all processes, and gives their exit codes."""
        end = time.monotonic() + timeout
        while None in (codes := self.codes()):
            if time.monotonic() > end:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"ran for longer than {timeout} s: {self._tails()}")
            time.sleep(0.01)
        return codes

    def finish_well(self) -> "Launch":
        """Waits for the end that a run should have."""
        assert self.finish() == [0] * len(self.pids), self._tails()
        return self

    def signal(self, number: int) -> None:
        """To all processes and their data workers."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def stop(self) -> None:
        """Returns when all processes stand still."""
        self._server.ask(stop=True, pids=self.pids)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.finish() == [-signal.SIGKILL] * len(self.pids), f"not killed: {self._tails()}"

    def _tails(self) -> str:
        return "\n".join(text[-3000:] for text in self.logs())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.process.stdin.close()
    server.process.wait(timeout=60)


# ------------------------------------------------------------------------------------------------------------- helpers


def folder_of(overrides: list[str]) -> Path:
    return Path(load_config(None, overrides).train.output_dir)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir()) if (folder / "checkpoints").exists() else []


def newest_step(folder: Path) -> int:
    """Updates in the newest checkpoint, 0 where there is none."""
    found = find_checkpoints(folder / "checkpoints")
    return step_of(found[-1]) if found else 0


def read_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of model and optimiser in a checkpoint, whole."""
    entries = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if hasattr(entry, "size")
    }
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    for part in ("model.student.", "model.teacher.", "optimizer.state.student."):
        assert any(name.startswith(part) for name in state), part
    trained = [name for name in state if name.startswith("optimizer.state.")]
    assert {name.rsplit(".", 1)[1] for name in trained} == {"exp_avg", "exp_avg_sq", "step"}
    return state


def assert_same_tensors(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(tensors[name], expected[name])] == []


def read_log(folder: Path) -> list[dict[str, float]]:
    """Every line of the metrics, without the one number that is measured; a line cut short would not parse."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return lines


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------------------- kills

UPDATES = {1: 60, 2: 28}
SAVED_EVERY = 2
KILLS = {
    (1, 0): ["in the first checkpoint", "in a checkpoint", "anywhere", "in a checkpoint"],
    (1, 1): ["in a checkpoint", "anywhere", "in a checkpoint", "anywhere"],
    (1, 2): ["anywhere", "in a checkpoint", "in a checkpoint", "anywhere"],
    (2, 0): ["in a checkpoint", "anywhere", "in a checkpoint"],
    (2, 1): ["in the first checkpoint", "in a checkpoint", "anywhere"],
    (2, 2): ["anywhere", "in a checkpoint"],
}
STREAMING = (1, 2)


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
    """Folder of the run of some processes, map-style or streaming, without data workers, that nothing disturbs."""
    folders: dict[tuple[int, bool], Path] = {}

    def run(processes: int, streaming: bool, overrides: list[str]) -> Path:
        if (processes, streaming) not in folders:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            server.launch(processes, [*overrides, f"train.output_dir={folder}"], fsdp2).finish_well()
            folders[processes, streaming] = folder
        return folders[processes, streaming]

    return run


def test_20_kills_are_drawn_and_half_of_them_fall_into_the_writing_of_a_checkpoint():
    moments = [moment for kills in KILLS.values() for moment in kills]
    assert len(moments) == 20 and sum("checkpoint" in moment for moment in moments) >= 10
    assert KILLS.keys() == {(processes, workers) for processes in (1, 2) for workers in (0, 1, 2)}


@pytest.mark.parametrize(("processes", "workers"), KILLS)
def test_killed_run_ends_in_the_tensors_of_the_uninterrupted_one(
    server, fsdp2, uninterrupted, tiny_overrides, processes, workers
):
    streaming, total = (processes, workers) == STREAMING, UPDATES[processes]
    overrides = [*tiny_overrides, f"train.epochs={total / 2}", "train.log_every=1", "train.keep_checkpoints=2"]
    assert {"train.epoch_length=2", "train.checkpoint_epochs=1", "model.drop_path_rate=0.3"} < set(overrides)
    if streaming:
        overrides += ["data.train.streaming=true", "data.shuffle_buffer=8"]
    whole = uninterrupted(processes, streaming, overrides)
    folder = folder_of(overrides)
    overrides.append(f"data.num_workers={workers}")

    seed = int(os.environ.get("KILLS_SEED", time.time_ns() % 1_000_000))
    rng = np.random.default_rng([seed, processes, workers])
    starts = []
    with naming_seed(seed):
        for moment in KILLS[processes, workers]:
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
    assert names_in(folder) == ["writing-00000003"]
    server.launch(1, tiny_overrides).finish_well()
    assert names_in(folder) == ["step-00000004", "step-00000006"]


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


# ------------------------------------------------------------------------------------------------------------- SIGTERM


@contextlib.contextmanager
def example(*arguments: str):
    """`examples/pretrain.py` as a process, in a group of its own as a job is."""
    process = subprocess.Popen(
        [sys.executable, "examples/pretrain.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def terminate_after(process: subprocess.Popen, folder: Path, update: int, group: bool) -> tuple[int, str]:
    """Sends SIGTERM after an update; gives the update after which the run saved, and what it printed."""
    end = time.monotonic() + TIMEOUT
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or not re.search(rf'"step": {update}\b', metrics.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143 and "Traceback" not in errors, errors
    told = re.search(r"stopped by SIGTERM after update (\d+); saved (\S+), launch again to continue", output)
    saved = folder / "checkpoints" / f"step-{int(told[1]):08d}"
    assert told[2] == str(saved) and saved.is_dir()
    return int(told[1]), errors


def test_example_saves_at_sigterm_and_the_next_launch_continues(tiny_overrides):
    """At first the whole process group gets it, data worker included, then the process alone."""
    folder = folder_of(tiny_overrides)
    overrides = [*tiny_overrides, "data.num_workers=1", "train.epochs=5000", "train.log_every=1"]
    overrides += ["train.checkpoint_epochs=1000"]
    with example(*overrides) as process:
        stopped, _ = terminate_after(process, folder, 3, group=True)
    assert stopped >= 3 and names_in(folder) == [f"step-{stopped:08d}"]
    with example(*overrides) as process:
        again, errors = terminate_after(process, folder, stopped + 2, group=False)
    assert f"continuing from {folder}/checkpoints/step-{stopped:08d}" in errors
    assert again >= stopped + 2 and names_in(folder) == [f"step-{stopped:08d}", f"step-{again:08d}"]
    assert [line["step"] for line in read_log(folder)] == list(range(1, again + 1))


def test_two_processes_end_after_the_same_update_at_sigterm_with_one_checkpoint(server, fsdp2, tiny_overrides):
    folder = folder_of(tiny_overrides)
    overrides = [*tiny_overrides, "data.num_workers=1", "train.epochs=5000", "train.checkpoint_epochs=1000"]
    launch = server.launch(2, [*overrides, "train.log_every=5"], fsdp2)
    launch.wait_until(lambda: (folder / "metrics.jsonl").exists() and read_log(folder), "the first line")
    launch.signal(signal.SIGTERM)
    assert launch.finish() == [143, 143]
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
def test_output_folder_that_cannot_be_made_is_answered_in_one_line(tiny_overrides, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with example(*tiny_overrides, f"train.output_dir={tmp_path / place}") as process:
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and "Traceback" not in errors, errors
    message = rf"error: train.output_dir={tmp_path / place} cannot be written: .*'; mend that or give another folder"
    assert re.search(message, errors.splitlines()[-1]), errors


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
    assert launch.finish(timeout=60) == [1]
    message = "100 images in a row cannot be decoded" if broken == "all" else r"more than data.max_broken_share=0.001"
    assert re.search(rf"ValueError: .*{message}", launch.logs()[0])
    with pytest.raises(ProcessLookupError):  # nobody is left in its group
        os.killpg(launch.pids[0], 0)


if __name__ == "__main__":
    serve()
