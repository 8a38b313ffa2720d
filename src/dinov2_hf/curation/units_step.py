"""The step that datatrove's executors run: some units of a stage, as many as a task has."""

from __future__ import annotations

import os
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from tqdm.auto import tqdm

from .stage import Stage

COUNT = "count"
"""The step after all others, that leaves the counts."""


class UnitsStep(PipelineStep):
    """Does the units `rank`, `rank + world_size`, … of a step that are not done yet.

    Args:
        quiet: whether datatrove says nothing on the terminal; errors are raised all the same.
        threads: that faiss may use; 0 for all.
    """

    type = "curation"

    def __init__(self, stage: Stage, step: str, quiet: bool = False, threads: int = 0) -> None:
        self.name = f"{stage.name} {step}"
        super().__init__()
        self.stage, self.step, self.quiet, self.threads = stage, step, quiet, threads
        self._hush()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._hush()

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        if self.step == COUNT:
            self.stage.finish()
            return
        if self.threads:
            import faiss

            faiss.omp_set_num_threads(self.threads)
        mine = range(rank, self.stage.steps()[self.step], world_size)
        for unit in tqdm(mine, self.name, leave=False, disable=None if rank == 0 else True):
            with self.track_time("unit"):
                self.stage.complete(self.step, unit)
            self.stat_update("units")

    def _hush(self) -> None:
        if self.quiet:
            logger.disable("datatrove")


def threads_of(workers: int) -> int:
    """Threads for each of so many processes side by side; 0 where there is one alone."""
    return 0 if workers == 1 else max((os.cpu_count() or 1) // workers, 1)
