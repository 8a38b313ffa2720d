"""Evaluations of the moving averages during a run: the sections `knn` and `evaluations` of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from accelerate import Accelerator
from torch import Tensor

from ..backbones import Features
from ..config import RunConfig, load_config
from ..config.evaluations import EvaluationConfig, KnnEvaluation
from ..data import evaluation_transform
from ..features import FeatureExtractor
from ..train import Callback, StudentFeatures
from .base import Evaluation, Result, open_labeled
from .datasets import LabeledImages, same_classes
from .registry import find_evaluator


def load_evaluations(config: RunConfig) -> dict[str, EvaluationConfig]:
    """Reads the configuration of every evaluation of the section `evaluations`, by its name there.

    Raises:
        ValueError, FileNotFoundError: an unknown evaluator, a file that cannot be read.
        ImportError: an evaluator needs an extra that is not installed.
    """
    found = {}
    for name, item in config.evaluations.items():
        evaluator = find_evaluator(item.protocol, f"evaluations.{name}.protocol")
        evaluator.check_installed()
        found[name] = load_config(item.config, kind=evaluator.config)
    return found


def evaluations_of(config: RunConfig, accelerator: Accelerator) -> list[Callback]:
    """Makes the callbacks that evaluate the moving averages of a run.

    Raises:
        ValueError, FileNotFoundError: a set, or the file of an evaluation, cannot be read.
    """
    found = []
    if config.knn.enabled:
        knn = config.knn
        settings = KnnEvaluation(
            train=knn.reference,
            test=knn.query,
            k=[knn.k],
            temperature=knn.temperature,
            resize_size=knn.resize_size,
            crop_size=knn.crop_size,
            batch_size=knn.batch_size,
            num_workers=config.data.num_workers,
        )
        sets: dict[str, LabeledImages] = {}
        references = open_labeled(knn.reference, sets, "knn.reference")
        same_classes(references, open_labeled(knn.query, sets, "knn.query"))  # before the run starts
        evaluate = find_evaluator("knn").evaluate
        measured = _callback(evaluate, settings, knn.epochs, "knn_accuracy", config, accelerator, sets)
        found.append(replace(measured, student=knn.student))
    for name, chosen in load_evaluations(config).items():
        item = config.evaluations[name]
        evaluate = find_evaluator(item.protocol).evaluate
        found.append(_callback(evaluate, chosen, item.epochs, f"{name}.{{metric}}", config, accelerator, {}))
    return found


def _callback(
    evaluate: Callable[[Evaluation], Iterator[Result]],
    settings: EvaluationConfig,
    epochs: float,
    name: str,
    config: RunConfig,
    accelerator: Accelerator,
    sets: dict[str, LabeledImages],
) -> Callback:
    """An evaluation of the averages, its metrics logged as `name` with their key in it; `sets` are open already."""
    transform = evaluation_transform(config)

    def measure(student: StudentFeatures) -> dict[str, float]:
        def features(images: Tensor, count: int, final_norm: bool = True) -> list[Features]:
            with accelerator.autocast():
                found = student(images, count, final_norm)
            return [Features(cls.float(), patches.float()) for cls, patches in found]

        shape = student.width, student.stride, student.num_layers
        backbone = FeatureExtractor(features, transform, *shape, accelerator.device, student.name or "teacher")
        evaluation = Evaluation(backbone, settings, accelerator, sets=sets)
        return {name.format(metric=result.metric): result.value for result in evaluate(evaluation)}

    return Callback(epochs, measure)
