"""Distillation of the features of any frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import at_least
from ..run import register_run_config
from ..terms import MomentumConfig
from .students import DistillationRunConfig, TeacherPathConfig


@dataclass
class FeatureTeacherConfig(TeacherPathConfig):
    """The frozen teacher, and the weights of what is learnt from it."""

    cls_weight: float = 1.0
    """Weight of the CLS features; 0 switches them off."""
    patch_weight: float = 1.0
    """Weight of the patch features; 0 switches them off."""
    cosine_weight: float = 0.9
    """Weight of one minus the cosine, in both."""
    smooth_l1_weight: float = 0.1
    """Weight of the smooth L1 distance, in both."""

    def check(self) -> None:
        super().check()
        for name in ("cls_weight", "patch_weight", "cosine_weight", "smooth_l1_weight"):
            at_least(f"distill.{name}", getattr(self, name), 0)
        if not (max(self.cls_weight, self.patch_weight) and max(self.cosine_weight, self.smooth_l1_weight)):
            raise ValueError(
                "distill: the weights leave nothing to learn; set one of cls_weight and patch_weight, and "
                "one of cosine_weight and smooth_l1_weight"
            )


@register_run_config("distill_features")
@dataclass
class FeatureDistillationConfig(DistillationRunConfig):
    """Distillation of the CLS and patch features of any frozen backbone; the moving average is what is exported."""

    objective: str = "distill_features"
    distill: FeatureTeacherConfig = field(default_factory=FeatureTeacherConfig)
    teacher: MomentumConfig = field(default_factory=MomentumConfig)

    def check(self) -> FeatureDistillationConfig:
        super().check()
        self.teacher.check()
        if self.crops.num_local:
            raise ValueError(
                f"crops.num_local={self.crops.num_local}: features are compared on global crops only; use 0"
            )
        return self
