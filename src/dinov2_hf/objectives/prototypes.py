"""The objective over prototypes: targets from a teacher, and what a student makes of them (DINOv2, section 4).

Axes: `V` crops of an image, `B` images, `D` width, `K` prototypes, `M` patches that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backbones import Dinov2Config
from ..config import PretrainConfig
from ..data.batch import SSLBatch
from .terms import (
    NUM_GLOBAL_CROPS,
    Assignments,
    Logits,
    SoftmaxCentering,
    dino_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)


def ibot_head_name(config: PretrainConfig) -> str:
    """Which head looks at patches."""
    return "ibot_head" if config.ibot.separate_head else "dino_head"


def build_centering(config: PretrainConfig) -> nn.ModuleDict:
    """The running centres of the teacher's logits, by term; none for Sinkhorn-Knopp."""
    centering = nn.ModuleDict()
    if config.teacher.centering == "softmax":
        if config.dino.loss_weight:
            centering["dino"] = SoftmaxCentering(config.dino.num_prototypes)
        if config.ibot.loss_weight:
            head = config.ibot if config.ibot.separate_head else config.dino
            centering["ibot"] = SoftmaxCentering(head.num_prototypes)
    return centering


@torch.no_grad()
def prototype_targets(
    config: PretrainConfig,
    heads: Mapping[str, nn.Module],
    centering: nn.ModuleDict,
    cls: Tensor,
    patches: Tensor,
    teacher_temp: float,
) -> dict[str, Assignments]:
    """Assignments of the teacher's CLS `[2B, D]` and patches `[M, D]` to prototypes, by term. Collective."""

    def assign(term: str, logits: Logits) -> Assignments:
        with torch.autocast(logits.device.type, enabled=False):
            if term in centering:
                return centering[term](logits, teacher_temp)
            return sinkhorn_knopp(logits, teacher_temp)

    targets = {}
    if config.dino.loss_weight:
        targets["dino"] = assign("dino", heads["dino_head"](cls, Logits))
    if config.ibot.loss_weight:
        targets["ibot"] = assign("ibot", heads[ibot_head_name(config)](patches, Logits))
    return targets


def prototype_terms(
    config: PretrainConfig,
    heads: Mapping[str, nn.Module],
    global_cls: Tensor,
    local_cls: Tensor,
    patches: Tensor,
    patch_weights: Tensor,
    targets: Mapping[str, Assignments],
) -> dict[str, Tensor]:
    """The terms of a student, before their weights: `dino_global`, `dino_local`, `ibot`, `koleo`. Collective.

    Args:
        global_cls, local_cls: `[2B, D]`, `[(V - 2) B, D]`, crop by crop.
        patches: `[M, D]`, those of the targets.
        patch_weights: `[M]`, one over the number of patches that are compared in the same crop.
    """
    num_global = len(global_cls)
    num_images = num_global // NUM_GLOBAL_CROPS
    terms: dict[str, Tensor] = {}
    if "dino" in targets:

        def of_crops(features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
            features = features.unflatten(0, (-1, num_images))
            return dino_loss(features, prototypes, targets["dino"], config.teacher.student_temp)

        among_global, with_local = heads["dino_head"](torch.cat((global_cls, local_cls)), of_crops)
        num_local = len(local_cls) // num_images
        num_pairs = NUM_GLOBAL_CROPS * (NUM_GLOBAL_CROPS - 1 + num_local)
        terms["dino_global"] = among_global / num_pairs
        if num_local:
            terms["dino_local"] = with_local / num_pairs
    if "ibot" in targets:

        def of_patches(features: Tensor, prototypes: Tensor) -> Tensor:
            temp = config.teacher.student_temp
            return ibot_loss(features, prototypes, targets["ibot"], patch_weights, num_global, temp)

        terms["ibot"] = heads[ibot_head_name(config)](patches, of_patches)
    if config.koleo.loss_weight:
        per_view = [koleo_loss(view, config.koleo.distributed) for view in global_cls.chunk(NUM_GLOBAL_CROPS)]
        terms["koleo"] = sum(per_view)
    return terms


def weighted_sum(config: PretrainConfig, terms: Mapping[str, Tensor]) -> Tensor:
    """The objective: every term times its weight."""
    return sum(getattr(config, name.split("_")[0]).loss_weight * term for name, term in terms.items())


def packed_positions(batch: SSLBatch, backbone: Dinov2Config) -> tuple[Tensor, Tensor]:
    """Where the tokens that the objective looks at lie in the packed tokens of a batch.

    Returns:
        CLS of the global crops, then the patches at `mask_indices`, `[2B + M]`; CLS of the local crops, `[n B]`.
    """
    device = batch.masks.device

    def length(crops: Tensor) -> int:
        rows, columns = backbone.grid_of(*crops.shape[-2:])
        return backbone.num_prefix_tokens + rows * columns

    num_global, num_patches = batch.masks.shape
    cls = torch.arange(num_global, device=device) * length(batch.global_crops)
    crop, patch = batch.mask_indices // num_patches, batch.mask_indices % num_patches
    patches = crop * length(batch.global_crops) + backbone.num_prefix_tokens + patch
    local = torch.arange(len(batch.local_crops), device=device)
    if len(local):  # where there are none, their size is of no matter
        local = local * length(batch.local_crops) + num_global * length(batch.global_crops)
    return torch.cat((cls, patches)), local
