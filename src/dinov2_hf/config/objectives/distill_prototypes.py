"""Distillation over the prototypes of a frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..run import register_run_config
from ..terms import DinoConfig, KoleoConfig, PatchConfig, TeacherConfig
from .dinov2 import check_prototype_terms
from .students import DistillationRunConfig, TeacherPathConfig


@register_run_config("distill_prototypes")
@dataclass
class PrototypeDistillationConfig(DistillationRunConfig):
    """Distillation with the objective of DINOv2 and the heads of a frozen teacher (DINOv2, section 5).

    Nothing is masked: the patch-level term compares all patches of the global crops.
    """

    objective: str = "distill_prototypes"
    distill: TeacherPathConfig = field(default_factory=TeacherPathConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    ibot: PatchConfig = field(default_factory=PatchConfig)
    koleo: KoleoConfig = field(default_factory=KoleoConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def check(self) -> PrototypeDistillationConfig:
        super().check()
        check_prototype_terms(self.dino, self.ibot, self.koleo, self.train.batch_size)
        self.teacher.check()
        return self
