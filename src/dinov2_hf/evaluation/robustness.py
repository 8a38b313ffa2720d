"""Robustness of frozen features: corrupted images (Hendrycks and Dietterich, 2019) and shifted sets (DINOv2, 7.1).

Logistic regression learns from clean features and is asked about others: nothing is adapted.

Axes: `N` images.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from torch import Tensor

from ..config.evaluations import RobustnessEvaluation
from ..data import EvalTransform
from ..data.transform import Size
from ..features import FeatureSet
from ..files import beside
from .base import Evaluation, Result
from .corruptions import corrupt
from .datasets import LabeledImages
from .intervals import bootstrap, wilson
from .logistic import LogisticClassifier
from .registry import register_evaluator


@dataclass(frozen=True)
class CorruptedTransform:
    """A transform whose crops are corrupted before they are normalised, each image by itself."""

    transform: EvalTransform
    name: str
    severity: int
    seed: int

    @property
    def mean(self) -> Sequence[float]:
        return self.transform.mean

    @property
    def size(self) -> Size:
        return self.transform.size

    def pixels(self, data: bytes) -> np.ndarray:
        """As those of `transform`, corrupted. What is random in it follows from the bytes of the image."""
        image = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        return corrupt(self.transform.pixels(data), self.name, self.severity, self.seed, image)

    def normalize(self, pixels: Tensor) -> Tensor:
        return self.transform.normalize(pixels)


@register_evaluator(
    "robustness",
    config=RobustnessEvaluation,
    title="corrupted images and shifted sets",
    source="ImageNet-C, DINOv2 7.1",
    needs=("scipy", "sklearn"),
)
def evaluate_robustness(evaluation: Evaluation) -> Iterator[Result]:
    """Accuracy on clean, corrupted and shifted images, and the mean corruption error. Collective.

    With an output folder, `corruptions.csv` there has the accuracy of every severity.

    Raises:
        ImportError: scikit-learn or scipy is not installed.
        ValueError: images with several labels, classes that `train` lacks, no image that can be decoded.
    """
    config: RobustnessEvaluation = evaluation.config
    learnt = evaluation.labeled(config.train, "train")
    test = _Asked(learnt, evaluation.labeled(config.test, "test"))
    shifted = {
        name: _Asked(learnt, evaluation.labeled(source, f"shifted.{name}")) for name, source in config.shifted.items()
    }
    classifier = _classifier(evaluation, learnt)

    clean = evaluation.features(test.images, description="Clean images")
    yield _accuracy(test.correct(classifier, clean), "accuracy", "accuracy (%), clean images")

    errors: dict[str, Any] = {}  # corruption to the mean over severities for each image, in percent
    table = []
    work = list(product(config.corruptions, config.severities))
    for name, severity in evaluation.progress(work, "Corruptions"):
        transform = CorruptedTransform(evaluation.transform, name, severity, config.seed)
        found = evaluation.features(test.images, transform=transform, description=f"{name} {severity}")
        correct = test.correct(classifier, found)
        errors[name] = errors.get(name, 0) + 100.0 * ~correct / len(config.severities)
        table.append((name, severity, 100 * correct.mean()))
        if severity == config.severities[-1]:
            title = f"accuracy (%), {name.replace('_', ' ')}, {_severities(config)}"
            ends = bootstrap(np.mean, 100 - errors[name], config.seed)
            yield Result(f"accuracy_{name}", float(100 - errors[name].mean()), title, ends, kind="accuracy")
    if errors:
        yield _mean_error(errors, config)
    if table and evaluation.output and evaluation.is_main:
        with beside(evaluation.output / "corruptions.csv") as path, path.open("w", newline="") as file:
            csv.writer(file).writerows([("corruption", "severity", "accuracy"), *table])

    for name, asked in shifted.items():
        correct = asked.correct(classifier, evaluation.features(asked.images, description=name))
        title = "accuracy (%), shifted images"
        if len(asked.columns) < len(learnt.names):
            title += f" of {len(asked.columns)} of the {len(learnt.names)} classes"
        yield _accuracy(correct, f"accuracy_on_{name}", title, name)


class _Asked:
    """A test set whose classes are some of those that were learnt.

    Raises:
        ValueError: several labels an image, or a class that was not learnt.
    """

    def __init__(self, learnt: LabeledImages, images: LabeledImages) -> None:
        for one in (learnt, images):
            if one.multi_label:
                raise ValueError(f"{one.where} has lists of labels; robustness is measured with one class an image")
        places = {name: place for place, name in enumerate(learnt.names)}
        unknown = [images.names[label] for label in np.unique(images.labels) if images.names[label] not in places]
        if unknown:
            raise ValueError(
                f"{images.where} has classes that {learnt.where} lacks: {', '.join(unknown[:10])}"
                f"{', …' if len(unknown) > 10 else ''}; classes are matched by their names"
            )
        self.images = images
        known = [name for name in images.names if name in places]
        self.columns = [places[name] for name in known]
        rows = {name: row for row, name in enumerate(known)}
        self._truth = torch.tensor([rows.get(name, -1) for name in images.names])[torch.from_numpy(images.labels)]

    def correct(self, classifier: LogisticClassifier, features: FeatureSet) -> np.ndarray:
        """Whether each readable image is given its class out of those of this set, `[N]`."""
        if not len(features):
            raise ValueError(f"no image of {self.images.where} can be decoded")
        scores = classifier(features.parts["cls"][:, -1])[:, self.columns]
        return (scores.argmax(dim=1).cpu() == self._truth[features.index.cpu()]).numpy()


def _classifier(evaluation: Evaluation, images: LabeledImages) -> LogisticClassifier:
    """Learnt by the main process for all. Collective."""
    found = evaluation.features(images, description="Training images")
    if not len(found):
        raise ValueError(f"no image of {images.where} can be decoded")
    features, num_classes = found.parts["cls"][:, -1], len(images.names)
    if evaluation.is_main:
        labels = torch.from_numpy(images.labels)[found.index.cpu()]
        fitted = LogisticClassifier.fit(features.cpu(), labels, num_classes, evaluation.config.c)
        weight, bias = fitted.weight.to(features.device), fitted.bias.to(features.device)
    else:
        weight = features.new_zeros((features.shape[1], num_classes), dtype=torch.float64)
        bias = features.new_zeros(num_classes, dtype=torch.float64)
    return LogisticClassifier(broadcast(weight), broadcast(bias), True)


def _accuracy(correct: np.ndarray, metric: str, title: str, dataset: str | None = None) -> Result:
    ends = wilson(int(correct.sum()), len(correct))
    return Result(metric, 100 * float(correct.mean()), title, ends, dataset, "accuracy")


def _mean_error(errors: dict[str, np.ndarray], config: RobustnessEvaluation) -> Result:
    """Mean over corruptions, in percent of the baseline's error where there is one."""
    relative = [error * (100 / config.baseline[name] if config.baseline else 1) for name, error in errors.items()]
    images = np.mean(relative, axis=0)
    title = "mean corruption error (%), " + ("of the baseline's" if config.baseline else "not normalised")
    title += f", {len(errors)} corruptions, {_severities(config)}"
    return Result("mean_corruption_error", float(images.mean()), title, bootstrap(np.mean, images, config.seed))


def _severities(config: RobustnessEvaluation) -> str:
    return f"severity {', '.join(map(str, config.severities))}"
