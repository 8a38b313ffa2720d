"""Signals that stop a run: Ctrl-C (SIGINT) and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_FIRST = b"\nCtrl-C: the run saves after this update and ends; press Ctrl-C again to end at once, without saving\n"


class StopSignals:
    """Notes the first Ctrl-C or SIGTERM while `watching`, so that the run can save before it ends.

    Args:
        speaks: whether this process says that Ctrl-C was noted.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.received: signal.Signals | None = None
        self._speaks = speaks
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes signals in the block, in the main thread; in others does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in NAMES:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job that `nohup` or `&` of a script started
                self._before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number in list(self._before):
                self._restore(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        if number != signal.SIGINT:
            return
        self._restore(signal.SIGINT)  # the second one ends the process
        if "TORCHELASTIC_RUN_ID" in os.environ:
            self._restore(signal.SIGTERM)  # which torchrun sends at the second Ctrl-C
        if self._speaks:
            os.write(2, _FIRST)  # print may be what was interrupted

    def _restore(self, number: signal.Signals) -> None:
        before: Callable[..., Any] | int | None = self._before.pop(number, None)
        if before is not None:
            signal.signal(number, before)
