"""Logistic regression on several sets, and the mean of their figures (DINOv2, section 7.2, table 8)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from ..config.evaluations import FineGrainedEvaluation
from .base import Evaluation, Result
from .logistic import logistic_regression
from .probes import in_words
from .registry import register_evaluator


@register_evaluator(
    "fine_grained",
    config=FineGrainedEvaluation,
    title="logistic regression on several sets",
    source="DINOv2 7.2, table 8",
    needs=("sklearn",),
)
def evaluate_fine_grained(evaluation: Evaluation) -> Iterator[Result]:
    """The figure of each set, then their mean. Collective.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: labels of a set that a probe cannot learn from.
    """
    config: FineGrainedEvaluation = evaluation.config
    results = []
    for name, each in config.sets.items():
        test = each.test if each.test.path else replace(each.test, path=each.train.path, name=each.train.name)
        found = logistic_regression(evaluation, each.train, each.validation, test, each.metric, f"sets.{name}.")
        title, note = f"logistic {in_words(found.kind)} (%)", f"C = {found.c:.3g}"
        results.append(Result(f"{found.kind}_{name}", found.value, title, found.interval, name, found.kind, note))
        yield results[-1]
    mean = sum(result.value for result in results) / len(results)
    # the sets are independent of each other, so the squares of the distances to the ends add up
    ends = [(result.value, cast(tuple[float, float], result.interval)) for result in results]
    below, above = (math.hypot(*(value - interval[end] for value, interval in ends)) / len(results) for end in (0, 1))
    title = f"mean over {len(results)} set{'s' * (len(results) > 1)} (%)"
    yield Result(
        "mean", mean, title, (max(mean - below, 0.0), min(mean + above, 100.0)), dataset="all sets", kind="mean"
    )
