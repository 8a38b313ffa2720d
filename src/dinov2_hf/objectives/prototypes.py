"""Targets and terms over prototypes, for pretraining and distillation (DINO, section 3.1; DINOv2, section 4).

Axes: `V` crops of an image, `B` images, `D` width, `K` prototypes, `M` patches that are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..backbones import Tokens
from ..config import DINOv2RunConfig, HeadConfig, Masks, PrototypeDistillationConfig, TeacherConfig
from .base import Scheduled, Term
from .diagnostics import CrossEntropy
from .heads import DINOHead, Projected
from .temperature import EntropyControl
from .terms import (
    NUM_GLOBAL_CROPS,
    Assignments,
    Logits,
    SinkhornQueue,
    SoftmaxCentering,
    dino_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)

PrototypeConfig = DINOv2RunConfig | PrototypeDistillationConfig
"""Runs with the sections `dino`, `ibot`, `koleo` and `teacher`."""


# What every objective over prototypes takes its parts from


def image_terms_of(weight: float, num_local: int) -> dict[str, Term]:
    """Declares the terms of CLS, of which there are none if the weight is 0."""
    if not weight:
        return {}
    terms = {"dino_global": Term(weight, "CLS of each global crop against the other one")}
    if num_local:
        terms["dino_local"] = Term(weight, "CLS of local crops against the global crops")
    return terms


def patch_terms_of(weight: float) -> dict[str, Term]:
    """Declares the term of the patches, if its weight is not 0."""
    return {"ibot": Term(weight, "patches against the teacher's patches")} if weight else {}


def teacher_schedules_of(teacher: TeacherConfig, by_epoch: bool = False) -> dict[str, Scheduled]:
    """Declares the momentum of the averages and the temperature of the targets.

    Args:
        by_epoch: the temperature changes between epochs only.
    """
    warmup = teacher.warmup_temp_epochs
    return {
        "teacher_momentum": Scheduled(teacher.momentum, teacher.final_momentum),
        "teacher_temp": Scheduled(
            teacher.temp, teacher.temp, teacher.warmup_temp, warmup, epochs=warmup, by_epoch=by_epoch
        ),
    }


def teacher_recipe(
    teacher: TeacherConfig, weights: Mapping[str, float], prototypes: Mapping[str, int], masks: Masks
) -> dict[str, str | None]:
    """Returns the rows of a model card on heads, masks and teacher.

    Args:
        weights: of the terms, by what they are called.
        prototypes: numbers of prototypes, by what their head is called.
    """
    queue, entropy = teacher.sinkhorn_queue, teacher.target_entropy
    weighted = {f"Loss weights ({', '.join(weights)})": ", ".join(f"{weight:.4g}" for weight in weights.values())}
    return {
        **(weighted if weights else {}),
        "Prototypes": ", ".join(f"{number:,} ({name})" for name, number in prototypes.items()) or None,
        "Masked patches": describe_masks(masks),
        "Centering": f"{teacher.centering}, with a queue of {queue:,} samples" if queue else teacher.centering,
        "Teacher temperature": f"{teacher.warmup_temp:g} to {teacher.temp:g}",
        "Entropy of the targets": None if entropy is None else f"led to {entropy:.1%} of its maximum",
    }


def describe_masks(masks: Masks) -> str | None:
    """Returns how patches are masked, for a model card; None where none are."""
    if not masks.probability:
        return None
    smallest, largest = masks.ratio
    masked = f"{smallest:.0%} to {largest:.0%} in {masks.probability:.0%} of the global crops"
    return masked + ", at random" * (masks.shape == "random")


def build_head(settings: HeadConfig, width: int) -> DINOHead:
    """Builds a head on a backbone of `width` channels, with fresh weights."""
    return DINOHead(width, **head_settings(settings))


def head_settings(settings: HeadConfig) -> dict[str, Any]:
    """The arguments of a head that a section sets."""
    names = ("num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers", "batch_norm", "norm_last_layer")
    return {name: getattr(settings, name) for name in names}


def build_centers(teacher: TeacherConfig, num_prototypes: Mapping[str, int], bottleneck_dim: int) -> nn.ModuleDict:
    """Builds what the teacher's targets depend on and every update changes, all of it in buffers.

    For each term its running centre, under the term's name, with softmax centering; and `<term>_temperature` where the
    entropy of the targets is controlled. For CLS `dino_queue`, where there is a queue.

    Args:
        num_prototypes: by term.
        bottleneck_dim: width of the teacher's head on CLS.
    """
    parts: dict[str, nn.Module] = {}
    for term, number in num_prototypes.items():
        if teacher.centering == "softmax":
            parts[term] = SoftmaxCentering(number, teacher.center_momentum)
        if teacher.target_entropy is not None:
            parts[f"{term}_temperature"] = EntropyControl(teacher.target_entropy)
    if teacher.sinkhorn_queue and "dino" in num_prototypes:
        parts["dino_queue"] = SinkhornQueue(teacher.sinkhorn_queue, bottleneck_dim)
    return nn.ModuleDict(parts)


@torch.no_grad()
def assign(
    teacher: TeacherConfig,
    centering: nn.ModuleDict,
    term: str,
    projected: Projected,
    teacher_temp: float,
    population: Tensor | None = None,
) -> Assignments:
    """Assigns what a head of the teacher has made of samples to prototypes. Collective.

    Args:
        centering: of `build_centers`.
        teacher_temp: the scheduled temperature.
        population: bottleneck features `[P, d]` of the samples that the centre follows; default: those of `projected`.
    """
    logits = Logits(*projected)
    control = _part(centering, f"{term}_temperature", EntropyControl)
    temp = teacher_temp if control is None else control.temperature(teacher_temp)
    with torch.autocast(logits.device.type, enabled=False):
        if center := _part(centering, term, SoftmaxCentering):
            assignments = center(logits, temp, None if population is None else (population, projected.prototypes))
        elif teacher.centering == "none":
            assignments = Assignments.uncentred(logits, temp)
        elif queue := _part(centering, f"{term}_queue", SinkhornQueue):
            assignments = sinkhorn_knopp(logits, temp, queued=queue.queued(*projected))
            queue.push(projected.features)
        else:
            assignments = sinkhorn_knopp(logits, temp)
        if control is not None:
            control.follow(assignments)
    return cast(Assignments, assignments)


Part = TypeVar("Part", bound=nn.Module)


def _part(parts: nn.ModuleDict, name: str, kind: type[Part]) -> Part | None:
    return cast(Part, parts[name]) if name in parts else None


def image_terms(projected: Projected, num_images: int, targets: Assignments, student_temp: float) -> dict[str, Tensor]:
    """Computes the terms of CLS, which add up to the mean over the pairs of two different crops.

    Args:
        projected: CLS of the student, crop by crop, the global crops first: `[V B, d]`.
        num_images: B.
    """
    features = projected.features.unflatten(0, (-1, num_images))
    among_global, with_local = dino_loss(features, projected.prototypes, targets, student_temp)
    num_local = len(features) - NUM_GLOBAL_CROPS
    num_pairs = NUM_GLOBAL_CROPS * (NUM_GLOBAL_CROPS - 1 + num_local)
    terms = {"dino_global": among_global / num_pairs}
    if num_local:
        terms["dino_local"] = with_local / num_pairs
    return terms


# DINOv2, in pretraining and in distillation


def prototype_terms_of(config: PrototypeConfig) -> dict[str, Term]:
    """Declares the terms that are switched on."""
    terms = image_terms_of(config.dino.loss_weight, config.crops.num_local) | patch_terms_of(config.ibot.loss_weight)
    if weight := config.koleo.loss_weight:
        terms["koleo"] = Term(weight, "spread of CLS within the batch (KoLeo)")
    return terms


def prototype_recipe(config: PrototypeConfig, masks: Masks) -> dict[str, str | None]:
    """Returns the rows of a model card on heads, masks and teacher."""
    dino, ibot, koleo = config.dino, config.ibot, config.koleo
    prototypes = {"DINO": dino.num_prototypes} if dino.loss_weight else {}
    if ibot.separate_head and ibot.loss_weight:
        prototypes["iBOT"] = ibot.num_prototypes
    weights = {"DINO": dino.loss_weight, "iBOT": ibot.loss_weight, "KoLeo": koleo.loss_weight}
    return teacher_recipe(config.teacher, weights, prototypes, masks)


def ibot_head_name(config: PrototypeConfig) -> str:
    """Which head looks at patches."""
    return "ibot_head" if config.ibot.separate_head else "dino_head"


def build_heads(config: PrototypeConfig, width: int) -> dict[str, DINOHead]:
    """Builds the heads of the terms that are switched on, on a backbone of `width` channels, with fresh weights."""
    heads = {}
    if config.dino.loss_weight or (config.ibot.loss_weight and not config.ibot.separate_head):
        heads["dino_head"] = build_head(config.dino, width)
    if config.ibot.loss_weight and config.ibot.separate_head:
        heads["ibot_head"] = build_head(config.ibot, width)
    return heads


def build_centering(config: PrototypeConfig, bottleneck_dim: int | None = None) -> nn.ModuleDict:
    """Builds what `build_centers` does.

    Args:
        bottleneck_dim: width of the teacher's head on CLS; default: as configured.
    """
    numbers = {}
    if config.dino.loss_weight:
        numbers["dino"] = config.dino.num_prototypes
    if config.ibot.loss_weight:
        numbers["ibot"] = (config.ibot if config.ibot.separate_head else config.dino).num_prototypes
    return build_centers(config.teacher, numbers, bottleneck_dim or config.dino.bottleneck_dim)


@torch.no_grad()
def prototype_targets(
    config: PrototypeConfig,
    heads: nn.ModuleDict,
    centering: nn.ModuleDict,
    tokens: Tokens,
    teacher_temp: float,
) -> dict[str, Assignments]:
    """Assigns the teacher's CLS `[2B, D]` and patches `[M, D]` to prototypes, by term. Collective."""
    teacher, targets = config.teacher, {}
    if config.dino.loss_weight:
        targets["dino"] = assign(teacher, centering, "dino", heads["dino_head"](tokens.cls), teacher_temp)
    if config.ibot.loss_weight:
        projected = heads[ibot_head_name(config)](tokens.patches)
        targets["ibot"] = assign(teacher, centering, "ibot", projected, teacher_temp)
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
    terms: dict[str, Tensor] = {}
    if "dino" in targets:
        projected = heads["dino_head"](torch.cat((tokens.cls, local_cls)))
        terms |= image_terms(projected, num_global // NUM_GLOBAL_CROPS, targets["dino"], temp)
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
