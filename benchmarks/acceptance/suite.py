"""The project's own tests with the card in sight."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

from .context import ROOT, Context
from .machine import num_cores

_FILES = (
    *("tests/parity", "tests/objectives", "tests/backbones/test_modeling.py", "tests/backbones/test_forward_at.py"),
    *("tests/backbones/test_stochastic_depth.py", "tests/train/test_loop.py", "tests/train/test_health.py"),
    *("tests/data/test_photometric.py", "tests/features", "tests/evaluation/test_knn.py"),
    "tests/evaluation/test_linear.py",
)
_MARGIN = 15
"""Seconds before the section is cut, in which no further test starts."""


class Tally:
    """Counts tests as they end, and stops them in time to say what there was."""

    def __init__(self, context: Context) -> None:
        self.context, self.failed = context, []
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.failed or report.skipped:
            self.counts[report.outcome] += 1
            if report.failed:
                self.failed.append(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.context.left < _MARGIN:
            self.session.shouldstop = "the section's time is over"

    def pytest_sessionstart(self, session) -> None:
        self.session = session


def suite(context: Context) -> None:
    chosen = context.size(_FILES, ("tests/data/test_shared_memory.py",))
    missing = [name for name in chosen if not (ROOT / name).exists()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)}: not in this tree; name the tests that there are")
    options = ["-o", "addopts=--import-mode=importlib", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    with contextlib.suppress(ImportError):
        import xdist  # noqa: F401

        options += ["-n", str(min(num_cores(), 12))] if num_cores() > 2 else []
    os.chdir(ROOT)
    tally = Tally(context)
    with open(context.output / "tests.txt", "w") as file:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = pytest.main([*options, *chosen], plugins=[tally])
    sys.stdout.flush()
    for name in tally.failed[:40]:
        context.report("failed", test=name)
    counts = {f"tests_{outcome}": count for outcome, count in tally.counts.items()}
    all_ran = context.left >= _MARGIN
    context.report("tests", **counts, all_ran=all_ran, code=int(code), passed=not tally.failed and code != 2)
