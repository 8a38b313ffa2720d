"""Multipliers of learning rate and weight decay of every parameter (layer-wise decay as in the published code).

Also what `docs/fidelity.md` calls decayed tokens: CLS, registers, mask token, position embeddings and the gains of the
weight-normalised prototypes are decayed, as they were when the released models were trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config import OptimConfig
from ..objectives import backbone_of
from ..objectives.heads import PrototypeLayer
from .schedules import StepValues


@dataclass(frozen=True)
class Multipliers:
    """How one parameter scales the scheduled values."""

    lr: float
    weight_decay: float
    is_last_layer: bool
    is_backbone: bool
    """Whether it belongs to the backbone, where that makes a difference."""


def build_param_groups(networks: nn.ModuleDict, optim: OptimConfig, head_warmup: bool = False) -> list[dict[str, Any]]:
    """Builds the optimiser groups of a student's trainable parameters, one for each set of equal multipliers.

    In the backbone the learning rate falls by `optim.layerwise_decay` with each block below the output, and the patch
    embedding has `optim.patch_embed_lr_mult` on top. Vectors (biases, gains of norms, LayerScale) are not decayed.
    Where both multipliers are 1 there are three groups, as in the published DINO code: matrices, vectors, and the
    prototypes, which may be frozen.

    Args:
        head_warmup: whether the schedule scales the learning rate of the backbone: it then has groups of its own.
    """
    separate = head_warmup or optim.layerwise_decay != 1 or optim.patch_embed_lr_mult != 1
    groups: dict[Multipliers, list[nn.Parameter]] = {}
    backbone = backbone_of(networks)
    last_layers = {
        id(parameter)
        for module in networks.modules()
        if isinstance(module, PrototypeLayer)
        for parameter in module.parameters()
    }
    for name, parameter in networks.named_parameters():
        if not parameter.requires_grad:
            continue
        part, _, inside = name.partition(".")
        lr = 1.0
        if part == "backbone":
            lr = optim.layerwise_decay ** (len(backbone.blocks) + 1 - backbone.depth_of(inside))
            if backbone.is_patch_embedding(inside):
                lr *= optim.patch_embed_lr_mult
        key = Multipliers(
            lr=lr,
            weight_decay=0.0 if parameter.ndim < 2 else 1.0,
            is_last_layer=id(parameter) in last_layers,
            is_backbone=separate and part == "backbone",
        )
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_multiplier": key.lr,
            "weight_decay_multiplier": key.weight_decay,
            "is_last_layer": key.is_last_layer,
            "is_backbone": key.is_backbone,
        }
        for key, parameters in groups.items()
    ]


def apply_schedule(param_groups: Iterable[dict[str, Any]], values: StepValues) -> None:
    """Sets learning rate and weight decay of every group to the scheduled values of a step."""
    for group in param_groups:
        lr = values.last_layer_lr if group["is_last_layer"] else values.lr
        scale = values.backbone_lr_scale if group["is_backbone"] else 1.0
        group["lr"] = lr * scale * group["lr_multiplier"]
        group["weight_decay"] = values.weight_decay * group["weight_decay_multiplier"]
