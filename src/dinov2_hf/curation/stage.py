"""A stage of curation: steps of independent units, and what tells whether its result still stands.

Every unit (a shard, mostly) writes its files beside and renames them, and then leaves a mark. A run that was killed
does the units again that have no mark, whatever the number of tasks was and is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.curation import CurationConfig
from .collections import Collection, Shard
from .tables import Vectors, read_json, write_json


@dataclass(frozen=True)
class Context:
    """What all stages share."""

    config: CurationConfig
    collections: dict[str, Collection]

    @property
    def output(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def pool(self) -> list[Shard]:
        return self.collections["pool"].shards


class Stage(ABC):
    """One stage. Subclasses are pickled to the tasks that run their units.

    Args:
        name: of its folder.
        after: the stages that it reads.
    """

    embeds = False
    """Whether its units want an accelerator."""

    def __init__(self, name: str, context: Context, after: Sequence[Stage] = ()) -> None:
        self.name, self.context, self.after = name, context, list(after)
        self.folder = context.output / "stages" / name

    def __repr__(self) -> str:
        return f"stage {self.name}"

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What its result depends on, beside the stages before."""

    @abstractmethod
    def steps(self) -> dict[str, int]:
        """Its steps in order, and into how many units each is divided."""

    @abstractmethod
    def do(self, step: str, unit: int) -> None:
        """Does one unit; the same files whoever does it."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Counts, when all units are done.

        Raises:
            ValueError: nothing is left to go on with.
        """

    @property
    def outside(self) -> list[Path]:
        """Folders of its own that are not in `folder`."""
        return []

    @property
    def digest(self) -> str:
        """Of its settings and those of all stages before."""
        content = [self.name, self.settings, [stage.digest for stage in self.after]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def part(self, number: int) -> Path:
        """The table of a shard of the pool: the images that are left after this stage."""
        return self.folder / "parts" / f"{number:05d}.parquet"

    def prepare(self) -> bool:
        """Removes what other settings left; whether there was anything."""
        started, stale = self.folder / "settings.json", False
        if self.folder.is_dir() and (not started.is_file() or read_json(started)["digest"] != self.digest):
            stale = started.is_file()
            for folder in (self.folder, *self.outside):
                shutil.rmtree(folder, ignore_errors=True)
        if not started.is_file():
            write_json(started, {"digest": self.digest, "settings": self.settings})
        return stale

    def finish(self) -> dict[str, Any]:
        """Leaves the counts, by which the stage is complete."""
        counts = self.summary()
        write_json(self.folder / "counts.json", {"digest": self.digest, "counts": counts})
        return counts

    @property
    def counts(self) -> dict[str, Any] | None:
        """Of the complete stage; None where it is not complete, or was made with other settings."""
        path = self.folder / "counts.json"
        content = read_json(path) if path.is_file() else None
        return content["counts"] if content and content["digest"] == self.digest else None

    def mark(self, step: str, unit: int) -> Path:
        """The file that says that a unit is done."""
        return self.folder / "done" / f"{step}-{unit:05d}"

    def complete(self, step: str, unit: int) -> None:
        """Does a unit that is not done."""
        mark = self.mark(step, unit)
        if not mark.is_file():
            self.do(step, unit)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def vectors_of(embedded: Stage, kept: Stage | None = None) -> Vectors:
    """The vectors of a collection: all, or those of the images that `kept` left."""
    files = [embedded.part(number) for number in range(embedded.steps()["embed"])]
    return Vectors([(file, file if kept is None else kept.part(number)) for number, file in enumerate(files)])
