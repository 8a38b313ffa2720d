"""One update of the package's own training step on the fake device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from step import VALUES, draw_masks, plain_flops
from torch import nn

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.config import ColorsConfig, DistillConfig, PretrainConfig
from dinov2_hf.data import PhotometricAugmentation, SSLBatch
from dinov2_hf.data.photometric import draw_view_parameters
from dinov2_hf.objectives import DINOv2Pretraining, Distillation, FeatureTeacher, PrototypeTeacher, Students
from dinov2_hf.objectives.base import build_heads
from dinov2_hf.runs.metrics import MeanMetrics
from dinov2_hf.train import TrainingStep
from dinov2_hf.train.accelerator import compute_dtype
from dinov2_hf.train.distill import read_feature_teacher, read_prototype_teacher

from .cards import Card
from .device import build_accelerator, fake_cuda
from .ledger import DEVICE, Cost, Ledger, Synchronization

PARTS = ("teacher", "student", "heads and losses", "backward", "optimiser", "colours")


@dataclass(frozen=True)
class Update:
    """What one update needs."""

    costs: dict[tuple[str, str], Cost]
    """By part and operation; empty where the update stopped because the host needs a value from the device."""
    synchronizations: list[str]
    peak: float
    """Bytes of memory, without the weights of a frozen teacher."""
    frozen: float
    """Bytes of the weights of a frozen teacher."""
    plain_flops: float | None
    """Of the matrix products of an update in which nothing is skipped; pretraining only."""


def run_update(
    config: PretrainConfig,
    card: Card,
    teacher_layers: int | None = None,
    logged: bool = False,
) -> Update:
    """Runs two updates as the loop does on the fake device, and returns the cost of the second.

    Args:
        teacher_layers: depth of the frozen teacher in place of the preset's.
        logged: an update that is logged, with the signs of health.
    """
    ledger = Ledger(card)
    with fake_cuda():
        model, teacher = _build(config, teacher_layers)
        accelerator = build_accelerator(config.train.precision)
        _place(model, ledger)
        trained = ledger.live
        if teacher is not None:
            _place(teacher.to(compute_dtype(accelerator)), ledger)
            teacher.place = lambda device, dtype, sharded: None  # torch cannot move fake tensors
        frozen = ledger.live - trained
        with ledger:
            step = TrainingStep(model, config, accelerator)
            _charge_parts(ledger, step, teacher)
            augment = PhotometricAugmentation(config.colors)
            host_batch = make_host_batch(config).pin_memory()

            def next_batch() -> SSLBatch:
                with ledger.part("colours"):
                    return augment(host_batch.to(DEVICE, non_blocking=True))

            with ledger.part("optimiser"):  # what is left in a step when the other parts are taken out
                means = MeanMetrics()
                try:
                    means.add(step(next_batch, VALUES, 0))
                    ledger.start()
                    means.add(step(next_batch, VALUES, 1, diagnose=logged))
                except Synchronization:  # the last of the list
                    ledger.costs.clear()
                    del ledger.synchronizations[:-1]
            plain = plain_flops(model, host_batch) if isinstance(model, DINOv2Pretraining) else None
    return Update(ledger.costs, ledger.synchronizations, ledger.peak - frozen, frozen, plain)


def teacher_preset(config: PretrainConfig) -> str | None:
    """The architecture of a frozen teacher that is built and not read: NAME of `distill.teacher=preset:NAME`."""
    teacher = config.distill.teacher if isinstance(config, DistillConfig) else ""
    return teacher.removeprefix("preset:") if teacher.startswith("preset:") else None


def make_host_batch(config: PretrainConfig) -> SSLBatch:
    """A batch as the data workers leave it: uint8 crops, colour parameters, masks of evenly spread ratios."""
    crops, batch, channels = config.crops, config.train.batch_size, config.model.num_channels
    rng = np.random.default_rng(config.train.seed)
    tables = [draw_view_parameters(rng, config.colors, crops.num_local) for _ in range(batch)]
    colors = torch.from_numpy(np.stack(tables, axis=1)).flatten(0, 1)
    masks = draw_masks(config)
    return SSLBatch(
        torch.zeros(2 * batch, channels, crops.global_size, crops.global_size, dtype=torch.uint8),
        torch.zeros(crops.num_local * batch, channels, crops.local_size, crops.local_size, dtype=torch.uint8),
        masks,
        *SSLBatch.flatten_masks(masks),
        global_colors=colors[: 2 * batch],
        local_colors=colors[2 * batch :],
    )


def _build(
    config: PretrainConfig, teacher_layers: int | None
) -> tuple[Students, PrototypeTeacher | FeatureTeacher | None]:
    """Objective and frozen teacher, without data."""
    if not isinstance(config, DistillConfig):
        with torch.device("meta"):
            return DINOv2Pretraining(config), None
    by_prototypes = config.distill.objective == "prototypes"
    preset = teacher_preset(config)
    if preset is None:
        read = read_prototype_teacher if by_prototypes else read_feature_teacher
        teacher = read(config.distill.teacher).to("meta")
    else:
        with torch.device("meta"):
            teacher = _teacher(config, preset, teacher_layers, by_prototypes)
    with torch.device("meta"):
        return Distillation(config, teacher), teacher


def _teacher(
    config: DistillConfig, preset: str, layers: int | None, by_prototypes: bool
) -> PrototypeTeacher | FeatureTeacher:
    architecture = {"patch_size": config.model.patch_size, "attn_implementation": "sdpa"}
    if layers is not None:
        architecture["num_hidden_layers"] = layers
    backbone = Dinov2Model(Dinov2Config.preset(preset, image_size=config.crops.global_size, **architecture))
    normalization = ColorsConfig().mean, ColorsConfig().std
    if by_prototypes:
        return PrototypeTeacher(backbone, build_heads(config, backbone.width), *normalization)
    return FeatureTeacher(backbone, *normalization)


def _place(module: nn.Module, ledger: Ledger) -> None:
    """Moves parameters and buffers to the fake device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(ledger.tensor(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = ledger.tensor(buffer)


def _charge_parts(ledger: Ledger, step: TrainingStep, teacher: nn.Module | None) -> None:
    """Books the backbones as `student` and `teacher`, the rest of the forward as `heads and losses`, and `backward`."""
    trained = {id(networks["backbone"]) for networks in step.model.students.values()}
    for module in _backbones(step.model, teacher):
        for method in ("tokens", "forward_at", "features"):
            if hasattr(module, method):
                ledger.charge(module, method, "student" if id(module) in trained else "teacher")
    ledger.charge(step._wrapped, "forward", "heads and losses")
    ledger.charge(step.accelerator, "backward", "backward")


def _backbones(*modules: nn.Module | None) -> Iterator[nn.Module]:
    inside = chain.from_iterable(module.modules() for module in modules if module is not None)
    return (module for module in inside if hasattr(module, "depth_of"))  # of the contract of backbones
