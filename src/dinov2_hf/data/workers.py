"""Data workers: they outlive the signals of a job, and the one that ends is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess, parent_process
from typing import Any

from torch.utils.data import DataLoader

_CAN_WAIT = hasattr(signal, "sigwaitinfo")  # not on macOS
_ENDING = 2.0
"""Seconds within which a worker that broke its connection has ended."""
_BLOCKED = {signal.SIGINT, signal.SIGTERM} if _CAN_WAIT else {signal.SIGINT}
_CAUSES = {
    "SIGKILL": "most often the system did that because memory ran out: lower the batch size or the number of workers",
    "SIGBUS": "most often shared memory is full: give the container more (--shm-size), or lower the number of workers",
}


class WorkerLoader(DataLoader):
    """A `DataLoader` whose workers leave signals to their parent, and that says how a worker ended.

    Ctrl-C and the SIGTERM of a job reach the workers too, but their parent still needs them, until it has saved; it
    ends them itself. A worker that ends raises where its next item is read, not in the middle of other work.

    Raises:
        ChildProcessError: while iterating: a worker ended before its work, naming the signal or the status.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "worker_init_fn": _follow_parent})

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator over what torch returns
        if not self.num_workers or not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        if (self.multiprocessing_context or multiprocessing).get_start_method() != "fork":
            resource_tracker.ensure_running()  # which unblocks signals when it starts
        # blocked while the workers start, so that every thread of theirs has it so: one that lacks it is enough for a
        # signal to end the worker
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        on_child = signal.getsignal(signal.SIGCHLD)
        try:
            with _interrupted_later():
                batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threading.current_thread() is threading.main_thread() and on_child is not None:
            # torch's handler raises at any place of the main thread, such as the writing of a checkpoint
            ours = getattr(on_child, "__module__", "") != "torch.utils.data._utils.signal_handling"
            signal.signal(signal.SIGCHLD, on_child if ours else signal.SIG_DFL)
        return _naming_ends(batches)


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Lets Ctrl-C act after the block, as torch cannot clean up what it has made in part.

    Blocking it is not enough: another thread may take it for the main one.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def _naming_ends(batches: Any) -> Iterator[Any]:
    workers: list[BaseProcess] = batches._workers
    try:
        yield from batches
    except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
        of_torch = str(error).startswith("DataLoader worker")
        # the others come from the connection to a worker that is just ending, or are raised by a worker
        if "in DataLoader worker process" in str(error) or (isinstance(error, RuntimeError) and not of_torch):
            raise
        end = time.monotonic() + _ENDING
        while not (ended := [_describe_end(worker) for worker in workers if worker.exitcode]):
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
        raise ChildProcessError("; ".join(ended)) from None


def _describe_end(worker: BaseProcess) -> str:
    code = worker.exitcode or 0
    if code > 0:
        return f"the data worker {worker.pid} ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    cause = f"; {_CAUSES[name]}" if name in _CAUSES else ""
    return f"the data worker {worker.pid} was killed by {name}{cause}"


def _follow_parent(worker: int) -> None:
    """Lets a worker end by a SIGTERM of its parent only."""
    if hasattr(signal, "pthread_sigmask"):  # again, for the server of forks that something else has started
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    if _CAN_WAIT:
        parent = parent_process()
        assert parent is not None
        threading.Thread(target=_end_with_parent, args=(parent.pid,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
