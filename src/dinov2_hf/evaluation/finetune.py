"""Fine-tuning of the whole backbone with a linear head (DINOv2, section 7.1, table 5).

A plain recipe of the DeiT III and BEiT kind: AdamW with layer-wise decay of the learning rate, stochastic depth, label
smoothing, warm-up and cosine, random crops and flips. Without RandAugment, mixup and CutMix.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..backbones import Features
from ..config import same_place, with_absolute_paths
from ..config.evaluations import FinetuneEvaluation
from ..files import beside
from .augmented import augmented_updates
from .base import Evaluation, Result
from .classifier import Classifier, save_classifier
from .datasets import LabeledImages
from .probes import LabeledFeatures, check_labels, figure, in_words, interval, kind_of
from .registry import register_evaluator

logger = logging.getLogger(__name__)

CHECKPOINT_FILE, MODEL_FOLDER = "finetune.pt", "model"
_REFERENCE_BATCH = 512
_MAY_DIFFER = ("batch_size", "num_workers", "cache_dir", "output_dir")  # without changing what is trained


def learning_rate(config: FinetuneEvaluation, update: int, updates_per_epoch: int) -> float:
    """Of the head in `update`, from 0: a straight line up over the warm-up, then half a cosine to 0."""
    peak = config.learning_rate * config.global_batch / _REFERENCE_BATCH
    warmup, total = config.warmup_epochs * updates_per_epoch, config.epochs * updates_per_epoch
    if update < warmup:
        return peak * (update + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))


@register_evaluator(
    "finetune",
    config=FinetuneEvaluation,
    title="fine-tuning of the whole backbone",
    source="DINOv2 7.1, table 5",
    trains=True,
)
def evaluate_finetune(evaluation: Evaluation) -> Iterator[Result]:
    """The figure after the last epoch, and that after the best one. Collective.

    With an output folder, `finetune.pt` there is written after every epoch, and a run that was killed goes on from it;
    at the end the classifier of the last epoch is in `model`, where its family has a class for it.

    Raises:
        ValueError: a backbone without a network, labels that a probe cannot learn from, or a checkpoint of other
            settings.
    """
    config: FinetuneEvaluation = evaluation.config
    if evaluation.backbone.module is None:
        raise ValueError(
            f"{evaluation.backbone.name} is in a training run, whose weights stay as they are; "
            "fine-tune one of its checkpoints: dinov2-hf evaluate finetune --model RUN"
        )
    train, test = evaluation.labeled(config.train, "train"), evaluation.labeled(config.test, "test")
    kind = kind_of(config.metric, train.multi_label, train.where)
    check_labels(train, test)
    run = _Run(evaluation, train)
    for epoch in range(run.resume(), config.epochs):
        run.train_epoch(epoch)
        run.judge(test, kind)
        run.save(epoch + 1)
    if evaluation.output and evaluation.is_main:
        folder = evaluation.output / MODEL_FOLDER
        if not save_classifier(folder, run.model, train.names, evaluation.transform, train.multi_label):
            logger.info("the classifier is not kept: the family of %s has no class for it", evaluation.backbone.name)
        (evaluation.output / CHECKPOINT_FILE).unlink(missing_ok=True)
    title = f"fine-tuned {in_words(kind)} (%)"
    value, ends = run.figures[-1]
    yield Result(kind, value, f"{title}, last of {config.epochs} epochs", ends, kind=kind)
    value, ends = max(run.figures)
    yield Result(f"{kind}_best", value, f"{title}, best of {config.epochs} epochs on the test set", ends, kind=kind)


class _Run:
    """What is trained, and how it fares."""

    def __init__(self, evaluation: Evaluation, train: LabeledImages) -> None:
        config, device = evaluation.config, evaluation.backbone.device
        self._evaluation, self._train = evaluation, train
        self._labels = torch.from_numpy(train.labels).to(device)
        self._updates_per_epoch = max(round(len(train) / config.global_batch), 1)
        generator = torch.Generator().manual_seed(config.seed)
        assert evaluation.backbone.module is not None
        self.model = Classifier(evaluation.backbone.module, len(train.names), config.drop_path_rate, generator)
        self.model.to(device)
        self._optimizer = torch.optim.AdamW(self.model.groups(config.layer_decay, config.weight_decay), lr=0.0)
        self._scaler = torch.amp.GradScaler(device.type, enabled=evaluation.accelerator.mixed_precision == "fp16")
        self.figures: list[tuple[float, tuple[float, float]]] = []
        """After every epoch, with the confidence interval."""

    def train_epoch(self, epoch: int) -> None:
        """Collective."""
        evaluation, config = self._evaluation, self._evaluation.config
        # stochastic depth draws from torch's global generator: an epoch is the same in a run that goes on from it
        torch.manual_seed(_mixed(config.seed, epoch, evaluation.accelerator.process_index))
        first = epoch * self._updates_per_epoch
        updates = range(first, first + self._updates_per_epoch)
        scale = tuple(config.crop_scale)
        batches = augmented_updates(evaluation, self._train, updates, config.global_batch, scale)
        said = f", {self.figures[-1][0]:.1f} % after the last" if self.figures else ""
        self.model.train()
        for update, chunks in zip(
            updates, evaluation.progress(batches, f"Epoch {epoch + 1} of {config.epochs}{said}", len(updates))
        ):
            rate = learning_rate(config, update, self._updates_per_epoch)
            for group in self._optimizer.param_groups:
                group["lr"] = rate * group["lr_multiplier"]
            for pixels, rows in chunks:
                with evaluation.accelerator.autocast():
                    logits = self.model(pixels)
                loss = self._loss(logits, rows) / config.global_batch
                self._scaler.scale(loss).backward()
            _sum_gradients(self.model, evaluation.accelerator)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad(set_to_none=True)

    def _loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Sum over the images; rows of -1 do not count."""
        labels = self._labels[rows]
        if labels.ndim == 2:
            losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(dim=1)
        else:
            smoothing = self._evaluation.config.label_smoothing
            losses = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return (losses * (rows >= 0)).sum()

    def judge(self, test: LabeledImages, kind: str) -> None:
        """Notes the figure on the test set. Collective."""
        model, accelerator = self.model.eval(), self._evaluation.accelerator

        def logits(images: Tensor, count: int) -> list[Features]:
            with accelerator.autocast():
                return [Features(model(images), images)]

        # extraction gathers the logits of all processes as it does features
        asked = replace(
            self._evaluation,
            backbone=replace(self._evaluation.backbone, features=logits, fingerprint=None),
            feature_dtype=torch.float32,
        )
        found = LabeledFeatures.of(asked, test, "Test images")
        scores = found.parts["cls"][:, -1]
        self.figures.append((figure(scores, found.labels, kind), interval(scores, found.labels, kind)))

    def save(self, epochs: int) -> None:
        """Leaves a checkpoint after so many epochs, written beside and renamed. Collective."""
        evaluation = self._evaluation
        if evaluation.output and evaluation.is_main:
            path = evaluation.output / CHECKPOINT_FILE
            state = {name: part.state_dict() for name, part in self._parts().items()}
            with beside(path) as temporary:
                torch.save(state | {"settings": self._settings(), "epochs": epochs, "figures": self.figures}, temporary)
        evaluation.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """The number of epochs that are done, after loading the checkpoint in the output folder, if there is one.

        Raises:
            ValueError: it is of other settings, images or weights.
        """
        path = self._evaluation.output and self._evaluation.output / CHECKPOINT_FILE
        if not path or not path.is_file():
            return 0
        saved = torch.load(path, map_location="cpu", weights_only=True)
        settings = self._settings()
        for key, now in settings.items():
            before = saved["settings"].get(key)
            if isinstance(before, dict) and isinstance(now, dict) and same_place(before.get("path"), now.get("path")):
                now = now | {"path": before.get("path")}
            if before != now:
                raise ValueError(
                    f"{path} was written with {key}={before!r}, and this is {key}={now!r}; go on with that, or give "
                    "another folder"
                )
        own = self.model.state_dict().keys()
        saved["model"] = {  # release 0.5 kept backbones of this package in a wrapper
            name if name in own else name.replace("backbone.model.", "backbone."): tensor
            for name, tensor in saved["model"].items()
        }
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.figures = saved["figures"]
        return saved["epochs"]

    def _parts(self) -> dict:
        return {"model": self.model, "optimizer": self._optimizer, "scaler": self._scaler}

    def _settings(self) -> dict:
        """What must be the same for a run to go on."""
        config = with_absolute_paths(self._evaluation.config)
        settings = {key: value for key, value in asdict(config).items() if key not in _MAY_DIFFER}
        fingerprint = self._evaluation.backbone.fingerprint
        assert fingerprint is not None
        backbone = {"weights": fingerprint(), "classes": self._train.names}
        return settings | backbone | {"images": len(self._train)}


def _mixed(*keys: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])


def _sum_gradients(model: nn.Module, accelerator: Accelerator) -> None:
    """Sums the gradients over the processes, whose losses are shares of one mean."""
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    total = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
    for gradient, part in zip(gradients, total.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))
