"""Pretraining with the objective of DINOv2."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..run import register_run_config
from ..terms import DinoConfig, IbotConfig, KoleoConfig, Masks, PatchConfig, TeacherConfig
from .pretraining import PretrainingRunConfig


def check_prototype_terms(dino: DinoConfig, ibot: PatchConfig, koleo: KoleoConfig, batch_size: int) -> None:
    """Refuses weights of the terms that leave nothing to learn, and KoLeo without neighbours."""
    dino.check("dino")
    ibot.check("ibot")
    koleo.check("koleo")
    if dino.loss_weight == ibot.loss_weight == 0:
        raise ValueError(
            "dino.loss_weight=0 and ibot.loss_weight=0 leave nothing to learn from the teacher; switch one on"
        )
    if koleo.loss_weight and batch_size < 2:
        raise ValueError(
            f"train.batch_size={batch_size} leaves KoLeo without neighbours; use 2 or more, or koleo.loss_weight=0"
        )


@register_run_config("dinov2")
@dataclass
class DINOv2RunConfig(PretrainingRunConfig):
    """A pretraining run with the objective of DINOv2: DINO, iBOT and KoLeo."""

    dino: DinoConfig = field(default_factory=DinoConfig)
    ibot: IbotConfig = field(default_factory=IbotConfig)
    koleo: KoleoConfig = field(default_factory=KoleoConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    @property
    def masks(self) -> Masks:
        return self.ibot.masks(each_crop=False) if self.ibot.loss_weight else Masks()

    def check(self) -> DINOv2RunConfig:
        super().check()
        check_prototype_terms(self.dino, self.ibot, self.koleo, self.train.batch_size)
        return self
