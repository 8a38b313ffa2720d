"""Pretraining with the objective of DINOv2."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import named
from ..run import RunConfig, register_run_config
from ..terms import DinoConfig, IbotConfig, KoleoConfig, PatchConfig, TeacherConfig, TermConfig


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
class DINOv2RunConfig(RunConfig):
    """A pretraining run with the objective of DINOv2: DINO, iBOT and KoLeo."""

    dino: DinoConfig = field(default_factory=DinoConfig)
    ibot: IbotConfig = field(default_factory=IbotConfig)
    koleo: KoleoConfig = field(default_factory=KoleoConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    terms: dict[str, TermConfig] = field(default_factory=dict)
    """Further terms, by the names under which they are registered from outside the package."""

    @property
    def masks(self) -> tuple[float, tuple[float, float]]:
        smallest, largest = self.ibot.mask_ratio
        return (self.ibot.mask_probability if self.ibot.loss_weight else 0.0), (smallest, largest)

    def check(self) -> DINOv2RunConfig:
        super().check()
        check_prototype_terms(self.dino, self.ibot, self.koleo, self.train.batch_size)
        self.teacher.check()
        for name, term in self.terms.items():
            named("terms", name)
            term.check(f"terms.{name}")
        return self
