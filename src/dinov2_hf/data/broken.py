"""What cannot be read: how it is named, counted and written to a list."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..files import beside

FILE_NAME = "broken.txt"


class Broken(NamedTuple):
    """Something of a source that cannot be read."""

    kind: str
    """`image`, or a larger part of a source, such as `shard`."""
    name: str
    """How a person finds it: a path, or the row in its source."""
    reason: str

    def __str__(self) -> str:
        return f"{one_line(self.name)}: {one_line(self.reason)}"

    @property
    def line(self) -> str:
        """Kind, name and reason, separated by tabs."""
        return "\t".join(map(one_line, self)) + "\n"


def one_line(text: str) -> str:
    """`text` with control characters, backslashes and bytes that are not UTF-8 escaped as in a Python string."""
    return "".join(
        char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode() for char in text
    )


def write_broken(folder: Path, items: Iterable[Broken]) -> Path:
    """Writes `broken.txt` in `folder`, a line an item; replaces the file there."""
    path = folder / FILE_NAME
    with beside(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(item.line for item in items)
    return path
