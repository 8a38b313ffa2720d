"""Processes of the acceptance: forks of one that has imported everything and computed nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch


def start(work: Callable, *arguments, log: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """Calls `work(*arguments)` in a new process, which appends what it prints to `log`; an exception gives status 1."""
    # a fork of a process that has used the GPU cannot use it
    context = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
    process = context.Process(target=_run, args=(work, arguments, str(log), environment or {}))
    process.start()
    return process


def wait(processes: list[BaseProcess], seconds: float) -> list[int | None]:
    """Exit codes; None where a process was killed, after so many seconds or because another one failed."""
    deadline = time.monotonic() + seconds
    while any(process.is_alive() for process in processes):
        failed = any(process.exitcode for process in processes)
        if failed and deadline > time.monotonic() + 5:
            deadline = time.monotonic() + 5  # the others may wait for it for ever
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def lead_group() -> None:
    """Makes this process and those that it will start a group, which `end_group` ends."""
    os.setpgid(0, 0)


def end_group(leader: BaseProcess) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)


def group_environment(processes: int) -> list[dict[str, str]]:
    """For each of several processes what `torch.distributed` reads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    groups = [same | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
    return [{name: str(value) for name, value in group.items()} for group in groups]


def _run(work: Callable, arguments: tuple, log: str, environment: dict[str, str]) -> None:
    sys.stdout = sys.stderr = file = open(log, "a", buffering=1)
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    os.environ |= environment
    code = 0
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    file.flush()
    os._exit(code)  # modules are not taken apart, and nothing waits for threads
