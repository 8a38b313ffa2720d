"""Distillation of the features of a frozen backbone: the student's CLS and patches imitate them.

Axes: `V` views, `B` images, `N` patches, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..backbones import Backbone
from ..config import FeatureDistillationConfig
from ..data import SSLBatch
from .base import ObjectiveOutput, Scheduled, Teacher, Term, backbone_of, register_objective
from .students import Distillation, describe_teacher, path_of_teacher, teacher_rows, terms_of_students, tokens_of
from .teachers import FeatureTeacher
from .terms import feature_loss


@register_objective("distill_features")
class FeatureDistillation(Distillation[FeatureDistillationConfig]):
    """Students imitate the features of any frozen backbone through a linear layer for CLS and one for patches."""

    @classmethod
    def terms_of(cls, config: FeatureDistillationConfig) -> dict[str, Term]:
        distill = config.distill
        terms: dict[str, Term] = {}
        for part, what in (("cls", "CLS"), ("patch", "patches")):
            weight = getattr(distill, f"{part}_weight")
            terms[f"{part}_cosine"] = Term(weight * distill.cosine_weight, f"one minus the cosine of {what}")
            terms[f"{part}_smooth_l1"] = Term(weight * distill.smooth_l1_weight, f"smooth L1 distance of {what}")
        return terms_of_students(config, terms)

    @classmethod
    def schedules_of(cls, config: FeatureDistillationConfig) -> dict[str, Scheduled]:
        return {"teacher_momentum": Scheduled(config.teacher.momentum, config.teacher.final_momentum)}

    @classmethod
    def teachers_of(cls, config: FeatureDistillationConfig) -> dict[str, Teacher]:
        return {"distill.teacher": Teacher(path_of_teacher(config), FeatureTeacher.of)}

    @classmethod
    def describe(cls, config: FeatureDistillationConfig) -> str:
        return f"distilled without labels from the features of {describe_teacher(config)}"

    @classmethod
    def recipe(cls, config: FeatureDistillationConfig) -> dict[str, str | None]:
        weights = f"{config.distill.cls_weight:.4g}, {config.distill.patch_weight:.4g}"
        return teacher_rows(config) | {"Loss weights (CLS, patches)": weights}

    def build_networks(self, student: str, drop_path_rate: float) -> Mapping[str, nn.Module | Backbone]:
        target, backbone = self.teacher.backbone.width, self.build_backbone(student, drop_path_rate)
        return {
            "backbone": backbone,
            "cls_projector": nn.Linear(backbone.width, target),
            "patch_projector": nn.Linear(backbone.width, target),
        }

    def forward(self, batch: SSLBatch, values: Any, diagnose: bool = False) -> ObjectiveOutput:
        crops, colors = batch.global_crops, self.config.colors
        output = ObjectiveOutput(crops.new_zeros(()), {})
        teacher_cls, teacher_map = self.teacher(crops, colors.mean, colors.std)
        for name, networks in self.networks.items():
            student = networks.student
            stride = backbone_of(student).stride
            wanted, _ = batch.patches_of(stride)
            (cls, patches), _ = tokens_of(student, batch, wanted)
            grid = [side // stride for side in crops.shape[-2:]]
            target = nn.functional.interpolate(teacher_map, grid, mode="bilinear", antialias=True)
            terms: dict[str, Tensor] = {}
            for part, features, imitated in (
                ("cls", cls, teacher_cls),
                ("patch", patches, target.flatten(2).transpose(1, 2).flatten(0, 1)),
            ):
                cosine, smooth_l1 = feature_loss(student[f"{part}_projector"](features), imitated)
                terms |= {f"{part}_cosine": cosine, f"{part}_smooth_l1": smooth_l1}
            self.add(output, name, terms)
        return output
