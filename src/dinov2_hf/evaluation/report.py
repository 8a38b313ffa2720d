"""The results of an evaluation, as JSON and as a table; `hub.results` makes metadata of the JSON."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from ..data.broken import Broken, recording, unique, write_broken
from ..files import beside
from .base import Evaluation, Result
from .registry import Evaluator

RESULTS_FILE = "results.json"


@dataclass
class Report:
    """What an evaluation found, and what has to be known to repeat it."""

    protocol: str
    """Name of the evaluator."""
    model: str
    settings: dict[str, Any]
    """Every key of its configuration."""
    results: list[Result]
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)
    """What was left out because it cannot be decoded."""
    task: str = "image-classification"
    """The Hub's word for what was evaluated."""

    @property
    def metrics(self) -> dict[str, float]:
        """The values by the keys of their metrics, of another set than the test set as `DATASET/KEY`."""
        return {"/".join(filter(None, (result.dataset, result.metric))): result.value for result in self.results}

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return self.table()

    def table(self) -> str:
        """Returns the results as Markdown, a row for each."""
        rows = [("", self.model, "95 %")]
        for result in self.results:
            interval = "" if result.interval is None else " to ".join(f"{end:.4g}" for end in result.interval)
            title = ", ".join(filter(None, (result.title, result.dataset, result.note)))
            rows.append((title, f"{result.value:.4g}", interval))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = []
        for first, *others in rows:
            cells = [first.ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(others, widths[1:])]
            lines.append("| " + " | ".join(cells) + " |")
        rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
        lines.insert(1, "| " + " | ".join(rule) + " |")
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Leaves `results.json`, `results.md` and, where anything was broken, `broken.txt`.

        Raises:
            OSError: the folder cannot be written.
        """
        content = asdict(self) | {"broken": len(self.broken)}
        with beside(folder / RESULTS_FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
        write_broken(folder, self.broken)
        with beside(folder / "results.md") as temporary:
            temporary.write_text(f"# {self.protocol}: {self.model}\n\n{self.table()}\n")


def run_evaluator(evaluator: Evaluator, evaluation: Evaluation) -> Report:
    """Runs an evaluator to its end. Collective."""
    started, results = time.perf_counter(), []
    with recording() as broken:
        for result in evaluator.evaluate(evaluation):
            results.append(result)
    versions = {package: version(package) for package in ("dinov2_hf", "torch", "transformers", "datasets")}
    return Report(
        evaluator.name,
        evaluation.backbone.name,
        asdict(evaluation.config),
        results,
        round(time.perf_counter() - started, 1),
        {"python": platform.python_version()} | versions,
        unique(gather_object(broken)),
        evaluator.task,
    )
