"""Distillation over the prototypes of a frozen teacher (DINOv2, section 5, "Model distillation").

It is the objective of pretraining with a frozen teacher and its heads: nothing is masked, and the patch-level term
compares all patches of both global crops.

Axes: `V` views, `B` images, `N` patches, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ..backbones import Backbone
from ..config import Masks, PrototypeDistillationConfig
from ..data import SSLBatch
from .base import ObjectiveOutput, Scheduled, Teacher, Term, backbone_of, register_objective
from .diagnostics import diagnose_batch
from .heads import DINOHead
from .prototypes import (
    build_centering,
    build_heads,
    ibot_head_name,
    prototype_answers,
    prototype_recipe,
    prototype_targets,
    prototype_terms,
    prototype_terms_of,
    teacher_schedules_of,
)
from .students import Distillation, describe_teacher, path_of_teacher, teacher_rows, terms_of_students, tokens_of
from .teachers import PrototypeTeacher


@register_objective("distill_prototypes")
class PrototypeDistillation(Distillation[PrototypeDistillationConfig]):
    """Students answer the prototypes of a frozen teacher with heads of their own.

    Raises:
        ValueError: heads or patches of teacher and students do not fit; says what to set.
    """

    def __init__(self, config: PrototypeDistillationConfig, teachers: Mapping[str, PrototypeTeacher]) -> None:
        check_prototypes(config, teachers["distill.teacher"])
        super().__init__(config, teachers)
        head = teachers["distill.teacher"].heads["dino_head"] if config.dino.loss_weight else None
        dim = cast(DINOHead, head).last_layer.weight_v.shape[1] if head is not None else None
        self.centering = build_centering(config, dim)

    @classmethod
    def terms_of(cls, config: PrototypeDistillationConfig) -> dict[str, Term]:
        return terms_of_students(config, prototype_terms_of(config))

    @classmethod
    def schedules_of(cls, config: PrototypeDistillationConfig) -> dict[str, Scheduled]:
        return teacher_schedules_of(config.teacher)

    @classmethod
    def teachers_of(cls, config: PrototypeDistillationConfig) -> dict[str, Teacher]:
        return {"distill.teacher": Teacher(path_of_teacher(config), PrototypeTeacher.of)}

    @classmethod
    def describe(cls, config: PrototypeDistillationConfig) -> str:
        return f"distilled without labels from {describe_teacher(config)} with the DINOv2 objective"

    @classmethod
    def recipe(cls, config: PrototypeDistillationConfig) -> dict[str, str | None]:
        return teacher_rows(config) | prototype_recipe(config, Masks())

    def build_networks(self, student: str, drop_path_rate: float) -> Mapping[str, nn.Module | Backbone]:
        backbone = self.build_backbone(student, drop_path_rate)
        return {"backbone": backbone, **build_heads(self.config, backbone.width)}

    def forward(self, batch: SSLBatch, values: Any, diagnose: bool = False) -> ObjectiveOutput:
        config, teacher, crops = self.config, self.teacher, batch.global_crops
        wanted, _ = batch.patches_of(teacher.backbone.stride)
        tokens = teacher(crops, wanted, config.colors.mean, config.colors.std)
        with torch.autocast(crops.device.type, enabled=False):
            targets = prototype_targets(config, teacher.heads, self.centering, tokens, values.teacher_temp)
        output = ObjectiveOutput(crops.new_zeros(()), {})
        for name, networks in self.networks.items():
            wanted, weights = batch.patches_of(backbone_of(networks.student).stride)
            tokens, local_cls = tokens_of(networks.student, batch, wanted)
            terms = prototype_terms(config, networks.student, tokens, local_cls, weights, targets)
            self.add(output, name, terms)
            if diagnose and not name:
                answers = prototype_answers(terms, weights, len(tokens.cls))
                output.diagnostics = diagnose_batch(tokens.cls, None, targets, answers)
        return output


def check_prototypes(config: PrototypeDistillationConfig, teacher: PrototypeTeacher) -> None:
    """Refuses students that cannot answer the teacher's prototypes.

    Raises:
        ValueError: naming the key and the teacher's value.
    """
    wanted = [term for term in ("dino", "ibot") if getattr(config, term).loss_weight]
    names = {"dino": "dino_head", "ibot": ibot_head_name(config)}
    for term in wanted:
        if names[term] not in teacher.heads:
            has = ", ".join(teacher.heads) or "no heads"
            raise ValueError(
                f"the teacher has {has} but {term}.loss_weight={getattr(config, term).loss_weight} needs its "
                f"{names[term]}; set ibot.separate_head={'ibot_head' in teacher.heads}, {term}.loss_weight=0, or "
                "objective=distill_features, which needs no heads"
            )
        there = cast(DINOHead, teacher.heads[names[term]]).last_layer.weight_v.shape[0]
        section = "ibot" if names[term] == "ibot_head" else "dino"
        here = getattr(config, section).num_prototypes
        if there != here:
            raise ValueError(f"{section}.num_prototypes={here}, but the teacher has {there}; set it to that")
    patch = teacher.backbone.stride
    for name, model in config.models.items():
        if model.stride != patch and config.ibot.loss_weight:
            raise ValueError(
                f"{f'students.{name}' if name else 'model'}.patch_size={model.stride}, but the teacher's patches have "
                f"{patch} pixels and prototypes are compared patch by patch; use {patch}, ibot.loss_weight=0, or "
                "objective=distill_features"
            )
