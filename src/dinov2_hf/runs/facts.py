"""What a model card says of a run: what the run wrote, and what the caller adds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from huggingface_hub import EvalResult

from ..config import RunConfig, hub_name, name_of_source
from .folder import RunFolder
from .metrics import terms_in


@dataclass
class RunFacts:
    """Facts for a model card; what is None or empty is not mentioned there."""

    updates: int | None = None
    """Made so far."""
    global_batch_size: int | None = None
    """Images per update, in all processes."""
    num_processes: int | None = None
    hardware: str | None = None
    """The device of a process, such as `NVIDIA H100 80GB HBM3`."""
    hours: float | None = None
    """Of training, without evaluation and checkpoints."""
    losses: dict[str, float] = field(default_factory=dict)
    """The last logged ones."""
    results: list[EvalResult] = field(default_factory=list)
    """Go to the card's metadata (`model-index`) and to its table of results."""
    license: str | None = None
    """The Hub's word for it, such as `apache-2.0`, or a name of your own."""
    base_model: str | None = None
    """Name on the Hub of the model that the run started from."""

    @classmethod
    def of_run(
        cls, run: RunFolder, config: RunConfig, student: str = "", until: int | None = None, **known: Any
    ) -> RunFacts:
        """Reads metrics and the newest state of a run, where they are there.

        Args:
            student: a further student of a distillation, whose losses and results these are then.
            until: updates after which the model was taken; default: all that were made.
            known: fields that are known better.
        """
        lines, state = run.read_metrics(until), run.read_state()
        facts = cls()
        facts.updates = max((line["step"] for line in lines), default=None)
        if state is not None:
            facts.global_batch_size = state.global_batch_size
            per_process = config.train.batch_size * config.train.gradient_accumulation_steps
            facts.num_processes = facts.global_batch_size // per_process or None
            facts.hours = _hours(lines, facts.global_batch_size)
        prefix = f"{student}." if student else ""
        logged: dict[str, Any] = next((line for line in reversed(lines) if "loss" in line), {})
        facts.losses = terms_in(logged, student)
        facts.results = _results(lines, config, f"{prefix}knn_accuracy")
        facts.base_model = hub_name(config.init.path)
        return replace(facts, **known)

    def results_table(self) -> dict[str, str]:
        """What was measured on what, and the figure, as text."""
        rows = {}
        for result in self.results:
            value, name = result.metric_value, result.metric_name or result.metric_type
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            if "(%)" in name:
                name, shown = name.replace(" (%)", ""), f"{value:.1f} %"
            split = f", {result.dataset_split}" if result.dataset_split else ""
            rows[f"{name}, {result.dataset_name}{split}"] = shown
        return rows


def _hours(lines: list[dict[str, Any]], global_batch_size: int) -> float | None:
    """From the rate between two lines and the images between them."""
    seconds, before = 0.0, 0
    for line in lines:
        rate = line.get("images_per_second")
        if rate is not None and rate > 0:
            seconds += (line["step"] - before) * global_batch_size / rate
            before = line["step"]
    return seconds / 3600 or None


def _results(lines: list[dict[str, Any]], config: RunConfig, metric: str) -> list[EvalResult]:
    accuracy = next((line[metric] for line in reversed(lines) if line.get(metric) is not None), None)
    if accuracy is None or not config.knn.enabled or not math.isfinite(accuracy):
        return []
    query = config.knn.query
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=hub_name(query.path) or "imagefolder",
            dataset_name=name_of_source(query),
            dataset_config=query.name,
            dataset_split=query.split,
            metric_type="accuracy",
            metric_name=f"k-NN accuracy (%), k = {config.knn.k}",
            metric_value=round(accuracy, 2),
        )
    ]
