"""Linear probes: heads of many settings on frozen features, trained side by side (DINOv2, appendix B.3).

Axes: `B` images of an update, `N` images, `L` blocks, `D` width, `I` inputs of a head, `R` learning rates, `C` classes.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config.evaluations import LinearEvaluation
from ..files import beside
from .augmented import Draws, augmented_updates
from .base import Evaluation, Result
from .datasets import LabeledImages
from .probes import LabeledFeatures, check_labels, figure, in_words, interval, kind_of
from .registry import register_evaluator

_MOMENTUM, _STD = 0.9, 0.01


@dataclass(frozen=True)
class Inputs:
    """What of the features a head takes."""

    blocks: int
    """CLS of so many last blocks."""
    mean: bool
    """The mean of the last block's patches besides."""

    def of(self, parts: dict[str, Tensor]) -> Tensor:
        """The inputs `[N, I]` out of `cls` `[N, L, D]` and `mean` `[N, 1, D]`."""
        inputs = parts["cls"][:, -self.blocks :].flatten(1)
        return torch.cat((inputs, parts["mean"][:, -1]), dim=1) if self.mean else inputs

    def __str__(self) -> str:
        return f"CLS of {self.blocks} block{'s' * (self.blocks > 1)}" + " and mean of patches" * self.mean


class LinearHeads:
    """Heads of different learning rates on the same inputs: one matrix product for all, each as if trained alone.

    SGD with momentum 0.9 on the mean cross-entropy, or on the sum over classes of the binary ones where images have
    several labels; a half cosine to 0; weights from N(0, 0.01), biases from 0.
    """

    def __init__(
        self, num_inputs: int, num_classes: int, learning_rates: Sequence[float], iterations: int, generator
    ) -> None:
        count = len(learning_rates)
        # the row of ones under the weights makes the bias one of them
        self._weight = torch.zeros(num_inputs + 1, count, num_classes)
        self._weight[:-1].normal_(std=_STD, generator=generator)
        self._momentum = torch.zeros_like(self._weight)
        self._rates = torch.tensor(learning_rates).unsqueeze(1)
        self._iterations = iterations

    def to(self, device: torch.device) -> LinearHeads:
        self._weight, self._momentum, self._rates = (
            tensor.to(device) for tensor in (self._weight, self._momentum, self._rates)
        )
        return self

    @torch.no_grad()
    def update(self, inputs: Tensor, targets: Tensor, step: int) -> None:
        """Update `step`, from 0, of all heads with inputs `[B, I]` and classes `[B]`, or flags `[B, C]`."""
        inputs = _with_ones(inputs)
        logits = (inputs @ self._weight.flatten(1)).unflatten(1, self._weight.shape[1:])
        if targets.ndim == 2:
            error = logits.sigmoid_().sub_(targets.to(logits.dtype).unsqueeze(1))
        else:
            error = logits.softmax(dim=2)
            error[torch.arange(len(targets), device=targets.device), :, targets] -= 1
        error /= len(inputs)
        self._momentum.flatten(1).addmm_(inputs.T, error.flatten(1), beta=_MOMENTUM)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self._iterations))
        self._weight.addcmul_(self._momentum, self._rates, value=-cosine)

    def scores(self, inputs: Tensor, head: int) -> Tensor:
        """Class scores `[N, C]` of one head; those of a head that diverged are finite and say nothing."""
        return torch.nan_to_num(_with_ones(inputs) @ self._weight[:, head])

    def tensors(self, head: int) -> dict[str, Tensor]:
        """`weight` `[C, I]` and `bias` `[C]` of one head."""
        weight = self._weight[:, head].cpu()
        return {"weight": weight[:-1].T.contiguous(), "bias": weight[-1].clone()}


def _with_ones(inputs: Tensor) -> Tensor:
    return torch.cat((inputs, inputs.new_ones(len(inputs), 1)), dim=1)


@dataclass(frozen=True)
class _Head:
    """A head that is trained, and its figures."""

    inputs: Inputs
    index: int
    """Of its learning rate."""
    learning_rate: float
    """As in the configuration, for a batch of 256."""
    chosen_by: float
    """The figure on the images that heads are chosen on."""

    def __str__(self) -> str:
        return f"{self.inputs}, learning rate {self.learning_rate:g}"


