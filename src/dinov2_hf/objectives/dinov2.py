"""The objective of DINOv2 over a student and its moving average (Oquab et al., 2023, section 4).

Axes: `B` images, `D` width, `M` masked patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..backbones import Backbone, Tokens
from ..config import DINOv2RunConfig
from ..data import SSLBatch
from .base import Scheduled, Term, register_objective
from .pretraining import Pretraining
from .prototypes import (
    build_centering,
    build_heads,
    prototype_recipe,
    prototype_targets,
    prototype_terms,
    prototype_terms_of,
    teacher_schedules_of,
)
from .terms import Assignments


@register_objective("dinov2")
class DINOv2(Pretraining[DINOv2RunConfig]):
    """DINO, iBOT and KoLeo.

    `student` and `teacher` hold a `backbone`, a `dino_head` and, if iBOT has a head of its own, an `ibot_head`.
    """

    @classmethod
    def own_terms_of(cls, config: DINOv2RunConfig) -> dict[str, Term]:
        return prototype_terms_of(config)

    @classmethod
    def schedules_of(cls, config: DINOv2RunConfig) -> dict[str, Scheduled]:
        return teacher_schedules_of(config.teacher)

    @classmethod
    def describe(cls, config: DINOv2RunConfig) -> str:
        return "pretrained without labels (DINO + iBOT + KoLeo)"

    @classmethod
    def recipe(cls, config: DINOv2RunConfig) -> dict[str, str | None]:
        return prototype_recipe(config, config.masks)

    def build_networks(self, student: str, drop_path_rate: float) -> Mapping[str, nn.Module | Backbone]:
        backbone = self.build_backbone(student, drop_path_rate)
        return {"backbone": backbone, **build_heads(self.config, backbone.width)}

    def build_centering(self) -> nn.ModuleDict:
        return build_centering(self.config)

    def targets(self, tokens: Tokens, batch: SSLBatch, values: Any) -> dict[str, Assignments]:
        return prototype_targets(self.config, self.teacher, self.centering, tokens, values.teacher_temp)

    def student_terms(
        self, tokens: Tokens, local_cls: Tensor, batch: SSLBatch, targets: Mapping[str, Assignments]
    ) -> dict[str, Tensor]:
        return prototype_terms(self.config, self.student, tokens, local_cls, batch.mask_weights, targets)
