"""How many pixels of large images the processes on a machine decode at the same time.

The budget is divided into slots. A slot is a byte of a file in the folder for temporary files, and a process holds it
with a lock of the operating system: it works with fork, spawn and forkserver, between the workers of several training
processes, and ends with the process that holds it.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import fcntl
except ImportError:  # on Windows there is no limit
    fcntl = None  # type: ignore[assignment]

SMALL = 4_000_000
"""Pixels of an image that needs no slot."""
_SLOTS = 64
_QUEUE = _SLOTS  # the byte that a process holds while it waits for slots

_file: int | None = None
_holding = False


@contextmanager
def reserve(pixels: int, budget: int) -> Iterator[None]:
    """Waits until `pixels` fit into what is left of the budget, and holds them.

    An image larger than the budget waits for the whole of it. A process that holds pixels already does not wait.

    Args:
        budget: pixels of all processes of this user on the machine, the same in each of them.
    """
    global _holding
    if pixels <= SMALL or fcntl is None or _holding or (file := _open()) is None:
        yield
        return
    count = min(math.ceil(pixels / budget * _SLOTS), _SLOTS)
    slots: list[int] = []
    _holding = True
    try:
        try:
            _take(file, count, slots)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        for slot in slots:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, slot)
        _holding = False


def _take(file: int, count: int, slots: list[int]) -> None:
    """Waits for `count` slots and adds them to `slots`.

    One process waits at a time, and those that hold slots wait for nothing, so that there is no deadlock.
    """
    with _locked(file, _QUEUE):
        for slot in range(_SLOTS):
            if len(slots) < count and _try_lock(file, slot):
                slots.append(slot)
        for slot in sorted(set(range(_SLOTS)) - set(slots))[: count - len(slots)]:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, slot)
            slots.append(slot)


@contextmanager
def _locked(file: int, byte: int) -> Iterator[None]:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)


def _try_lock(file: int, byte: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):  # either, depending on the system
        return False
    return True


def _open() -> int | None:
    """The file of the slots; None where it cannot be had, and then there is no limit."""
    global _file
    if _file is None:
        path = os.path.join(tempfile.gettempdir(), f"dinov2_hf-pixels-{os.getuid()}")
        try:
            _file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except OSError:
            return None
    return _file


def _forget() -> None:
    global _holding
    _holding = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # locks are not inherited