@register_evaluator(
    "linear", config=LinearEvaluation, title="linear heads, the best of a grid", source="DINOv2 7.1, B.3"
)
def evaluate_linear(evaluation: Evaluation) -> Iterator[Result]:
    """The figure of the best of all heads, then of the best on each kind of inputs. Collective.

    Leaves `heads.csv`, all heads with their figures, and `head.safetensors`, the best one, in the output folder.

    Raises:
        ValueError: labels that a probe cannot learn from, or more blocks than there are.
    """
    config: LinearEvaluation = evaluation.config
    deepest = max(config.blocks)
    if deepest > (there := evaluation.backbone.num_layers):
        raise ValueError(f"blocks={config.blocks} of a model of {there} blocks; use values up to {there}")
    train, test = evaluation.labeled(config.train, "train"), evaluation.labeled(config.test, "test")
    kind = kind_of(config.metric, train.multi_label, train.where)
    check_labels(train, test)
    chooser, where = test, "test"
    if config.validation.path:
        chooser, where = evaluation.labeled(config.validation, "validation"), "validation"
        check_labels(train, chooser)
    asked = _features(evaluation, test, "Features to test on")
    choosing = asked if chooser is test else _features(evaluation, chooser, "Features to choose on")
    stacks = _train(evaluation, train)
    heads = []
    for inputs, stack in evaluation.progress(stacks.items(), "Choosing a head"):
        features = inputs.of(choosing.parts)
        for index, rate in enumerate(config.learning_rates):
            found = figure(stack.scores(features, index), choosing.labels, kind)
            heads.append(_Head(inputs, index, rate, found))
    best = max(heads, key=lambda head: head.chosen_by)
    if evaluation.output and evaluation.is_main:
        _save(evaluation.output, heads, best, stacks, kind, where, train.names)
    yield _result(best, stacks, asked, kind, kind, f"best of {len(heads)} heads on the {where} set", str(best))
    for inputs in stacks if len(stacks) > 1 else ():
        head = max((head for head in heads if head.inputs == inputs), key=lambda head: head.chosen_by)
        key = f"{kind}_{inputs.blocks}_{'cls_mean' if inputs.mean else 'cls'}"
        note = f"learning rate {head.learning_rate:g}"
        yield _result(head, stacks, asked, kind, key, f"best of the heads on {inputs}", note)


def _result(head: _Head, stacks: dict, asked: LabeledFeatures, kind: str, key: str, title: str, note: str) -> Result:
    scores = stacks[head.inputs].scores(head.inputs.of(asked.parts), head.index)
    value = figure(scores, asked.labels, kind)
    title = f"linear {in_words(kind)} (%), {title}"
    return Result(key, value, title, interval(scores, asked.labels, kind), kind=kind, note=note)


def _features(evaluation: Evaluation, images: LabeledImages, description: str) -> LabeledFeatures:
    layers = max(evaluation.config.blocks)
    found = LabeledFeatures.of(evaluation, images, description, layers=layers, parts=("cls", "mean"))
    found.parts["mean"] = found.parts["mean"][:, -1:].clone()  # heads take that of the last block alone
    return found


def _train(evaluation: Evaluation, train: LabeledImages) -> dict[Inputs, LinearHeads]:
    """All heads, trained. Every process does the same work on the same features."""
    config, device = evaluation.config, evaluation.backbone.device
    generator = torch.Generator().manual_seed(config.seed)
    rates = [rate * config.global_batch / 256 for rate in config.learning_rates]
    stacks = {}
    for blocks in config.blocks:
        for pooling in config.pooling:
            inputs = Inputs(blocks, pooling == "cls_mean")
            width = (blocks + inputs.mean) * evaluation.backbone.width
            stack = LinearHeads(width, len(train.names), rates, config.iterations, generator)
            stacks[inputs] = stack.to(device)
    if config.augment:
        batches = _augmented_batches(evaluation, train)
    else:
        batches = _batches(_features(evaluation, train, "Features to learn from"), config, device)
    for step, (parts, targets) in enumerate(evaluation.progress(batches, "Linear heads", config.iterations)):
        if len(targets):  # none where every image of a batch is broken
            for inputs, stack in stacks.items():
                stack.update(inputs.of(parts), targets, step)
    return stacks


def _batches(
    stored: LabeledFeatures, config: LinearEvaluation, device: torch.device
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Features of the centre crops of every update, and their labels."""
    labels, draws = stored.labels.to(device), Draws(len(stored.labels), config.seed)
    for number in range(config.iterations):
        rows = torch.from_numpy(draws.update(number, config.global_batch)[0]).to(device, non_blocking=True)
        yield {name: part[rows] for name, part in stored.parts.items()}, labels[rows]


def _augmented_batches(evaluation: Evaluation, train: LabeledImages) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Features of random crops of every update, of which each process computes its share, and their labels."""
    config, accelerator, backbone = evaluation.config, evaluation.accelerator, evaluation.backbone
    labels = torch.from_numpy(train.labels).to(backbone.device)
    updates = range(config.iterations)
    for chunks in augmented_updates(evaluation, train, updates, config.global_batch, tuple(config.crop_scale)):
        found = []
        for pixels, rows in chunks:
            layers = backbone.features(pixels, max(config.blocks))
            cls, mean = torch.stack([cls for cls, _ in layers], dim=1), layers[-1][1].mean(dim=(2, 3))
            found.append((rows, cls, mean.unsqueeze(1)))
        rows, cls, mean = (accelerator.gather(torch.cat(tensors)) for tensors in zip(*found))
        counts = rows >= 0
        yield {"cls": cls[counts], "mean": mean[counts]}, labels[rows[counts]]


def _save(folder: Path, heads: list, best: _Head, stacks: dict, kind: str, where: str, names: Sequence[str]) -> None:
    with beside(folder / "heads.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["blocks", "pooling", "learning_rate", f"{kind}_{where}"])
        for head in heads:
            pooling = "cls_mean" if head.inputs.mean else "cls"
            writer.writerow([head.inputs.blocks, pooling, f"{head.learning_rate:g}", f"{head.chosen_by:.4f}"])
    settings = {"inputs": str(best.inputs), "learning_rate": f"{best.learning_rate:g}", "classes": json.dumps(names)}
    with beside(folder / "head.safetensors") as path:
        save_file(stacks[best.inputs].tensors(best.index), path, metadata=settings)
