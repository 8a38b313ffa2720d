"""The objective of iBOT over a student and its moving average (Zhou et al., 2021, section 3).

Axes: `B` images, `N` patches of a global crop, `D` width, `M` masked patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Backbone, Tokens
from ..config import IBOTRunConfig
from ..data import SSLBatch
from .base import Scheduled, Term, register_objective
from .heads import IBOTHead, Projected
from .pretraining import Pretraining
from .prototypes import (
    assign,
    build_centers,
    head_settings,
    image_terms,
    image_terms_of,
    patch_terms_of,
    teacher_recipe,
    teacher_schedules_of,
)
from .terms import NUM_GLOBAL_CROPS, Assignments, ibot_loss


@register_objective("ibot")
class IBOT(Pretraining[IBOTRunConfig]):
    """CLS as in DINO, and masked patches against the teacher's, on one head.

    The centre of the patches follows all patches of the global crops, masked or not. `student` and `teacher` hold a
    `backbone` and a `dino_head`.
    """

    sees_all_patches = True

    @classmethod
    def own_terms_of(cls, config: IBOTRunConfig) -> dict[str, Term]:
        image = image_terms_of(config.dino.loss_weight, config.crops.num_local)
        return image | patch_terms_of(config.ibot.loss_weight)

    @classmethod
    def schedules_of(cls, config: IBOTRunConfig) -> dict[str, Scheduled]:
        teacher, warmup = config.teacher, config.teacher.warmup_temp_epochs
        patches = Scheduled(
            teacher.patch_temp,
            teacher.patch_temp,
            teacher.warmup_patch_temp,
            warmup,
            epochs=warmup,
            delay_epochs=config.ibot.mask_start_epoch,
            by_epoch=True,
        )
        return teacher_schedules_of(teacher, by_epoch=True) | {"teacher_patch_temp": patches}

    @classmethod
    def describe(cls, config: IBOTRunConfig) -> str:
        return "pretrained without labels (iBOT)"

    @classmethod
    def recipe(cls, config: IBOTRunConfig) -> dict[str, str | None]:
        teacher, dino, ibot = config.teacher, config.dino, config.ibot
        prototypes = {"CLS": dino.num_prototypes, "patches": ibot.num_prototypes}
        if not ibot.separate_head:
            prototypes = {"CLS and patches": dino.num_prototypes}
        weights = {"CLS": dino.loss_weight, "patches": ibot.loss_weight}
        temperature = {"Teacher temperature of patches": f"{teacher.warmup_patch_temp:g} to {teacher.patch_temp:g}"}
        return teacher_recipe(teacher, weights, prototypes, config.masks) | temperature

    def build_networks(self, student: str, drop_path_rate: float) -> Mapping[str, nn.Module | Backbone]:
        backbone, ibot = self.build_backbone(student, drop_path_rate), self.config.ibot
        own = ibot.num_prototypes if ibot.separate_head else None
        head = IBOTHead(backbone.width, num_patch_prototypes=own, **head_settings(self.config.dino))
        return {"backbone": backbone, "dino_head": head}

    def build_centering(self) -> nn.ModuleDict:
        dino, ibot = self.config.dino, self.config.ibot
        numbers = {"dino": dino.num_prototypes} if dino.loss_weight else {}
        if ibot.loss_weight:
            numbers["ibot"] = (ibot if ibot.separate_teacher_head else dino).num_prototypes
        return build_centers(self.config.teacher, numbers, dino.bottleneck_dim)

    def targets(self, tokens: Tokens, batch: SSLBatch, values: Any) -> dict[str, Assignments]:
        config, masked = self.config, batch.mask_indices
        all_patches = config.dino.batch_norm or "ibot" in self.centering
        patches = tokens.patches if all_patches else tokens.patches.index_select(0, masked)
        of_cls, of_patches = self.teacher["dino_head"](tokens.cls, patches, config.ibot.separate_teacher_head)
        targets = {}
        if config.dino.loss_weight:
            targets["dino"] = assign(config.teacher, self.centering, "dino", of_cls, values.teacher_temp)
        if config.ibot.loss_weight:
            compared = _at(of_patches, masked) if all_patches else of_patches
            targets["ibot"] = assign(
                config.teacher, self.centering, "ibot", compared, values.teacher_patch_temp, of_patches.features
            )
        return targets

    def student_terms(
        self, tokens: Tokens, local_cls: Tensor, batch: SSLBatch, targets: Mapping[str, Assignments]
    ) -> dict[str, Tensor]:
        head, masked = self.student["dino_head"], batch.mask_indices
        all_patches = self.config.dino.batch_norm  # which is over what the published code passes through the head
        patches = tokens.patches if all_patches else tokens.patches.index_select(0, masked)
        of_cls, of_patches = head(tokens.cls, patches)
        num_global, temp = len(tokens.cls), self.config.teacher.student_temp
        terms: dict[str, Tensor] = {}
        if "dino" in targets:
            if len(local_cls):
                of_local, _ = head(local_cls, patches[:0])
                of_cls = Projected(torch.cat((of_cls.features, of_local.features)), of_cls.prototypes)
            terms |= image_terms(of_cls, num_global // NUM_GLOBAL_CROPS, targets["dino"], temp)
        if "ibot" in targets:
            features, prototypes = _at(of_patches, masked) if all_patches else of_patches
            terms["ibot"] = ibot_loss(features, prototypes, targets["ibot"], batch.mask_weights, num_global, temp)
        return terms


def _at(projected: Projected, rows: Tensor) -> Projected:
    """Some rows of what a head has made of features."""
    return Projected(projected.features.index_select(0, rows), projected.prototypes)
