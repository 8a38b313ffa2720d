"""A run from the command line: configuration, training, and what it leaves in its folder."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from .config import DistillConfig, PretrainConfig, load_config
from .evaluation import KnnEvaluator, plot_patch_pca
from .features import EvalTransform, evaluation_transform
from .hub import Publisher, RunFacts, export_folder
from .train import Pretrainer, Results, build_accelerator, plot_metrics, read_metrics


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
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("dinov2_hf").setLevel(logging.INFO)

    def evaluate(features) -> dict[str, float]:
        return dict(evaluator(features, accelerator))

    def publish(step: int, results: Results) -> None:
        exports = {
            student: partial(_export, networks=networks, config=config, transform=transform)
            for student, networks in results.items()
        }
        publisher.push(step, exports)

    try:
        config = load_config(args.config, args.overrides, kind)
        accelerator = build_accelerator(config.train)
        transform, evaluator = evaluation_transform(config), None
        if config.knn.enabled:
            evaluator = KnnEvaluator(config.knn, config.colors.mean, config.colors.std, config.data.num_workers)
        publisher = None
        if config.hub.repo_id and accelerator.is_main_process:
            publisher = Publisher(config.hub, Path(config.train.output_dir) / "pushing")
        trainer = trainer_class(
            config,
            accelerator,
            evaluate if evaluator else None,
            resume=args.resume,
            publish=publish if config.hub.repo_id else None,
        )
    except (ValueError, FileNotFoundError) as error:  # what a user can mend
        parser.error(str(error))
    try:
        results = trainer.run()
    except (OSError, FloatingPointError, ValueError) as error:  # a full disk, a run that diverges, broken images
        raise SystemExit(f"{parser.prog}: error: {error}") from None
    if trainer.stopped:
        raise SystemExit(128 + signal.SIGTERM)  # as a shell reports it, so that a job script can tell it from the end
    if accelerator.is_main_process:
        exported = _leave(config, results, evaluator, transform)
        if publisher:
            publisher.finish(exported)


def _export(
    folder: Path,
    networks: Mapping[str, nn.Module],
    config: PretrainConfig,
    transform: EvalTransform,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    heads = {name: network for name, network in networks.items() if name.endswith("_head")}
    cuda = torch.cuda.is_available()
    hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    told = RunFacts.of_run(Path(config.train.output_dir), config, hardware=hardware, lines=facts)
    return export_folder(folder, networks["backbone"].eval(), heads, transform, config, told)


def _leave(
    config: PretrainConfig, results: Results, evaluator: KnnEvaluator | None, transform: EvalTransform
) -> dict[str, Path]:
    """Exports every student's average, draws curves and features, and says where all of it is."""
    output = Path(config.train.output_dir)
    lines, role = read_metrics(output), "the student" if isinstance(config, DistillConfig) else "the teacher"
    pictures = [plot_metrics(output)]
    exported: dict[str, Path] = {}
    for student, networks in results.items():
        metric = f"{student}.knn_accuracy" if student else "knn_accuracy"
        accuracies = [line[metric] for line in lines if metric in line]
        facts = {"k-NN accuracy (classes of the evaluation set)": f"{accuracies[-1]:.1f} %"} if accuracies else {}
        folder = output / (f"export-{student}" if student else "export")
        exported[student] = _export(folder, networks, config, transform, facts)
        if evaluator:
            backbone = networks["backbone"]
            queries = evaluator.queries
            chosen = np.linspace(0, len(queries) - 1, num=min(16, len(queries)), dtype=int)
            pixels = np.stack([transform.pixels(queries.read(int(index))[0]) for index in chosen])
            images = transform.normalize(torch.from_numpy(pixels)).to(backbone.device)
            titles = [str(queries.names[queries.labels[index]]) for index in chosen]
            picture = output / (f"features-{student}.png" if student else "features.png")
            pictures.append(plot_patch_pca(backbone, images, pixels, picture, titles))
            first, last = accuracies[0], accuracies[-1]
            print(f"\nk-NN accuracy of {student or role}: {first:.1f} % at first, {last:.1f} % at the end")
    print(f"Curves and pictures:  {', '.join(map(str, pictures))}")
    print(f"Metrics:              {output / 'metrics.jsonl'} (TensorBoard: tensorboard --logdir {output})")
    for folder in exported.values():
        print(f"Model:                {folder}")
    first_export = exported[""]
    print("\nLoad it with nothing but transformers:\n")
    print(f'    from transformers import AutoModel, pipeline\n    model = AutoModel.from_pretrained("{first_export}")')
    print(f'    features = pipeline("image-feature-extraction", model="{first_export}")')
    return exported
