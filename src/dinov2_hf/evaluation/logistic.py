"""Logistic regression on frozen features, its penalty chosen on held-out images (DINOv2, section 7.2).

Axes: `N` images, `D` width, `C` classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..config import SourceConfig
from ..config.evaluations import LogisticConfig, LogisticEvaluation
from .base import Evaluation, Result
from .datasets import LabeledImages
from .probes import LabeledFeatures, check_labels, figure, in_words, interval, kind_of
from .registry import register_evaluator

logger = logging.getLogger(__name__)

_HELD_OUT = 10  # one image in so many, where there is no validation set
_TOLERANCE = 1e-12  # of the gradient, as published; what ends a fit is the loss, or the number of iterations


@dataclass
class LogisticClassifier:
    """Scores `features @ weight + bias`, multinomial; or a binary regression for each class of several labels."""

    weight: Tensor
    """`[D, C]`, float64."""
    bias: Tensor
    """`[C]`, float64; -inf for a class that there was no image of."""
    converged: bool

    def __call__(self, features: Tensor) -> Tensor:
        """Class scores `[N, C]` of features `[N, D]`."""
        return features.double() @ self.weight + self.bias

    @classmethod
    def fit(
        cls, features: Tensor, labels: Tensor, num_classes: int, c: float, max_iterations: int = 1000
    ) -> LogisticClassifier:
        """Learns from features `[N, D]` as they are, in float64, and classes `[N]`, or flags `[N, C]`.

        Args:
            c: inverse strength of the L2 penalty, which the bias is free of.

        Raises:
            ImportError: scikit-learn is not installed.
            ValueError: one class alone.
        """
        inputs, truth = features.double().numpy(), labels.numpy()
        fitted = cls(
            torch.zeros(inputs.shape[1], num_classes, dtype=torch.float64),
            torch.full((num_classes,), -torch.inf, dtype=torch.float64),
            True,
        )
        if truth.ndim == 1:
            fitted._learn(inputs, truth, list(np.unique(truth)), c, max_iterations)
        for column in range(num_classes) if truth.ndim == 2 else ():
            flags = truth[:, column]
            if flags.all() or not flags.any():
                fitted.bias[column] = torch.inf if flags.all() else -torch.inf
            else:
                fitted._learn(inputs, flags, [column], c, max_iterations)
        return fitted

    def _learn(self, inputs: np.ndarray, truth: np.ndarray, columns: list[int], c: float, max_iterations: int) -> None:
        try:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise ImportError('logistic regression needs scikit-learn: pip install "dinov2_hf[evaluate]"') from None
        model = LogisticRegression(C=c, max_iter=max_iterations, tol=_TOLERANCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted below
            model.fit(inputs, truth)
        self.converged &= bool(model.n_iter_.max() < max_iterations)
        weight, bias = model.coef_, model.intercept_
        if len(weight) < len(columns):  # of two classes there is the second one's alone
            weight, bias = np.concatenate((-weight, weight)), np.concatenate((-bias, bias))
        self.weight[:, columns], self.bias[columns] = torch.from_numpy(weight.T), torch.from_numpy(bias)


@register_evaluator(
    "logistic",
    config=LogisticEvaluation,
    title="logistic regression",
    source="DINOv2 7.2",
    needs=("sklearn",),
)
def evaluate_logistic(evaluation: Evaluation) -> Iterator[Result]:
    """The figure of logistic regression on CLS. Collective.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: labels that a probe cannot learn from.
    """
    config: LogisticEvaluation = evaluation.config
    regression = logistic_regression(evaluation, config.train, config.validation, config.test, config.metric)
    title, note = f"logistic {in_words(regression.kind)} (%)", f"C = {regression.c:.3g}"
    yield Result(regression.kind, regression.value, title, regression.interval, kind=regression.kind, note=note)


@dataclass(frozen=True)
class Regression:
    """What was chosen and found."""

    kind: str
    c: float
    value: float
    interval: tuple[float, float]


def logistic_regression(
    evaluation: Evaluation,
    train_source: SourceConfig,
    validation_source: SourceConfig,
    test_source: SourceConfig,
    metric: str,
    name: str = "",
) -> Regression:
    """Chooses the penalty on the validation images, learns from these and `train`, and is asked about `test`.

    Without validation images a random tenth of `train` takes their place. Collective: the processes share the fits.

    Args:
        name: prefix of the keys of the sources in messages, such as `sets.pets.`.
    """
    config: LogisticConfig = evaluation.config
    train = evaluation.labeled(train_source, f"{name}train")
    test = evaluation.labeled(test_source, f"{name}test")
    kind = kind_of(metric, train.multi_label, train.where)
    check_labels(train, test)
    validation = None
    if validation_source.path:
        validation = evaluation.labeled(validation_source, f"{name}validation")
        check_labels(train, validation)
    learnt, asked = _features(evaluation, train, f"{name}train"), _features(evaluation, test, f"{name}test")
    if validation is None:
        learnt, held_out = _split(learnt, config.seed, train)
    else:
        held_out = _features(evaluation, validation, f"{name}validation")
    c = _choose(evaluation, learnt, held_out, len(train.names), kind)
    features, labels = (torch.cat(pair) for pair in zip(learnt, held_out))
    scores = LogisticClassifier.fit(features, labels, len(train.names), c, config.max_iterations)(asked[0])
    return Regression(kind, c, figure(scores, asked[1], kind), interval(scores, asked[1], kind))


LabeledCls = tuple[Tensor, Tensor]
"""CLS `[N, D]` and labels, on the CPU."""


def _features(evaluation: Evaluation, images: LabeledImages, name: str) -> LabeledCls:
    found = LabeledFeatures.of(evaluation, images, f"Features of {name}")
    return found.parts["cls"][:, -1].cpu(), found.labels


def _split(whole: LabeledCls, seed: int, images: LabeledImages) -> tuple[LabeledCls, LabeledCls]:
    """All but a random tenth, and the tenth.

    Raises:
        ValueError: too few images, or one class alone in what is left.
    """
    features, labels = whole
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    held_out, rest = order[: len(order) // _HELD_OUT], order[len(order) // _HELD_OUT :]
    if not len(held_out) or (labels.ndim == 1 and len(labels[rest].unique()) < 2):
        raise ValueError(
            f"{images.where} has {len(labels)} images, too few to hold out a tenth; give validation.path, and "
            "validation.split if it is a split of the same"
        )
    return (features[rest], labels[rest]), (features[held_out], labels[held_out])


def _choose(evaluation: Evaluation, learnt: LabeledCls, held_out: LabeledCls, num_classes: int, kind: str) -> float:
    """The inverse strength that is best on the images held out; of equal ones the smallest."""
    config, accelerator = evaluation.config, evaluation.accelerator
    candidates = sorted(config.c)
    mine = list(enumerate(candidates))[accelerator.process_index :: accelerator.num_processes]
    found = []
    for index, c in evaluation.progress(mine, "Logistic regression"):
        classifier = LogisticClassifier.fit(*learnt, num_classes, c, config.max_iterations)
        found.append((figure(classifier(held_out[0]), held_out[1], kind), -index, classifier.converged))
    found = gather_object(found)
    if early := sum(not converged for *_, converged in found):
        logger.info("%d of %d fits stopped at max_iterations=%d", early, len(found), config.max_iterations)
    return candidates[-max(found)[1]]
