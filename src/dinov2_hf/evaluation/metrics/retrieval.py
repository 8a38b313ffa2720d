"""Metrics of rankings, in percent (Radenovic et al., 2018; Perronnin et al., 2009)."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


class RetrievalPrecision(evaluate.Metric):
    """Mean average precision and mean precision at `k` of rankings: `mean_average_precision`, `mean_precision_at_10`, …

    `RetrievalPrecision().compute(predictions=places, references=counts, k=[1, 5, 10])`: for every query the places of
    its relevant images in the ranking, from 0, junk images left out, and their number. Queries without a relevant image
    do not count; where there are no others, the figures are NaN.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Means over queries of average precision and of precision at k, in percent.",
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, k: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        rows = [
            (average_precision_of_places(places, count), *(precision_at(places, value) for value in k))
            for places, count in zip(predictions, references)
            if count
        ]
        means = 100 * np.mean(rows, axis=0) if rows else np.full(1 + len(k), np.nan)
        names = ["mean_average_precision", *(f"mean_precision_at_{value}" for value in k)]
        return {name: float(mean) for name, mean in zip(names, means)}


class GlobalAveragePrecision(evaluate.Metric):
    """Average precision of all answers in one list: GAP of Met, micro-AP of DISC (`global_average_precision`).

    `GlobalAveragePrecision().compute(predictions=confidences [N], references=correct [N], total=total)`, where `total`
    is how many answers could be correct.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean over all that could be found of the precision at the confidence they are found with.",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("bool")}
            ),
        )

    def _compute(self, predictions, references, total: int) -> dict[str, float]:
        return {
            "global_average_precision": 100
            * global_average_precision(np.asarray(predictions), np.asarray(references), total)
        }


def average_precision_of_places(places: Sequence[int] | np.ndarray, total: int) -> float:
    """Area under the precision-recall curve by trapezoids, in [0, 1], as the Oxford and Holidays protocols have it.

    Args:
        places: of the relevant images in the ranking, from 0; those that are missing are not found.
        total: how many relevant images there are; at least 1.
    """
    ranks = np.sort(np.asarray(places, dtype=float))
    found = np.arange(len(ranks))
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / 2 / total)


def precision_at(places: Sequence[int] | np.ndarray, k: int) -> float:
    """Share of relevant images among the first `k`, or up to the last relevant one where that comes before."""
    ranks = np.asarray(places)
    if not len(ranks):
        return 0.0
    return float((ranks < k).sum() / min(ranks.max() + 1, k))


def global_average_precision(confidences: np.ndarray, correct: np.ndarray, total: int) -> float:
    """Sum of the precisions at the correct answers `[N]`, most confident first, over `total`, in [0, 1].

    Equal confidences are one threshold: each counts as the last of them. NaN where nothing could be found.
    """
    if not total:
        return float("nan")
    order = np.argsort(-confidences, kind="stable")
    hits, ranked = np.cumsum(correct[order]), -confidences[order]
    last = np.searchsorted(ranked, ranked, side="right") - 1
    return float((hits[last] / (last + 1))[correct[order]].sum() / total)
