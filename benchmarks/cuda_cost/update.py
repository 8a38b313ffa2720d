"""One update of the package's own training step on the fake device."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from step import VALUES, draw_masks, plain_flops
from torch import nn

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.config import ColorsConfig, RunConfig
from dinov2_hf.data import PhotometricAugmentation, SSLBatch
from dinov2_hf.data.photometric import draw_view_parameters
from dinov2_hf.objectives import Objective, find_objective
from dinov2_hf.objectives.pretraining import Pretraining
from dinov2_hf.objectives.prototypes import build_heads
from dinov2_hf.runs.metrics import MeanMetrics
from dinov2_hf.train import TrainingStep
from dinov2_hf.train.accelerator import compute_dtype
from dinov2_hf.train.teachers import open_teacher

from .cards import Card
from .device import build_accelerator, fake_cuda
from .ledger import DEVICE, Cost, Ledger, Synchronization

PRESET = "preset:"
"""Before the name of a preset in the place of a path: that of a frozen teacher which is built and not read."""
PARTS = ("teacher", "student", "heads and losses", "backward", "optimiser", "colours")


@dataclass(frozen=True)
class Update:
    """What one update needs."""

    costs: dict[tuple[str, str], Cost]
    """By part and operation; empty where the update stopped because the host needs a value from the device."""
    synchronizations: list[str]
    peak: float
    """Bytes of memory, without the weights of frozen teachers."""
    frozen: float
    """Bytes of the weights of frozen teachers."""
    plain_flops: float | None
    """Of the matrix products of an update in which nothing is skipped; pretraining only."""


def run_update(
    config: RunConfig,
    card: Card,
    teacher_layers: int | None = None,
    logged: bool = False,
) -> Update:
    """Runs two updates as the loop does on the fake device, and returns the cost of the second.

    Args:
        teacher_layers: depth of frozen teachers that are built, in place of the preset's.
        logged: an update that is logged, with the signs of health.
    """
    ledger = Ledger(card)
    with fake_cuda():
        model = _build(config, teacher_layers)
        accelerator = build_accelerator(config.train.precision)
        _place(model, ledger)
        trained = ledger.live
        for teacher in model.frozen:
            _place(teacher.to(compute_dtype(accelerator)), ledger)
            teacher.place = lambda device, dtype, sharded: None  # torch cannot move fake tensors
        frozen = ledger.live - trained
        with ledger:
            step = TrainingStep(model, config, accelerator)
            _charge_parts(ledger, step)
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
            plain = plain_flops(model, host_batch) if isinstance(model, Pretraining) else None
    return Update(ledger.costs, ledger.synchronizations, ledger.peak - frozen, frozen, plain)


def teacher_preset(config: RunConfig) -> str | None:
    """The architecture of a frozen teacher that is built and not read: NAME of `distill.teacher=preset:NAME`."""
    paths = [teacher.path for teacher in find_objective(config).teachers_of(config).values()]
    return next((path.removeprefix(PRESET) for path in paths if path.startswith(PRESET)), None)


def make_host_batch(config: RunConfig) -> SSLBatch:
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


def _build(config: RunConfig, teacher_layers: int | None) -> Objective:
    """The objective with its frozen teachers, without data."""
    kind, teachers = find_objective(config), {}
    for key, teacher in kind.teachers_of(config).items():
        if not teacher.path.startswith(PRESET):
            teachers[key] = open_teacher(key, teacher).to("meta")
            continue
        with torch.device("meta"):
            teachers[key] = teacher.build(_preset_weights(config, teacher.path.removeprefix(PRESET), teacher_layers))
    with torch.device("meta"):
        return kind(config, teachers)


def _preset_weights(config: RunConfig, preset: str, layers: int | None) -> SimpleNamespace:
    """A backbone of a preset and heads like those of the students, as opened weights."""
    architecture = {"patch_size": config.model.stride, "attn_implementation": "sdpa"}
    if layers is not None:
        architecture["num_hidden_layers"] = layers
    backbone = Dinov2Model(Dinov2Config.preset(preset, image_size=config.crops.global_size, **architecture))

    def heads() -> dict[str, dict[str, torch.Tensor]]:
        return {name: head.state_dict() for name, head in build_heads(config, backbone.width).items()}

    return SimpleNamespace(
        where=f"{PRESET}{preset}",
        build=lambda **_: backbone,
        heads=heads,
        attention="sdpa",
        normalization=(ColorsConfig().mean, ColorsConfig().std),
    )


def _place(module: nn.Module, ledger: Ledger) -> None:
    """Moves parameters and buffers to the fake device."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(ledger.tensor(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = ledger.tensor(buffer)


def _charge_parts(ledger: Ledger, step: TrainingStep) -> None:
    """Books the backbones as `student` and `teacher`, the rest of the forward as `heads and losses`, and `backward`."""
    backbones = [(teacher.backbone, "teacher") for teacher in step.model.frozen]
    for student, average in step.model.networks.values():
        backbones += [(student["backbone"], "student"), (average["backbone"], "teacher")]
    for backbone, part in backbones:
        for method in ("tokens", "features"):
            ledger.charge(backbone, method, part)
    ledger.charge(step._wrapped, "forward", "heads and losses")
    ledger.charge(step.accelerator, "backward", "backward")
