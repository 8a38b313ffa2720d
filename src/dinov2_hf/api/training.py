"""Training from Python: a run from its configuration to its exports."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..backbones import Backbone, PretrainedBackbone
from ..config import RUNS, RunConfig, images_of, models_of
from ..data import EvalTransform, TrainingSource, evaluation_transform, open_training_source
from ..data.sources import HELD, holding, is_held, is_source
from ..evaluation import evaluations_of, load_evaluations
from ..evaluation.datasets import LabeledImages
from ..files import Output, check_outputs, made_anything, made_run
from ..hub import Publisher
from ..objectives import Objective, ProjectionHead
from ..runs import RunFacts, RunFolder, plot_metrics
from ..runs.together import on_main
from ..train import Callback, Results, Trainer, build_accelerator, build_objective
from ..visualize import Picture, plot_patch_pca
from ..weights import export_folder
from .keys import Keys, as_config, as_overrides
from .process import unchanged_process
from .run import Run

_PICTURED_PATCHES = 12
"""Patches along a side of the pictures of features, or more where the evaluation has more."""
_HELD = "train"
"""Name of images that are handed in: `data.train.path=memory:train`."""

Config = str | PathLike[str] | Mapping[str, Any] | RunConfig | None


def pretrain(
    data: Any = None,
    output_dir: str | PathLike[str] | None = None,
    *,
    config: Config = None,
    keys: Keys = (),
    resume: str = "auto",
    callbacks: Sequence[Callback] = (),
    accelerator: Accelerator | None = None,
) -> Run:
    """Trains a backbone on images without labels, from the configuration to the export.

        run = pretrain("photographs", "runs/mine", config="vits14_1gpu", keys={"train.epochs": 10})
        run.metrics(), run.export()

    The same call again continues an interrupted run. A progress bar shows the updates; `logging` at the level INFO says
    what the command says. On several processes each calls it: see docs/python.md.

    Args:
        data: a folder or whatever else `data.train.path` takes; a `datasets.Dataset`, `DatasetDict` or
            `IterableDataset`; a sequence of images (paths, bytes of encoded images, arrays, tensors, PIL images), or an
            iterable of them that can be read again and again; a function that yields them; or a `TrainingSource`.
            None: what the configuration names.
        output_dir: the folder of the run (`train.output_dir`).
        config: a file, the name of a recipe, a mapping of sections and keys, or a `RunConfig`; default: the published
            values. Its key `objective` says what is trained for.
        keys: keys that take precedence, such as `{"train.epochs": 3}` or `["train.epochs=3"]`.
        resume: `auto`, `never` or the path of a checkpoint, see `Trainer`.
        callbacks: what is measured and done during the run, beside the evaluations of the configuration.
        accelerator: default: as the configuration and `accelerate launch` say.

    Raises:
        ValueError, FileNotFoundError: what a caller can fix, in one line.
        OSError: a full disk; a data worker that was killed (`ChildProcessError`).
        KeyboardInterrupt: Ctrl-C, after the update is finished and saved; a second one raises it at once.
        FloatingPointError: the run diverges.
        TypeError: `data` holds no images, or can be read once only.
    """
    return _train(None, data, config, keys, "dinov2", output_dir, resume, callbacks, accelerator)


def distill(
    teacher: str | PathLike[str] | None = None,
    data: Any = None,
    output_dir: str | PathLike[str] | None = None,
    *,
    config: Config = None,
    keys: Keys = (),
    resume: str = "auto",
    callbacks: Sequence[Callback] = (),
    accelerator: Accelerator | None = None,
) -> Run:
    """Distils a frozen teacher into one or several smaller backbones.

    Args:
        teacher: a run, an export, a file or a name on the Hub (`distill.teacher`).
        config: as of `pretrain`; its key `objective` chooses between `distill_prototypes`, the default, which needs the
            heads of the teacher, and `distill_features`, which takes any teacher.
        data: as of `pretrain`.
        output_dir: as of `pretrain`.
        keys: as of `pretrain`.
        resume: as of `pretrain`.
        callbacks: as of `pretrain`.
        accelerator: as of `pretrain`.

    Raises:
        ValueError, FileNotFoundError: what a caller can fix, in one line.
        OSError: a full disk; a data worker that was killed (`ChildProcessError`).
        KeyboardInterrupt: Ctrl-C, after the update is finished and saved; a second one raises it at once.
        FloatingPointError: the run diverges.
        TypeError: `data` holds no images, or can be read once only.
    """
    given = [] if teacher is None else as_overrides({"distill.teacher": teacher})
    keys = [*given, *as_overrides(keys)]
    return _train(None, data, config, keys, "distill_prototypes", output_dir, resume, callbacks, accelerator)


def fit(
    objective: Objective[Any],
    source: Any = None,
    config: RunConfig | None = None,
    accelerator: Accelerator | None = None,
    callbacks: Sequence[Callback] = (),
    resume: str = "auto",
) -> Run:
    """Trains an objective that the caller made.

        config = load_config(None, ["objective=mine", "data.train.path=memory:train", "train.output_dir=runs/mine"])
        run = fit(Mine(config), images)

    The loop, checkpoints, metrics and exports are those of every run.

    Args:
        objective: with fresh weights.
        source: as `data` of `pretrain`.
        config: the checked configuration; default: that of the objective.
        accelerator: as of `pretrain`.
        callbacks: as of `pretrain`.
        resume: as of `pretrain`.

    Raises:
        ValueError, FileNotFoundError: what a caller can fix, in one line.
        OSError: a full disk; a data worker that was killed (`ChildProcessError`).
        KeyboardInterrupt: Ctrl-C, after the update is finished and saved; a second one raises it at once.
        FloatingPointError: the run diverges.
        TypeError: `source` holds no images, or can be read once only.
    """
    config = objective.config if config is None else config
    return _train(objective, source, config, (), config.objective, None, resume, callbacks, accelerator)


def _train(
    objective: Objective[Any] | None,
    data: Any,
    config: Config,
    keys: Keys,
    default: str,
    output_dir: str | PathLike[str] | None,
    resume: str,
    callbacks: Sequence[Callback],
    accelerator: Accelerator | None,
) -> Run:
    """Trains `objective`, or the one that the configuration names."""
    source = data if data is not None and is_source(data) else None
    with unchanged_process(), holding({_HELD: data if source is None else None}) as paths:
        path = paths.get(_HELD) if source is None else f"{HELD}{_HELD}"
        given = {"data.train.path": path, "train.output_dir": output_dir}
        named = as_overrides({key: value for key, value in given.items() if value is not None})
        checked = as_config(config, [*named, *as_overrides(keys)], RUNS[default])
        training = Training(
            checked, resume, objective=objective, source=source, callbacks=callbacks, accelerator=accelerator
        )
        run = training.run(end=False)
        if training.trainer.stopped_by == signal.SIGINT:  # ends the caller's script too, after the checkpoint
            raise KeyboardInterrupt
        return run


class Training:
    """A run whose configuration, inputs and checkpoints are found to be usable; `run` trains it.

    The functions of this module put back what it changes in the process, such as torch's generators.

    Args:
        config: the checked configuration.
        resume: `auto`, `never` or the path of a checkpoint, see `train.Trainer`.
        objective: default: the one that the configuration names.
        source: default: the images that the configuration names.
        callbacks: beside those of the configuration.
        accelerator: default: from `build_accelerator`.

    Raises:
        ValueError, OSError: what a user can fix, said in one line.
    """

    def __init__(
        self,
        config: RunConfig,
        resume: str = "auto",
        *,
        objective: Objective[Any] | None = None,
        source: TrainingSource | None = None,
        callbacks: Sequence[Callback] = (),
        accelerator: Accelerator | None = None,
    ) -> None:
        check_paths(config)
        self.config = config
        self.accelerator = build_accelerator(config.train) if accelerator is None else accelerator
        on_main(RunFolder(config.train.output_dir).lock.require_free)
        self.transform = evaluation_transform(config)
        callbacks = [*evaluations_of(config, self.accelerator), *callbacks]
        self.publisher = None
        if config.hub.repo_id:
            callbacks.append(Callback(config.hub.push_every, act=self._publish))
            if self.accelerator.is_main_process:
                self.publisher = Publisher(config.hub, RunFolder(config.train.output_dir).pushing)
        if source is None:
            source = open_training_source(config.data, config.train.seed)
        if objective is None:
            objective = build_objective(config)
        self.trainer = Trainer(objective, source, config, self.accelerator, callbacks, resume)

    def run(self, end: bool = True) -> Run:
        """Trains to the end, exports every student's average, draws curves and features, and pushes the exports.

        Where Ctrl-C or SIGTERM ended the run before its end, a checkpoint was saved, and nothing is exported.

        Args:
            end: whether trackers and processes of the accelerator end with the run.

        Raises:
            OSError, FloatingPointError, ValueError: a full disk or a data worker that was killed, a run that diverges,
                too many broken images or another run in the folder.
        """
        folder = self.trainer.folder
        with self.trainer.locked():
            results = self.trainer.run()
            if self.trainer.stopped:
                return Run(folder, stopped=True)
            if self.accelerator.is_main_process:
                plot_metrics(folder)
                exports = {}
                for student, networks in results.items():
                    exports[student] = self._export(self.trainer.run_folder.export(student), networks, student)
                    if self.config.knn.enabled:
                        self._draw_features(cast(Backbone, networks["backbone"]), student)
                if self.publisher:
                    self.publisher.finish(exports)
        self.accelerator.wait_for_everyone()  # a process that ends earlier can take the others with it
        if end:
            self.accelerator.end_training()
        return Run(folder)

    def _publish(self, step: int, results: Results) -> None:
        exports = {
            student: partial(self._export, networks=networks, student=student) for student, networks in results.items()
        }
        if self.publisher is not None:
            self.publisher.push(step, exports)

    def _export(self, folder: Path, networks: Mapping[str, nn.Module], student: str) -> Path:
        heads = {name: network for name, network in networks.items() if isinstance(network, ProjectionHead)}
        cuda = torch.cuda.is_available()
        hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        facts = RunFacts.of_run(self.trainer.run_folder, self.config, student, hardware=hardware)
        return export_folder(
            folder,
            cast(PretrainedBackbone, networks["backbone"].eval()),
            heads,
            self.transform,
            self.config,
            facts,
            student,
        )

    def _draw_features(self, backbone: Backbone, student: str) -> Path:
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
    images, outputs = [item for item in images_of(config) if not is_held(item[1])], []
    outputs.append(Output("train.output_dir", Path(config.train.output_dir), made_run, folder=True))
    for name, evaluation in load_evaluations(config).items():
        images += images_of(evaluation, f"evaluations.{name}: ")
        if cache := evaluation.cache_dir:
            outputs.append(
                Output(f"evaluations.{name}: cache_dir", Path(cache).expanduser(), made_anything, folder=True)
            )
    check_outputs(outputs, images, models_of(config))
