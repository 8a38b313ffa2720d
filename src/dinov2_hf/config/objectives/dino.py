"""Pretraining with the objective of DINO; the defaults are those of the published `main_dino.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data import ColorsConfig, CropsConfig
from ..model import BackboneConfig
from ..run import register_run_config
from ..terms import HeadConfig, TeacherConfig
from ..training import OptimConfig
from ..vit import ViTModelConfig
from .pretraining import PretrainingRunConfig

BLUR = (1.0, 0.1, 0.5)
"""Probability of blur in global view 1, global view 2 and local views, in the published codes of DINO and iBOT."""


def dino_optim() -> OptimConfig:
    """The optimiser and its schedules in the published codes of DINO and iBOT."""
    return OptimConfig(
        base_lr=5e-4,
        lr_rule="linear",
        clip_by="parameter",
        layerwise_decay=1.0,
        patch_embed_lr_mult=1.0,
        freeze_last_layer_by="gradients",
    )


def dino_colors() -> ColorsConfig:
    """The colours in the published codes of DINO and iBOT."""
    return ColorsConfig(blur_probability=list(BLUR))


def dino_teacher() -> TeacherConfig:
    """The teacher of the published code of DINO, whose temperature is constant by default."""
    return TeacherConfig(momentum=0.996, centering="softmax", temp=0.04, warmup_temp=0.04, warmup_temp_epochs=0)


@register_run_config("dino")
@dataclass
class DINORunConfig(PretrainingRunConfig):
    """A pretraining run with the objective of DINO."""

    objective: str = "dino"
    model: BackboneConfig = field(default_factory=lambda: ViTModelConfig(mask_token=False))
    crops: CropsConfig = field(
        default_factory=lambda: CropsConfig(local_size=96, global_scale=[0.4, 1.0], local_scale=[0.05, 0.4])
    )
    colors: ColorsConfig = field(default_factory=dino_colors)
    optim: OptimConfig = field(default_factory=dino_optim)
    dino: HeadConfig = field(default_factory=lambda: HeadConfig(norm_last_layer=True))
    teacher: TeacherConfig = field(default_factory=dino_teacher)

    def check(self) -> DINORunConfig:
        super().check()
        self.dino.check("dino")
        return self
