"""What one imports: a run from a configuration to its exports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .config import RunConfig, images_of, models_of
from .data import EvalTransform, evaluation_transform
from .evaluation import evaluations_of, load_evaluations
from .evaluation.datasets import LabeledImages
from .files import Output, check_outputs, made_anything, made_run
from .hub import Publisher
from .objectives import DINOHead
from .runs import RunFacts, RunFolder, plot_metrics
from .train import Callback, Results, Trainer, build_accelerator
from .visualize import Picture, plot_patch_pca
from .weights import export_folder

_PICTURED_PATCHES = 12
"""Patches along a side of the pictures of features, or more where the evaluation has more."""


@dataclass
class Trained:
    """What a run left."""

    folder: Path
    exports: dict[str, Path] = field(default_factory=dict)
    """By the name of the student, `""` for the first one; empty on other processes than the main one."""
    pictures: list[Path] = field(default_factory=list)
    stopped: bool = False
    """Whether SIGTERM ended the run before its end; a checkpoint was saved then, and nothing is exported."""


class Run:
    """A run whose configuration, inputs and checkpoints are found to be usable; `train` trains it.

    Args:
        config: the checked configuration.
        resume: `auto`, `never` or the path of a checkpoint, see `train.Trainer`.

    Raises:
        ValueError, OSError: what a user can fix, said in one line.
    """

    def __init__(self, config: RunConfig, resume: str = "auto") -> None:
        check_paths(config)
        self.config = config
        self.accelerator = build_accelerator(config.train)
        self.transform = evaluation_transform(config)
        callbacks = evaluations_of(config, self.accelerator)
        self.publisher = None
        if config.hub.repo_id:
            callbacks.append(Callback(config.hub.push_every, act=self._publish))
            if self.accelerator.is_main_process:
                self.publisher = Publisher(config.hub, RunFolder(config.train.output_dir).pushing)
        self.trainer = Trainer.from_config(config, self.accelerator, callbacks, resume)

    def train(self) -> Trained:
        """Trains to the end, exports every student's average, draws curves and features, and pushes the exports.

        Raises:
            OSError, FloatingPointError, ValueError: a full disk, a run that diverges, too many broken images.
        """
        results = self.trainer.run()
        done = Trained(self.trainer.folder, stopped=self.trainer.stopped)
        if done.stopped:
            return done
        if self.accelerator.is_main_process:
            done.pictures.append(plot_metrics(done.folder))
            for student, networks in results.items():
                folder = self.trainer.run_folder.export(student)
                done.exports[student] = self._export(folder, networks, student)
                if self.config.knn.enabled:
                    done.pictures.append(self._draw_features(networks["backbone"], student))
            if self.publisher:
                self.publisher.finish(done.exports)
        self.accelerator.wait_for_everyone()  # a process that ends earlier can take the others with it
        self.accelerator.end_training()
        return done

    def _publish(self, step: int, results: Results) -> None:
        exports = {
            student: partial(self._export, networks=networks, student=student) for student, networks in results.items()
        }
        self.publisher.push(step, exports)

    def _export(self, folder: Path, networks: Mapping[str, nn.Module], student: str) -> Path:
        heads = {name: network for name, network in networks.items() if isinstance(network, DINOHead)}
        cuda = torch.cuda.is_available()
        hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        facts = RunFacts.of_run(self.trainer.run_folder, self.config, student, hardware=hardware)
        return export_folder(folder, networks["backbone"].eval(), heads, self.transform, self.config, facts, student)

    def _draw_features(self, backbone: nn.Module, student: str) -> Path:
        """Draws the principal components of the patches of some queries of the k-NN evaluation."""
        queries = LabeledImages(self.config.knn.query)
        chosen = np.linspace(0, len(queries) - 1, num=min(16, len(queries)), dtype=int).tolist()
        larger: EvalTransform = self.transform.enlarged(_PICTURED_PATCHES * backbone.stride)
        shown = [Picture(queries.title_of(index), larger.pixels(queries.read(index)[0])) for index in chosen]
        return plot_patch_pca(backbone, larger, shown, self.trainer.run_folder.features_picture(student))


def check_paths(config: RunConfig) -> None:
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
