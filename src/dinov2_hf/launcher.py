"""The launcher that started this process: what ends it ends this process too."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

_PROGRAMS = {"accelerate", "accelerate-launch", "torchrun"}
_MODULES = {"accelerate.commands.launch", "accelerate.commands.accelerate_cli", "torch.distributed.run"}
_EVERY = 0.5  # seconds
_watching = False


def follow_launcher() -> None:
    """Makes the end of `accelerate launch` or `torchrun` a SIGTERM to this process, which they started.

    A launcher that is killed leaves what it started running: `accelerate launch` of one process at SIGTERM and Ctrl-C
    too, as it passes neither on. Does nothing where something else started this process.
    """
    global _watching
    parent = os.getppid()
    if not _watching and is_launcher(_words_of(parent)):
        _watching = True
        threading.Thread(target=_end_with, args=(parent,), name="launcher", daemon=True).start()


def is_launcher(words: list[str]) -> bool:
    """Whether a command line is that of a launcher: `python …/bin/accelerate launch …`, `python -m torch.…run …`."""
    if "-m" in words[1:3]:
        return words[words.index("-m") + 1] in _MODULES
    return any(Path(word).name.removesuffix(".exe") in _PROGRAMS for word in words[:2])


def _words_of(process: int) -> list[str]:
    import psutil

    try:
        return psutil.Process(process).cmdline()
    except psutil.Error:
        return []


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
