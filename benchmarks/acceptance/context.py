"""What every section gets: its sizes, its folders, and the file that takes its numbers."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Context:
    """Of one section, in its process."""

    section: str
    output: Path
    """Takes `results.jsonl`, `log.txt` and what a section leaves to be read."""
    work: Path
    """Takes temporary files; sections share it."""
    tiny: bool
    published: Path | None
    """A tree of the published code."""
    limit: float
    """Seconds that this section may take."""
    started: float = field(default_factory=time.monotonic)

    def size(self, full: Value, tiny: Value) -> Value:
        """The first, or the second in a dry run."""
        return tiny if self.tiny else full

    @property
    def left(self) -> float:
        """Seconds until the section is cut."""
        return self.limit - (time.monotonic() - self.started)

    def report(self, table: str, **numbers) -> None:
        """Appends a row of a table of this section; it is on disk when this returns."""
        write_line(self.output, {"section": self.section, "table": table, **numbers})

    @contextlib.contextmanager
    def case(self, table: str, **names) -> Iterator[dict]:
        """A row that is reported at the end of the block, with its numbers or with the error that ended it."""
        row = dict(names)
        try:
            yield row
        except Exception as error:
            traceback.print_exc()
            row["error"] = first_line(error)
        self.report(table, **row)


def write_line(output: Path, line: dict) -> None:
    with open(output / "results.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def rounded(value: float, digits: int = 3) -> float:
    """A number with so many digits, for a table."""
    return float(f"{value:.{digits}g}")
