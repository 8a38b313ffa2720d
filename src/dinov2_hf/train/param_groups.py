"""Multipliers of learning rate and weight decay of every parameter (layer-wise decay as in the published code).

Also what `docs/fidelity.md` calls decayed tokens: CLS, registers, mask token, position embeddings and the gains of the
weight-normalised prototypes are decayed, as they were when the released models were trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .schedules import StepValues


@dataclass(frozen=True)
class Multipliers:
    """How one parameter scales the scheduled values."""

    lr: float
    weight_decay: float
    is_last_layer: bool
    is_backbone: bool


def multipliers_of(name: str, num_layers: int, layerwise_decay: float, patch_embed_lr_mult: float) -> Multipliers:
    """The multipliers of the parameter `name` of the student (`backbone.…`, `dino_head.…`, `ibot_head.…`).

    Embeddings count as layer 0 and layer `i` of the backbone as `i + 1`; the learning rate falls by `layerwise_decay`
    for each layer below the final norm. Biases, norms and LayerScale are not decayed.
    """
    depth = num_layers + 1
    if name.startswith("backbone.embeddings."):
        depth = 0
    elif match := re.match(r"backbone\.encoder\.layer\.(\d+)\.", name):
        depth = int(match[1]) + 1
    lr = layerwise_decay ** (num_layers + 1 - depth)
    if "patch_embeddings" in name:
        lr *= patch_embed_lr_mult
    undecayed = name.endswith(".bias") or "norm" in name or "layer_scale" in name
    return Multipliers(
        lr=lr,
        weight_decay=0.0 if undecayed else 1.0,
        is_last_layer=".last_layer." in name,
        is_backbone=name.startswith("backbone."),
    )


def build_param_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    num_layers: int,
    layerwise_decay: float,
    patch_embed_lr_mult: float,
) -> list[dict]:
    """Optimiser groups of the trainable parameters, one for each set of equal multipliers."""
    groups: dict[Multipliers, list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            key = multipliers_of(name, num_layers, layerwise_decay, patch_embed_lr_mult)
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


def apply_schedule(param_groups: Iterable[dict], values: StepValues) -> None:
    """Sets learning rate and weight decay of every group to the scheduled values of a step."""
    for group in param_groups:
        lr = values.last_layer_lr if group["is_last_layer"] else values.lr
        scale = values.backbone_lr_scale if group["is_backbone"] else 1.0
        group["lr"] = lr * scale * group["lr_multiplier"]
        group["weight_decay"] = values.weight_decay * group["weight_decay_multiplier"]
