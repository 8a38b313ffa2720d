"""Metrics as `evaluate.Metric` classes of our own: nothing is fetched."""

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
