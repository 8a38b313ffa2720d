"""Heads, terms of the loss and the teacher of the objectives over prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .checks import IMPORT_FIRST, at_least, choice, interval, positive, share


@dataclass
class HeadConfig:
    """A projection head: MLP, bottleneck, prototypes."""

    num_prototypes: int = 65536
    """Outputs K."""
    hidden_dim: int = 2048
    """Width of the hidden layers."""
    bottleneck_dim: int = 256
    """Width before the prototypes."""
    num_layers: int = 3
    """Linear layers before the prototypes."""

    def check(self, section: str) -> None:
        for item in fields(HeadConfig):
            positive(f"{section}.{item.name}", getattr(self, item.name))


@dataclass
class DinoConfig(HeadConfig):
    """The image-level term and its head."""

    loss_weight: float = 1.0
    """Weight in the objective; 0 switches the term off."""

    def check(self, section: str) -> None:
        super().check(section)
        at_least(f"{section}.loss_weight", self.loss_weight, 0)


@dataclass
class PatchConfig(DinoConfig):
    """The patch-level term and its head."""

    separate_head: bool = False
    """A head of its own, with the sizes given here, or the DINO head."""


@dataclass
class IbotConfig(PatchConfig):
    """The patch-level term, its head and its masks."""

    mask_probability: float = 0.5
    """Share of the global crops that are masked."""
    mask_ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """Smallest and largest share of masked patches in a masked crop."""

    def check(self, section: str) -> None:
        super().check(section)
        share(f"{section}.mask_probability", self.mask_probability)
        interval(f"{section}.mask_ratio", self.mask_ratio, 0, 1)


@dataclass
class KoleoConfig:
    """The KoLeo regulariser on the student's CLS of each global view."""

    loss_weight: float = 0.1
    """Weight in the objective; 0 switches the term off."""
    distributed: bool = False
    """Look for the nearest neighbour in the batches of all processes; published: in that of one GPU."""

    def check(self, section: str) -> None:
        at_least(f"{section}.loss_weight", self.loss_weight, 0)


@dataclass
class MomentumConfig:
    """The teacher as an average of the student, mostly an exponential moving one (EMA)."""

    update: str = "momentum"
    """What the teacher is: momentum (EMA of the student), previous_update (the student one update before), or
    previous_epoch (the student at the end of the epoch before)."""
    momentum: float = 0.992
    """EMA momentum at the start; read with update=momentum, as the next."""
    final_momentum: float = 1.0
    """EMA momentum at the end (cosine)."""

    def check(self) -> None:
        choice("teacher.update", self.update, ("momentum", "previous_update", "previous_epoch"))
        share("teacher.momentum", self.momentum)
        share("teacher.final_momentum", self.final_momentum)


@dataclass
class TeacherConfig(MomentumConfig):
    """The teacher: targets and exponential moving average."""

    centering: str = "sinkhorn_knopp"
    """sinkhorn_knopp or softmax."""
    temp: float = 0.07
    """Temperature after the warm-up."""
    warmup_temp: float = 0.04
    """Temperature at the start."""
    warmup_temp_epochs: float = 30
    """Length of the straight line between the two, in epochs."""
    student_temp: float = 0.1
    """Temperature of the student."""

    def check(self) -> None:
        super().check()
        choice("teacher.centering", self.centering, ("sinkhorn_knopp", "softmax"))
        for name in ("temp", "warmup_temp", "student_temp"):
            positive(f"teacher.{name}", getattr(self, name))
        at_least("teacher.warmup_temp_epochs", self.warmup_temp_epochs, 0)


TERMS: dict[str, type[TermConfig]] = {}
"""The section of each term that is registered from outside the package."""


@dataclass
class TermConfig:
    """A further term of the objective, from outside the package: see `objectives.register_term`."""

    weight: float = 1.0
    """Weight in the objective."""

    @classmethod
    def section_for(cls, name: str, values: Mapping[str, Any]) -> TermConfig:
        """The section of the term `name`.

        Raises:
            ValueError: no term of that name is registered.
        """
        if name not in TERMS:
            known = ", ".join(TERMS) or "none"
            raise ValueError(f"terms.{name}: no term of that name is registered (there is {known}); {IMPORT_FIRST}")
        return TERMS[name]()

    def check(self, key: str) -> None:
        """Refuses impossible values of the section `key`."""
        at_least(f"{key}.weight", self.weight, 0)
