"""A run from the command line: configuration, training, and what it leaves in its folder."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..backbones import Dinov2Config, Features, Layers
from ..config import (
    DistillConfig,
    PretrainConfig,
    images_of,
    load_config,
    masked,
    models_of,
    refuse_tokens_in_arguments,
)
from ..config.evaluations import EvaluationConfig, KnnEvaluation
from ..data import EvalTransform, evaluation_transform
from ..evaluation import Evaluation, Result, evaluate_knn, find_evaluator, open_labeled
from ..evaluation.datasets import LabeledImages, same_classes
from ..features import FeatureExtractor
from ..files import Output, check_outputs, made_anything, made_run
from ..hub import Publisher
from ..runs import RunFacts, RunFolder, plot_metrics
from ..train import PeriodicEvaluation, Pretrainer, Results, build_accelerator
from ..visualize import Picture, plot_patch_pca
from ..weights import export_folder

_PICTURED_PATCHES = 12
"""Patches along a side of the pictures of features, or more where the evaluation has more."""


def launch(description: str, kind: type[PretrainConfig], trainer_class: type[Pretrainer]) -> None:
    """Parses the command line, trains, and leaves model, curves and pictures in `train.output_dir`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file; what it leaves out keeps its default")
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto: continue from the newest checkpoint in train.output_dir if there is one (default); "
        "never: refuse a folder that has one; or the path of a checkpoint",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    try:
        refuse_tokens_in_arguments(sys.argv[1:])
    except ValueError as error:
        parser.error(str(error))
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("dinov2_hf").setLevel(logging.INFO)

    def publish(step: int, results: Results) -> None:
        exports = {
            student: partial(_export, networks=networks, config=config, transform=transform, student=student)
            for student, networks in results.items()
        }
        publisher.push(step, exports)

    try:
        config = load_config(args.config, args.overrides, kind)
        check_paths(config)
        accelerator = build_accelerator(config.train)
        transform = evaluation_transform(config)
        evaluations = running_evaluations(config, accelerator)
        publisher = None
        if config.hub.repo_id and accelerator.is_main_process:
            publisher = Publisher(config.hub, RunFolder(config.train.output_dir).pushing)
        trainer = trainer_class(
            config,
            accelerator,
            evaluations,
            resume=args.resume,
            publish=publish if config.hub.repo_id else None,
        )
    except (ValueError, OSError) as error:  # what a user can fix
        parser.error(masked(str(error)))
    try:
        results = trainer.run()
    except (OSError, FloatingPointError, ValueError) as error:  # a full disk, a run that diverges, broken images
        raise SystemExit(f"{parser.prog}: error: {masked(str(error))}") from None
    if trainer.stopped:
        raise SystemExit(128 + signal.SIGTERM)  # as a shell reports it, so that a job script can tell it from the end
    if accelerator.is_main_process:
        exported = _leave(config, results, transform)
        if publisher:
            publisher.finish(exported)
    accelerator.wait_for_everyone()  # a process that ends earlier can take the others with it
    accelerator.end_training()


def load_evaluations(config: PretrainConfig) -> dict[str, EvaluationConfig]:
    """The configuration of every evaluation of the section `evaluations`, by its name there.

    Raises:
        ValueError, FileNotFoundError: an unknown evaluator, a file that cannot be read.
    """
    found = {}
    for name, item in config.evaluations.items():
        evaluator = find_evaluator(item.protocol, f"evaluations.{name}.protocol")
        found[name] = load_config(item.config, kind=evaluator.config)
    return found


def check_paths(config: PretrainConfig) -> None:
    """Refuses a run, and features of its evaluations, in the place of what it reads.

    Raises:
        ValueError: naming the output and what it would change.
        FileNotFoundError: the file of an evaluation is missing.
    """
    images, outputs = list(images_of(config)), []
    outputs.append(Output("train.output_dir", Path(config.train.output_dir), made_run, folder=True))
    for name, evaluation in load_evaluations(config).items():
        images += images_of(evaluation, f"evaluations.{name}: ")
        if cache := evaluation.cache_dir:
            outputs.append(
                Output(f"evaluations.{name}: cache_dir", Path(cache).expanduser(), made_anything, folder=True)
            )
    check_outputs(outputs, images, models_of(config))


