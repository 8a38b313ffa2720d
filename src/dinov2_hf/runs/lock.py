"""The lock of a run's folder: one run at a time writes into it."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

logger = logging.getLogger(__name__)

NAME = ".lock"
_WAIT, _TRIES = 0.1, 20  # for a lock that was made and not yet written


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock."""

    host: str
    pid: int
    start: str
    """When the process started, so that another process with the same number is not taken for it."""
    since: float
    """When it took the lock, in seconds since 1970."""
    job: str = ""
    """Of SLURM, which starts a job once at a time."""
    restarts: int = 0
    """How often SLURM had started the job again."""

    @classmethod
    def of_this_process(cls) -> Owner:
        job, restarts = (os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "RESTART_COUNT"))
        start = start_of(os.getpid()) or ""
        return cls(socket.gethostname(), os.getpid(), start, time.time(), job, int(restarts or 0))

    @classmethod
    def read(cls, text: str) -> Owner | None:
        """Returns the owner that a lock names, or None where it cannot be read."""
        try:
            owner = cls(**json.loads(text))
            kinds: dict[str, Any] = {
                "host": str,
                "pid": int,
                "start": str,
                "since": (int, float),
                "job": str,
                "restarts": int,
            }
            return owner if all(isinstance(getattr(owner, name), kind) for name, kind in kinds.items()) else None
        except (ValueError, TypeError, RecursionError):
            return None

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended; of another host that is known where SLURM has started its job again here."""
        if self.is_here:
            return start_of(self.pid) != self.start
        now = Owner.of_this_process()
        return bool(self.job) and self.job == now.job and self.restarts < now.restarts

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, which began {_duration(time.time() - self.since)} ago"


class RunLock:
    """A lock for a folder, as a context manager that may be nested: `with RunLock(folder): …`.

    A kill leaves the lock. The next run on the same host finds that its process is gone and takes it over.

    Args:
        folder: of the run; it is made where it is missing.

    Raises:
        ValueError: another run holds the lock.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._own = ""
        self._depth = 0

    def require_free(self) -> None:
        """Refuses a folder that another run holds. Writes nothing.

        Raises:
            ValueError: saying which process holds it, since when, and what to do.
        """
        if not self._depth and (text := self._read()) is not None:
            self._require_gone(text)

    def __enter__(self) -> RunLock:
        if not self._depth:
            self._take()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth and self._read() == self._own:
            self.path.unlink(missing_ok=True)

    def _take(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._own = json.dumps(asdict(Owner.of_this_process()))
        while True:
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                text = self._read()
                if text is None:  # its run has just ended
                    continue
                self._require_gone(text)
                self._remove(text)
                continue
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(self._own)
            except OSError:
                self.path.unlink(missing_ok=True)
                raise
            return

    def _read(self) -> str | None:
        """Returns what the lock holds, None where there is none; waits a little for one that is being written."""
        for _ in range(_TRIES):
            try:
                text = self.path.read_text(errors="replace")
            except FileNotFoundError:
                return None
            if text:
                return text
            time.sleep(_WAIT)
        return ""

    def _require_gone(self, text: str) -> None:
        folder, other = self.path.parent, "or give another train.output_dir"
        owner = Owner.read(text)
        if owner is None and text:  # an empty one is that of a run that was killed while it took it
            raise ValueError(
                f"{folder} is locked, and {self.path} cannot be read; if no run writes into the folder remove that "
                f"file and launch again, {other}"
            )
        if owner is None or owner.is_gone:
            return
        if owner.is_here:
            raise ValueError(f"{folder} is in use by another run: {owner}; end it or wait, {other}")
        raise ValueError(
            f"{folder} is in use by a run on another host: {owner}; if that process is gone remove {self.path} and "
            f"launch again, {other}"
        )

    def _remove(self, text: str) -> None:
        """Removes the lock of a process that is gone, unless another launch has replaced it in the meantime."""
        aside = self.path.with_name(f"{NAME}-{os.getpid()}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if aside.read_text(errors="replace") != text:
            aside.rename(self.path)
            return
        aside.unlink()
        if owner := Owner.read(text):
            logger.info("took over the lock of a run that was killed: %s", owner)


def start_of(pid: int) -> str | None:
    """Returns when a process of this machine started, as a text that no other process has; None: it is gone."""
    try:
        if sys.platform != "linux":
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        state, ticks = fields[0], fields[19]  # of proc(5)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if state in "ZX" else f"{boot} {os.readlink('/proc/self/ns/pid')} {ticks}"
    except (OSError, psutil.Error):
        return None


def _duration(seconds: float) -> str:
    minutes = max(int(seconds // 60), 0)
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} days"
