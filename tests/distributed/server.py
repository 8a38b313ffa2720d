"""A server that forks training processes, so that a kill does not cost an import, and what tests do with their folders.

As a program, `python -m tests.distributed.server`, it imports everything once and answers requests. It computes nothing
itself: a fork of it is like a fresh process.
"""

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from dinov2_hf.api import training
from dinov2_hf.cli.train import train as run_command
from dinov2_hf.config import load_config
from dinov2_hf.runs.checkpoint import find_checkpoints, step_of
from dinov2_hf.train import Trainer, build_accelerator

from ..patience import HANGS
from .moments import mark_moments

ROOT = Path(__file__).parents[2]
EXAMPLES = {"pretrain": "dinov2", "distill": "distill_prototypes"}
"""The objective of each, where the configuration names none."""


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
                with contextlib.suppress(OSError):  # the child does it too, and either may be first
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
    if job["example"]:
        run_example(job, rank)
    logging.basicConfig(level=logging.INFO)
    config = load_config(None, job["overrides"])
    accelerator = build_accelerator(config.train)
    torch.set_num_threads(1)  # tensors are so small that threads would only wait for each other
    trainer = Trainer.from_config(config, accelerator, resume="auto")
    if job["dump"]:
        dump(trainer, job["dump"])
    trainer.run()
    print("ended after update", trainer.step, flush=True)
    os._exit(128 + trainer.stopped_by if trainer.stopped_by else 0)  # to take the modules apart lasts a second


def run_example(job: dict, rank: int) -> None:
    """`examples/pretrain.py` or `distill.py`, from the arguments to the exit status; draws no pictures."""
    training.plot_metrics = training.plot_patch_pca = lambda *_: Path("not drawn")  # half of the time
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[rank:][:1] or [0])  # one thread, the same on every machine
    counts = mark_moments(job["signals"], rank)
    sys.argv = [f"{job['example']}.py", *job["overrides"]]
    status = 0
    try:
        run_command(job["example"], EXAMPLES[job["example"]])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
        print(ended, flush=True)
    Path(f"{job['log']}-{rank}.json").write_text(json.dumps(counts))
    for worker in multiprocessing.active_children():  # as the interpreter does at its end
        worker.kill()
    os._exit(status)


def dump(trainer: Trainer, path: str) -> None:
    """Saves the whole tensors of model and optimiser as a process has them, under a checkpoint's names."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = get_state_dict(trainer.objective, trainer.training_step.optimizer, options=options)
    tensors = {f"model.{name}": tensor for name, tensor in model.items()}
    for name, moments in optimizer.get("state", {}).items():
        tensors |= {f"optimizer.state.{name}.{key}": tensor for key, tensor in moments.items()}
    if trainer.accelerator.is_main_process:
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


class Server:
    """Starts training processes."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._launches = 0
        base = {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | base | (environment or {}),
        )

    def ask(self, **request) -> dict[int, int | None]:
        """Exit codes by process, None while it runs."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """Ends the server, and kills what runs."""
        self.process.stdin.close()
        self.process.wait(timeout=HANGS)

    def launch(
        self,
        processes: int,
        overrides: list[str],
        environment=None,
        file_bytes=None,
        dump: Path | None = None,
        example: str | None = None,
        signals: Sequence[dict] = (),
    ) -> "Launch":
        """Starts a run of `overrides`, in which rank `r` cannot write files longer than `file_bytes[r]`.

        Args:
            dump: file for the tensors as the processes have loaded them.
            example: `pretrain` or `distill`: with all that the example does before and after the training.
            signals: that the processes of an example send themselves, see `moments.mark_moments`.
        """
        self._launches += 1
        log = self.folder / f"log{self._launches:03}"
        job = {
            "processes": processes,
            "overrides": overrides,
            "environment": environment or {},
            "file_bytes": file_bytes or {},
            "dump": dump and str(dump),
            "log": str(log),
            "example": example,
            "signals": list(signals),
        }
        return Launch(self, list(self.ask(start=job)), log)


class Launch:
    """The processes of one launch."""

    def __init__(self, server: Server, pids: list[int], log: Path) -> None:
        self._server, self.pids, self._log = server, pids, log

    def logs(self) -> list[str]:
        """What each process has printed."""
        return [Path(f"{self._log}-{rank}.txt").read_text() for rank in range(len(self.pids))]

    def counts(self) -> dict[str, int]:
        """How often the main process of an example that has ended passed each moment."""
        return json.loads(Path(f"{self._log}-0.json").read_text())

    def codes(self) -> list[int | None]:
        """Exit codes, None for those that run."""
        return list(self._server.ask(pids=self.pids).values())

    def wait_until(self, condition, what: str):
        """Waits until `condition()`, and gives its value."""
        end = time.monotonic() + HANGS
        while not (found := condition()):
            assert None in self.codes(), f"ended before {what}: {self._tails()}"
            assert time.monotonic() < end, f"{what} did not come: {self._tails()}"
            time.sleep(0.001)
        return found

    def finish(self) -> list[int]:
        """Waits for the end of all processes, and gives their exit codes."""
        end = time.monotonic() + HANGS
        while None in (codes := self.codes()):
            if time.monotonic() > end:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"ran for longer than {HANGS} s: {self._tails()}")
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
    for part in ("model", "optimizer.state"):
        assert any(re.match(rf"{part}\.students?\.", name) for name in state), part
    trained = [name for name in state if name.startswith("optimizer.state.")]
    assert {name.rsplit(".", 1)[1] for name in trained} in ({"exp_avg", "exp_avg_sq", "step"}, {"momentum_buffer"})
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


if __name__ == "__main__":
    serve()
