"""Targets and terms over prototypes, for pretraining and distillation (DINOv2, section 4).

Axes: `V` crops of an image, `B` images, `D` width, `K` prototypes, `M` patches that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ..backbones import Tokens
from ..config import DINOv2RunConfig, HeadConfig, PrototypeDistillationConfig
from .base import Scheduled, Term
from .diagnostics import CrossEntropy
from .heads import DINOHead
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

PrototypeConfig = DINOv2RunConfig | PrototypeDistillationConfig
"""Runs with the sections `dino`, `ibot`, `koleo` and `teacher`."""


def prototype_terms_of(config: PrototypeConfig) -> dict[str, Term]:
    """Declares the terms that are switched on."""
    terms = {}
    if weight := config.dino.loss_weight:
        terms["dino_global"] = Term(weight, "CLS of each global crop against the other one")
        if config.crops.num_local:
            terms["dino_local"] = Term(weight, "CLS of local crops against the global crops")
    if weight := config.ibot.loss_weight:
        terms["ibot"] = Term(weight, "patches against the teacher's patches")
    if weight := config.koleo.loss_weight:
        terms["koleo"] = Term(weight, "spread of CLS within the batch (KoLeo)")
    return terms


def prototype_schedules_of(config: PrototypeConfig) -> dict[str, Scheduled]:
    """Declares the momentum of the averages and the temperature of the targets."""
    teacher, warmup = config.teacher, config.teacher.warmup_temp_epochs
    return {
        "teacher_momentum": Scheduled(teacher.momentum, teacher.final_momentum),
        "teacher_temp": Scheduled(teacher.temp, teacher.temp, teacher.warmup_temp, warmup, epochs=warmup),
    }


def prototype_recipe(config: PrototypeConfig, mask_probability: float) -> dict[str, str | None]:
    """Returns the rows of a model card on heads, masks and teacher."""
    teacher = config.teacher
    heads = [("DINO", config.dino, config.dino.loss_weight)]
    heads += [("iBOT", config.ibot, config.ibot.loss_weight)] if config.ibot.separate_head else []
    weights = [config.dino.loss_weight, config.ibot.loss_weight, config.koleo.loss_weight]
    masked = None
    if mask_probability:
        smallest, largest = config.masks[1]
        masked = f"{smallest:.0%} to {largest:.0%} in {mask_probability:.0%} of the global crops"
    return {
        "Loss weights (DINO, iBOT, KoLeo)": ", ".join(f"{weight:.4g}" for weight in weights),
        "Prototypes": ", ".join(f"{head.num_prototypes:,} ({name})" for name, head, weight in heads if weight) or None,
        "Masked patches": masked,
        "Centering": teacher.centering,
        "Teacher temperature": f"{teacher.warmup_temp:g} to {teacher.temp:g}",
    }


def ibot_head_name(config: PrototypeConfig) -> str:
    """Which head looks at patches."""
    return "ibot_head" if config.ibot.separate_head else "dino_head"


def build_heads(config: PrototypeConfig, width: int) -> dict[str, DINOHead]:
    """Builds the heads of the terms that are switched on, on a backbone of `width` channels, with fresh weights."""

    def head(settings: HeadConfig) -> DINOHead:
        return DINOHead(
            width,
            settings.num_prototypes,
            hidden_dim=settings.hidden_dim,
            bottleneck_dim=settings.bottleneck_dim,
            num_layers=settings.num_layers,
        )

    heads = {}
    if config.dino.loss_weight or (config.ibot.loss_weight and not config.ibot.separate_head):
        heads["dino_head"] = head(config.dino)
    if config.ibot.loss_weight and config.ibot.separate_head:
        heads["ibot_head"] = head(config.ibot)
    return heads


def build_centering(config: PrototypeConfig) -> nn.ModuleDict:
    """Builds the running centres of the teacher's logits, by term; none for Sinkhorn-Knopp."""
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
    config: PrototypeConfig,
    heads: nn.ModuleDict,
    centering: nn.ModuleDict,
    tokens: Tokens,
    teacher_temp: float,
) -> dict[str, Assignments]:
    """Assigns the teacher's CLS `[2B, D]` and patches `[M, D]` to prototypes, by term. Collective."""

    def assign(term: str, logits: Logits) -> Assignments:
        with torch.autocast(logits.device.type, enabled=False):
            if term in centering:
                assignments: Assignments = centering[term](logits, teacher_temp)
                return assignments
            return sinkhorn_knopp(logits, teacher_temp)

    targets = {}
    if config.dino.loss_weight:
        targets["dino"] = assign("dino", Logits(*heads["dino_head"](tokens.cls)))
    if config.ibot.loss_weight:
        targets["ibot"] = assign("ibot", Logits(*heads[ibot_head_name(config)](tokens.patches)))
    return targets


def prototype_terms(
    config: PrototypeConfig,
    heads: nn.ModuleDict,
    tokens: Tokens,
    local_cls: Tensor,
    patch_weights: Tensor,
    targets: Mapping[str, Assignments],
) -> dict[str, Tensor]:
    """Computes the terms of a student, before their weights. Collective.

    Args:
        tokens: of the global crops: CLS `[2B, D]`, crop by crop, and the patches of the targets `[M, D]`.
        local_cls: `[(V - 2) B, D]`.
        patch_weights: `[M]`, one over the number of patches that are compared in the same crop.
    """
    num_global, temp = len(tokens.cls), config.teacher.student_temp
    num_images = num_global // NUM_GLOBAL_CROPS
    terms: dict[str, Tensor] = {}
    if "dino" in targets:
        features, prototypes = heads["dino_head"](torch.cat((tokens.cls, local_cls)))
        features = features.unflatten(0, (-1, num_images))
        among_global, with_local = dino_loss(features, prototypes, targets["dino"], temp)
        num_local = len(local_cls) // num_images
        num_pairs = NUM_GLOBAL_CROPS * (NUM_GLOBAL_CROPS - 1 + num_local)
        terms["dino_global"] = among_global / num_pairs
        if num_local:
            terms["dino_local"] = with_local / num_pairs
    if "ibot" in targets:
        features, prototypes = heads[ibot_head_name(config)](tokens.patches)
        terms["ibot"] = ibot_loss(features, prototypes, targets["ibot"], patch_weights, num_global, temp)
    if config.koleo.loss_weight:
        per_view = [koleo_loss(view, config.koleo.distributed) for view in tokens.cls.chunk(NUM_GLOBAL_CROPS)]
        terms["koleo"] = cast(Tensor, sum(per_view))
    return terms


def prototype_answers(terms: Mapping[str, Tensor], patch_weights: Tensor, num_global: int) -> dict[str, CrossEntropy]:
    """Returns the cross-entropies among the terms of a student, by target, for `diagnose_batch`.

    Args:
        terms: of `prototype_terms`.
        patch_weights: as of `prototype_terms`.
        num_global: global crops of this process.
    """
    answers = {}
    if "dino_global" in terms:
        local = terms.get("dino_local")
        answers["dino"] = CrossEntropy(terms["dino_global"] if local is None else terms["dino_global"] + local)
    if "ibot" in terms:
        answers["ibot"] = CrossEntropy(terms["ibot"], patch_weights / num_global)
    return answers
