"""What cannot be read: how it is named, counted and written to a list."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..files import beside
from .paths import shown

logger = logging.getLogger(__name__)

FILE_NAME = "broken.txt"
TRUNCATED = "truncated"
"""Kind of images that lack their last bytes and were read all the same (`data.truncated_jpegs`)."""
_RECORD = "DINOV2_HF_BROKEN_RECORD"
"""Variable with the file of `recording`."""


class Broken(NamedTuple):
    """Something of a source that cannot be read."""

    kind: str
    """`image`, a larger part of a source such as `shard`, a part of a video, or `TRUNCATED`."""
    name: str
    """How a person finds it: a path, or the row in its source."""
    reason: str

    def __str__(self) -> str:
        return f"{shown(self.name)}: {shown(self.reason)}"

    @classmethod
    def of_truncated(cls, name: str) -> Broken:
        """An image that was read though it lacks its last bytes."""
        return cls(TRUNCATED, name, "lacks its last bytes and was read all the same")

    @property
    def message(self) -> str:
        """What a log says."""
        return f"truncated image: {self}" if self.kind == TRUNCATED else f"skipped a broken {self.kind}: {self}"

    @property
    def metric(self) -> str:
        """The number of its kind in `metrics.jsonl`."""
        return f"{TRUNCATED}_images" if self.kind == TRUNCATED else f"broken_{self.kind}s"

    @property
    def line(self) -> str:
        """Kind, name and reason, separated by tabs."""
        return "\t".join(map(shown, self)) + "\n"


def write_broken(folder: Path, items: Sequence[Broken]) -> Path | None:
    """Writes `broken.txt` in `folder`, a line an item, and returns its path; without items, removes the file there."""
    path = folder / FILE_NAME
    if not items:
        path.unlink(missing_ok=True)
        return None
    with beside(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(item.line for item in items)
    return path


def leave_out(kind: str, name: str, reason: object) -> None:
    """Names something that an evaluation leaves out because it cannot be decoded, in the log and for `recording`."""
    item = Broken(kind, name, str(reason))
    article = "an" if kind[0] in "aeiou" else "a"
    logger.warning("left out %s %s that cannot be decoded: %s", article, kind, item)
    if path := os.environ.get(_RECORD):
        with open(path, "a") as file:  # data workers append, too; a line is one write
            file.write(json.dumps(item) + "\n")


@contextmanager
def recording() -> Iterator[list[Broken]]:
    """Yields a list which at the end of the block has what was left out within, each item once, by kind and name.

    By this process and by the data workers that it starts within, which find the file to write to in the environment.
    """
    found: list[Broken] = []
    before = os.environ.get(_RECORD)
    with tempfile.TemporaryDirectory() as folder:
        path = os.environ[_RECORD] = os.path.join(folder, "broken.jsonl")
        try:
            yield found
        finally:
            os.environ.pop(_RECORD)
            if before is not None:
                os.environ[_RECORD] = before
            if os.path.exists(path):
                with open(path) as file:
                    found += unique(Broken(*json.loads(line)) for line in file)


def unique(items: Iterable[Broken]) -> list[Broken]:
    """The first item of each kind and name, by kind and name."""
    found: dict[tuple[str, str], Broken] = {}
    for item in items:
        found.setdefault((item.kind, item.name), item)
    return [found[key] for key in sorted(found)]
