"""Evaluation of a backbone in one call."""

from __future__ import annotations

import logging
import os
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from ..config import TrainConfig, images_of
from ..config.evaluations import EvaluationConfig
from ..data.sources import holding, is_held
from ..evaluation import Evaluation, Evaluator, Report, find_evaluator, run_evaluator
from ..features import FeatureExtractor, open_backbone
from ..files import Output, check_outputs, made_anything, made_classifier, made_evaluation
from ..train import build_accelerator
from ..train.accelerator import compute_dtype
from .features import load_backbone
from .keys import Keys, as_config, as_overrides
from .process import unchanged_process

logger = logging.getLogger(__name__)


def evaluate(
    model: str | PathLike[str] | nn.Module | FeatureExtractor,
    evaluator: str,
    data: Any = None,
    test: Any = None,
    *,
    config: Any = None,
    keys: Keys = (),
    output_dir: str | PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> Report:
    """Evaluates a backbone by one of the registered evaluators, as `dinov2-hf evaluate` does.

        report = evaluate("runs/vits14", "knn", "flowers")
        report.metrics["accuracy_k20"], report.results[0].interval

    Collective: called on all processes, and returns the same report on each.

    Args:
        model: as of `load_backbone`.
        evaluator: `knn`, `linear`, `logistic`, …: `dinov2-hf evaluate list` names all.
        data: labelled images to learn from or compare with: a path, the name of a set on the Hub, or a
            `datasets.Dataset` or `DatasetDict`; None: as the configuration says (`train.path`).
        test: images that are evaluated; default: another split of `data` (`test.split`, `validation`).
        config: a file, a recipe's name, a mapping or an `EvaluationConfig`.
        keys: keys of the evaluator, such as `{"test.split": "test", "k": [10, 20]}`; `dinov2-hf evaluate NAME --keys`
            prints all.
        output_dir: folder for `results.json` and `results.md`; None: nothing is written.
        device: as of `load_backbone`.

    Raises:
        ValueError, FileNotFoundError: what a caller can fix: an evaluator or a key that does not exist, images without
            labels, a model that cannot be read.
        ImportError: the evaluator needs an extra that is not installed.
    """
    found = find_evaluator(evaluator)
    found.check_installed()
    given = {"train": data, "test": data if test is None else test}
    with unchanged_process(device), holding(given) as paths:
        named = as_overrides({f"{name}.path": path for name, path in paths.items()})
        named += [] if output_dir is None else as_overrides({"output_dir": output_dir})
        settings = as_config(config, [*named, *as_overrides(keys)], found.config)
        _refuse_same(settings, data, test)
        _check_paths(model, settings, found, config)
        accelerator = build_accelerator(TrainConfig(precision=settings.precision))
        dtype = compute_dtype(accelerator)
        weights = torch.float32 if found.trains else dtype
        if isinstance(model, (str, PathLike)):
            backbone = open_backbone(os.fspath(model), accelerator.device, weights, "model")
        else:
            backbone = load_backbone(model, device=accelerator.device)
        output = Path(settings.output_dir).expanduser() if settings.output_dir else None
        half = dtype if dtype == torch.float32 else torch.float16
        report = run_evaluator(found, Evaluation(backbone, settings, accelerator, output, half))
        if output and accelerator.is_main_process:
            try:
                report.save(output)
            except OSError:
                logger.warning("the results, which cannot be saved:\n%s", report.table())
                raise
        accelerator.wait_for_everyone()
    return report


def _refuse_same(settings: EvaluationConfig, data: Any, test: Any) -> None:
    """Refuses a set without splits as both what is learnt from and what is evaluated.

    Raises:
        ValueError: says what to give.
    """
    if test is None and isinstance(data, Dataset) and is_held(settings.train.path):
        raise ValueError(
            "data is a datasets.Dataset, which has one split; give the images to evaluate on as test, or a DatasetDict "
            "with the splits train.split and test.split"
        )


def _check_paths(model: Any, settings: EvaluationConfig, evaluator: Evaluator, config: Any) -> None:
    """Refuses results and features in the place of what is read.

    Raises:
        ValueError: naming the output and what it would change.
    """
    outputs = []
    if settings.output_dir:
        output = Path(settings.output_dir).expanduser()
        outputs.append(Output("output_dir", output, made_evaluation, folder=True))
        if evaluator.trains:
            outputs.append(Output("output_dir", output / "model", made_classifier, folder=True))
    if settings.cache_dir:
        outputs.append(Output("cache_dir", Path(settings.cache_dir).expanduser(), made_anything, folder=True))
    models = [("model", os.fspath(model))] if isinstance(model, (str, PathLike)) else []
    files = [("config", config)] if isinstance(config, (str, PathLike)) and Path(config).is_file() else []
    check_outputs(outputs, [item for item in images_of(settings) if not is_held(item[1])], models, files)
