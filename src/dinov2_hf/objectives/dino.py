"""The objective of DINO over a student and its moving average (Caron et al., 2021, section 3.1).

Axes: `B` images, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Backbone, Tokens
from ..config import DINORunConfig, Masks
from ..data import SSLBatch
from .base import Scheduled, Term, register_objective
from .pretraining import Pretraining
from .prototypes import (
    assign,
    build_centers,
    build_head,
    image_terms,
    image_terms_of,
    teacher_recipe,
    teacher_schedules_of,
)
from .terms import NUM_GLOBAL_CROPS, Assignments


@register_objective("dino")
class DINO(Pretraining[DINORunConfig]):
    """CLS of every crop against the teacher's CLS of the global crops.

    `student` and `teacher` hold a `backbone` and a `dino_head`.
    """

    @classmethod
    def own_terms_of(cls, config: DINORunConfig) -> dict[str, Term]:
        return image_terms_of(1.0, config.crops.num_local)

    @classmethod
    def schedules_of(cls, config: DINORunConfig) -> dict[str, Scheduled]:
        return teacher_schedules_of(config.teacher, by_epoch=True)

    @classmethod
    def describe(cls, config: DINORunConfig) -> str:
        return "pretrained without labels (DINO)"

    @classmethod
    def recipe(cls, config: DINORunConfig) -> dict[str, str | None]:
        return teacher_recipe(config.teacher, {}, {"DINO": config.dino.num_prototypes}, Masks())

    def build_networks(self, student: str, drop_path_rate: float) -> Mapping[str, nn.Module | Backbone]:
        backbone = self.build_backbone(student, drop_path_rate)
        return {"backbone": backbone, "dino_head": build_head(self.config.dino, backbone.width)}

    def build_centering(self) -> nn.ModuleDict:
        dino = self.config.dino
        return build_centers(self.config.teacher, {"dino": dino.num_prototypes}, dino.bottleneck_dim)

    def targets(self, tokens: Tokens, batch: SSLBatch, values: Any) -> dict[str, Assignments]:
        projected = self.teacher["dino_head"](tokens.cls)
        return {"dino": assign(self.config.teacher, self.centering, "dino", projected, values.teacher_temp)}

    def student_terms(
        self, tokens: Tokens, local_cls: Tensor, batch: SSLBatch, targets: Mapping[str, Assignments]
    ) -> dict[str, Tensor]:
        projected = self.student["dino_head"](torch.cat((tokens.cls, local_cls)))
        num_images = len(tokens.cls) // NUM_GLOBAL_CROPS
        return image_terms(projected, num_images, targets["dino"], self.config.teacher.student_temp)
