"""Pretraining with the objective of iBOT; defaults are those of the published `main_ibot.py`, but for crops and masks.

Crops, masks and the shared head are those of the command that the published code gives for ViT-S/16.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data import ColorsConfig, CropsConfig
from ..model import BackboneConfig
from ..run import register_run_config
from ..terms import DinoConfig, Masks, PatchTeacherConfig, SharedPatchConfig
from ..training import OptimConfig
from ..vit import ViTModelConfig
from .dino import dino_colors, dino_optim
from .pretraining import PretrainingRunConfig


def ibot_teacher() -> PatchTeacherConfig:
    """The teacher of the published code."""
    return PatchTeacherConfig(momentum=0.996, centering="softmax", temp=0.04, warmup_temp=0.04)


@register_run_config("ibot")
@dataclass
class IBOTRunConfig(PretrainingRunConfig):
    """A pretraining run with the objective of iBOT."""

    objective: str = "ibot"
    model: BackboneConfig = field(default_factory=ViTModelConfig)
    crops: CropsConfig = field(
        default_factory=lambda: CropsConfig(
            local_size=96, num_local=10, global_scale=[0.25, 1.0], local_scale=[0.05, 0.25]
        )
    )
    colors: ColorsConfig = field(default_factory=dino_colors)
    optim: OptimConfig = field(default_factory=dino_optim)
    dino: DinoConfig = field(default_factory=lambda: DinoConfig(num_prototypes=8192, norm_last_layer=True))
    ibot: SharedPatchConfig = field(default_factory=SharedPatchConfig)
    teacher: PatchTeacherConfig = field(default_factory=ibot_teacher)

    @property
    def masks(self) -> Masks:
        return self.ibot.masks(each_crop=True) if self.ibot.loss_weight else Masks()

    def check(self) -> IBOTRunConfig:
        super().check()
        self.dino.check("dino")
        self.ibot.check("ibot")
        if self.dino.loss_weight == self.ibot.loss_weight == 0:
            raise ValueError(
                "dino.loss_weight=0 and ibot.loss_weight=0 leave nothing to learn from the teacher; switch one on"
            )
        ibot, number = self.ibot, self.dino.num_prototypes
        if ibot.separate_head and not ibot.separate_teacher_head and ibot.num_prototypes != number:
            raise ValueError(
                f"ibot.num_prototypes={ibot.num_prototypes}, but the teacher's targets are over dino.num_prototypes="
                f"{number}; set both alike, or ibot.separate_teacher_head=true"
            )
        return self