def running_evaluations(config: PretrainConfig, accelerator: Accelerator) -> list[PeriodicEvaluation]:
    """Those of the sections `knn` and `evaluations`.

    Raises:
        ValueError, FileNotFoundError: sets that cannot be read, files of evaluations that cannot.
    """
    found = []
    if config.knn.enabled:
        knn = config.knn
        protocol = KnnEvaluation(
            train=knn.reference,
            test=knn.query,
            k=[knn.k],
            temperature=knn.temperature,
            batch_size=knn.batch_size,
            num_workers=config.data.num_workers,
        )
        sets: dict[str, LabeledImages] = {}
        references = open_labeled(knn.reference, sets, "knn.reference")
        same_classes(references, open_labeled(knn.query, sets, "knn.query"))  # before the run starts
        found.append(_periodic(evaluate_knn, protocol, knn.epochs, "knn_accuracy", config, accelerator, sets))
    for name, settings in load_evaluations(config).items():
        item = config.evaluations[name]
        evaluate, metric = find_evaluator(item.protocol).evaluate, f"{name}.{{metric}}"
        found.append(_periodic(evaluate, settings, item.epochs, metric, config, accelerator, {}))
    return found


def _periodic(
    evaluate: Callable[[Evaluation], Iterator[Result]],
    settings: EvaluationConfig,
    epochs: float,
    name: str,
    config: PretrainConfig,
    accelerator: Accelerator,
    sets: dict[str, LabeledImages],
) -> PeriodicEvaluation:
    """An evaluator of the averages, its figures logged as `name` with their metric in it; `sets` are open already."""
    transform = evaluation_transform(config)

    def run(student: str, layers: Layers) -> dict[str, float]:
        model = config.students[student] if student else config.model  # further students of a distillation
        shape = Dinov2Config.preset(model.preset, **model.architecture())

        def features(images, count):
            with accelerator.autocast():
                found = layers(images, count)
            return [Features(cls.float(), patches.float()) for cls, patches in found]

        backbone = FeatureExtractor(
            features,
            transform,
            shape.hidden_size,
            model.patch_size,
            shape.num_hidden_layers,
            accelerator.device,
            student or "teacher",
        )
        evaluation = Evaluation(backbone, settings, accelerator, sets=sets)
        return {name.format(metric=result.metric): result.value for result in evaluate(evaluation)}

    return PeriodicEvaluation(epochs, run)


def _export(
    folder: Path,
    networks: Mapping[str, nn.Module],
    config: PretrainConfig,
    transform: EvalTransform,
    student: str,
) -> Path:
    heads = {name: network for name, network in networks.items() if name.endswith("_head")}
    cuda = torch.cuda.is_available()
    hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    told = RunFacts.of_run(RunFolder(config.train.output_dir), config, student, hardware=hardware)
    return export_folder(folder, networks["backbone"].eval(), heads, transform, config, told)


def _leave(config: PretrainConfig, results: Results, transform: EvalTransform) -> dict[str, Path]:
    """Exports every student's average, draws curves and features, and says where all of it is."""
    run = RunFolder(config.train.output_dir)
    lines, role = run.read_metrics(), "the student" if isinstance(config, DistillConfig) else "the teacher"
    pictures = [plot_metrics(run.path)]
    exported: dict[str, Path] = {}
    for student, networks in results.items():
        metric = f"{student}.knn_accuracy" if student else "knn_accuracy"
        accuracies = [line[metric] for line in lines if metric in line]
        exported[student] = _export(run.export(student), networks, config, transform, student)
        if accuracies:
            queries = LabeledImages(config.knn.query)
            chosen = np.linspace(0, len(queries) - 1, num=min(16, len(queries)), dtype=int).tolist()
            larger = transform.enlarged(_PICTURED_PATCHES * networks["backbone"].stride)
            shown = [Picture(queries.title_of(index), larger.pixels(queries.read(index)[0])) for index in chosen]
            pictures.append(plot_patch_pca(networks["backbone"], larger, shown, run.features_picture(student)))
            first, last = accuracies[0], accuracies[-1]
            print(f"\nk-NN accuracy of {student or role}: {first:.1f} % at first, {last:.1f} % at the end")
    print(f"Curves and pictures:  {', '.join(map(str, pictures))}")
    print(f"Metrics:              {run.metrics_file} (TensorBoard: tensorboard --logdir {run.path})")
    for folder in exported.values():
        print(f"Model:                {folder}")
    first_export = exported[""]
    print("\nLoad it with nothing but transformers:\n")
    print(f'    from transformers import AutoModel, pipeline\n    model = AutoModel.from_pretrained("{first_export}")')
    print(f'    features = pipeline("image-feature-extraction", model="{first_export}")')
    return exported
