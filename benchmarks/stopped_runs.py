"""Stops tiny runs in every way, by the commands of the README, and says what they print, leave and continue to.

    python benchmarks/stopped_runs.py                     # some minutes on two cores
    python benchmarks/stopped_runs.py --only torchrun --ends SIGTERM

Each run is started as a user would, ended after its third update by SIGTERM, Ctrl-C, Ctrl-C twice, a full disk or a
data worker that is killed, and launched again. Prints what the ended launch printed from there on, and a table in
Markdown: the status that a shell sees, the lines, and whether weights and metrics are those of the uninterrupted run.
Signals go to the launcher, those of Ctrl-C to its process group. The full disk is a tmpfs where this process may mount
one, else a limit on the length of files. Ends with status 1 where anything differs.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dinov2_hf.runs.checkpoint import find_checkpoints, read_model_tensors  # noqa: E402
from tests.tiny import TINY, write_photographs  # noqa: E402

PYTHON = sys.executable
LAUNCHES = {
    "dinov2-hf": [PYTHON, "-m", "dinov2_hf", "pretrain"],
    "accelerate": [
        *(PYTHON, "-m", "accelerate.commands.launch", "--quiet", "--config_file", "configs/accelerate/cpu.yaml"),
        "examples/pretrain.py",
    ],
    "torchrun": [
        *(PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "dinov2_hf", "pretrain"),
    ],
}
"""The last one is what `accelerate launch` calls for several processes; on CPUs it starts one only."""
NAMES = {"accelerate": "accelerate launch --quiet", "torchrun": "torchrun, 2 processes"}
ENDS = ("SIGTERM", "Ctrl-C", "Ctrl-C twice", "full disk", "killed worker")
KEYS = [*TINY, "data.num_workers=1", "train.epochs=8", "train.log_every=1", "train.checkpoint_epochs=1"]
AT = 3
"""The update after which a run is ended."""
LIMIT = 900
"""Seconds, of a run that hangs."""
_BAR = re.compile(r".*(\d+%\|.*\|.*|it/s\].*|img/s.*\])")


class Launched:
    """A run that was started by a command."""

    def __init__(self, launch: str, images: Path, folder: Path, limited: bool = False) -> None:
        batch = f"train.batch_size={2 if launch == 'torchrun' else 4}"
        self.folder = folder
        self._started: list[psutil.Process] = []
        self._log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*LAUNCHES[launch], *KEYS, batch, f"data.train.path={images}", f"train.output_dir={folder}"],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=lambda: _prepare(launch, limited),
        )

    def wait_for_update(self, update: int) -> None:
        end, metrics = time.monotonic() + LIMIT, self.folder / "metrics.jsonl"
        while not (metrics.exists() and f'"step": {update},' in metrics.read_text()):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"update {update} did not come:\n{self.said()}")
            time.sleep(0.005)
        self._started = psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        """The data workers: forks of the processes that train."""
        return [each for each in self._started if each.cmdline() == psutil.Process(each.ppid()).cmdline()]

    def end(self) -> int:
        """Waits for the launcher and all that it started; the status that a shell sees."""
        code = self.process.wait(LIMIT)
        _, running = psutil.wait_procs(self._started, LIMIT)
        if running:
            raise RuntimeError(f"still running: {running}\n{self.said()}")
        return code if code >= 0 else 128 - code

    def said(self, start: int = 0) -> str:
        """What was printed from a place on, without the bars."""
        self._log.seek(start)
        lines = [line for part in self._log.read().split("\n") for line in part.split("\r")]
        return "\n".join(line.rstrip() for line in lines if line.strip() and not _BAR.match(line))

    def place(self) -> int:
        return os.fstat(self._log.fileno()).st_size


def _prepare(launch: str, limited: bool) -> None:
    """Called in a process before it starts: in runs so small threads would only wait for each other."""
    if launch != "torchrun":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    if limited:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def end_run(launch: str, end: str, images: Path, folder: Path) -> tuple[int, str]:
    """Starts a run and ends it; the status and what it printed from then on."""
    mounted = end == "full disk" and _mount(folder)
    run = Launched(launch, images, folder, limited=end == "full disk" and not mounted)
    if end == "full disk" and not mounted:
        return run.end(), run.said()
    run.wait_for_update(AT)
    place = run.place()
    if end == "SIGTERM":
        run.process.terminate()
    elif end == "killed worker":
        run.workers()[0].kill()
    elif end == "full disk":
        with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(512))
    else:
        for _ in range(1 + end.endswith("twice")):
            os.killpg(run.process.pid, signal.SIGINT)
            time.sleep(0.03)
    status = run.end()
    (folder / "filler").unlink(missing_ok=True)
    return status, run.said(place)


def _mount(folder: Path) -> bool:
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def differences(folder: Path, whole: Path) -> list[str]:
    """In what a run that ended differs from the uninterrupted one."""
    last = [find_checkpoints(run / "checkpoints")[-1] for run in (folder, whole)]
    found = [] if last[0].name == last[1].name else [f"ends with {last[0].name}"]
    first, second = map(read_model_tensors, last)
    found += [name for name in second if not torch.equal(first[name], second[name])]
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (folder, whole)]
    for line in (*lines[0], *lines[1]):
        line.pop("images_per_second", None)
    return [*found, *(["metrics.jsonl"] if lines[0] != lines[1] else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LAUNCHES, default=[*LAUNCHES], help="launches (default: all)")
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=[*ENDS], help="ways to end (default: all)")
    args = parser.parse_args()
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        (images := base / "images").mkdir()
        write_photographs(images)
        for launch in args.only:
            whole = base / launch / "whole"
            run = Launched(launch, images, whole)
            if run.end():
                raise RuntimeError(run.said())
            for end in args.ends:
                folder = base / launch / end.replace(" ", "-")
                status, said = end_run(launch, end, images, folder)
                again = Launched(launch, images, folder)
                status_again = again.end()
                different = [again.said()] if status_again else differences(folder, whole)
                if os.path.ismount(folder):
                    subprocess.run(["umount", str(folder)], check=True)
                failed |= bool(different)
                name = NAMES.get(launch, launch)
                rows.append(
                    f"| {name} | {end} | {status} | {len(said.splitlines())} | {'; '.join(different) or 'equal'} |"
                )
                print(f"--- {name}, {end}: status {status}\n{said}\n", flush=True)
    print("| Command | Ended by | Status | Lines printed from then on | Resumed run |\n|---|---|---:|---:|---|")
    print("\n".join(rows))
    sys.exit(failed)


if __name__ == "__main__":
    main()
