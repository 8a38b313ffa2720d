"""Metrics of classification, in percent."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    """Share of correct predictions in percent: `Accuracy().compute(predictions=…, references=…)["accuracy"]`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of predictions that equal their reference, in percent.",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": 100.0 * float(np.mean(np.asarray(predictions) == np.asarray(references)))}


class MeanPerClassAccuracy(evaluate.Metric):
    """Mean over classes of the share of their images that is correct, in percent; absent classes do not count."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean over the classes of the references of the share that is predicted right, in percent.",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        references = np.asarray(references)
        correct = np.asarray(predictions) == references
        shares = [correct[references == label].mean() for label in np.unique(references)]
        return {"mean_per_class_accuracy": 100.0 * float(np.mean(shares))}


class MeanAveragePrecision(evaluate.Metric):
    """Average precision of each class over images with several labels, averaged over the classes, in percent.

    `MeanAveragePrecision().compute(predictions=scores [N, C], references=flags [N, C])["mean_average_precision"]`. The
    average precision is the mean of the precision at each positive; images of equal scores count at their common
    threshold. Classes without a positive do not count.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean over classes of the average precision of their scores, in percent.",
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("bool")),
                }
            ),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        scores, flags = np.asarray(predictions, dtype=float), np.asarray(references, dtype=bool)
        precisions = [average_precision(scores[:, c], flags[:, c]) for c in range(flags.shape[1]) if flags[:, c].any()]
        return {"mean_average_precision": 100.0 * float(np.mean(precisions))}


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over the relevant of the precision at their score, in [0, 1]; `scores` and `relevant` are `[N]`."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(relevant[order])
    # equal scores are one threshold: each counts as the last of them
    last = np.searchsorted(-scores[order], -scores[order], side="right") - 1
    precision = hits[last] / (last + 1)
    return float(precision[relevant[order]].mean())
