"""What probes share: features with their labels, the figure of class scores, and what makes labels useless.

Axes: `N` images, `C` classes, `L` blocks, `D` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from .base import Evaluation
from .datasets import Labeled, LabeledImages, same_classes
from .intervals import bootstrap, wilson
from .metrics import Accuracy, MeanAveragePrecision, MeanPerClassAccuracy, average_precision

_SHOWN = 5  # classes that a message names


@dataclass
class LabeledFeatures:
    """Features of the readable images of a set, on the device, and their labels."""

    parts: dict[str, Tensor]
    """As of `FeatureSet`, `[N, L, D]` each."""
    labels: Tensor
    """Classes `[N]`, or flags `[N, C]` where an image has several, on the CPU."""

    @classmethod
    def of(cls, evaluation: Evaluation, images: LabeledImages, description: str, **options) -> LabeledFeatures:
        """Extracts them. Collective.

        Raises:
            ValueError: no image can be decoded.
        """
        found = evaluation.features(images, description=description, **options)
        if not len(found):
            raise ValueError(f"no image of {images.where} can be decoded; see the log for what is wrong with them")
        return cls(found.parts, torch.from_numpy(images.labels)[found.index.cpu()])


def kind_of(metric: str, multi_label: bool, where: str) -> str:
    """The figure that `metric` asks for; `auto` goes by the labels.

    Raises:
        ValueError: a figure that the labels have not.
    """
    if metric == "auto":
        return "mean_average_precision" if multi_label else "accuracy"
    if multi_label != (metric == "mean_average_precision"):
        labels, use = ("several labels", "mean_average_precision") if multi_label else ("one label", "accuracy")
        raise ValueError(f"metric={metric} does not fit {where}, whose images have {labels} each; use {use} or auto")
    return metric


def check_labels(train: Labeled, test: Labeled) -> None:
    """Refuses labels that a probe cannot learn from, or be judged by.

    Raises:
        ValueError: other classes in the one than in the other, one class alone, or classes in the test set that no
            image is there to learn from.
    """
    same_classes(train, test)
    seen, asked = _present(train), _present(test)
    if train.multi_label:
        if not asked.any():
            raise ValueError(f"no image of {test.where} has a label; there is nothing to be right about")
    elif seen.sum() < 2:
        only = train.names[int(seen.argmax())]
        raise ValueError(f"all images of {train.where} are of the class {only}; a probe needs two classes or more")
    if len(unseen := np.flatnonzero(asked & ~seen)):
        shown = ", ".join(train.names[index] for index in unseen[:_SHOWN]) + (", …" if len(unseen) > _SHOWN else "")
        raise ValueError(
            f"{test.where} has images of classes that {train.where} has none of: {shown}; "
            "give images to learn them from, or leave them out"
        )


def figure(scores: Tensor, truth: Tensor, kind: str) -> float:
    """The figure `kind` of class scores `[N, C]` against classes `[N]`, or flags `[N, C]`, in percent."""
    scores = scores.cpu()
    if kind == "mean_average_precision":
        values = MeanAveragePrecision().compute(predictions=scores.double().numpy(), references=truth.numpy())
    else:
        metric = Accuracy() if kind == "accuracy" else MeanPerClassAccuracy()
        values = metric.compute(predictions=scores.argmax(dim=1), references=truth)
    return values[kind]


def interval(scores: Tensor, truth: Tensor, kind: str) -> tuple[float, float]:
    """The 95 % confidence interval of `figure` over the images of the test set."""
    scores = scores.cpu()
    if kind == "mean_average_precision":
        pairs = np.stack([scores.double().numpy(), truth.numpy().astype(float)], axis=1)
        return bootstrap(lambda rows: _mean_average_precision(rows[:, 0], rows[:, 1] > 0), pairs, resamples=200)
    correct = scores.argmax(dim=1) == truth
    if kind == "accuracy":
        return wilson(int(correct.sum()), len(correct))
    return bootstrap(_mean_per_class, torch.stack([truth, correct.long()], dim=1).numpy())


def in_words(kind: str) -> str:
    return kind.replace("_", " ")


def _present(images: Labeled) -> np.ndarray:
    """Which of the classes have an image."""
    if images.multi_label:
        return cast(np.ndarray, images.labels.any(axis=0))
    return np.bincount(images.labels, minlength=len(images.names)) > 0


def _mean_per_class(rows: np.ndarray) -> float:
    images = np.bincount(rows[:, 0])
    correct = np.bincount(rows[:, 0], weights=rows[:, 1])
    return 100 * float(np.mean(correct[images > 0] / images[images > 0]))


def _mean_average_precision(scores: np.ndarray, flags: np.ndarray) -> float:
    found = [average_precision(scores[:, c], flags[:, c]) for c in range(flags.shape[1]) if flags[:, c].any()]
    return 100 * float(np.mean(found)) if found else float("nan")
