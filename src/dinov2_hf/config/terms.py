"""Heads, terms of the loss and the teacher of the objectives over prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .checks import IMPORT_FIRST, at_least, choice, interval, positive, share, usual_share


class Masks(NamedTuple):
    """How patches of the global crops are masked, see `data.masking`."""

    probability: float = 0.0
    """Share of the global crops that are masked."""
    ratio: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest share of masked patches in a masked crop."""
    shape: str = "block"
    """block or random."""
    start_epoch: float = 0.0
    """Epochs at the start in which nothing is masked."""
    each_crop: bool = False
    """Every crop is drawn by itself, as in iBOT, or the batch as a whole, as in DINOv2."""


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
    batch_norm: bool = False
    """Batch norm after each hidden layer, over the samples of all processes."""
    norm_last_layer: bool = False
    """Fix the lengths of the prototypes at 1; otherwise they are trained, and decayed as weights are."""

    def check(self, section: str) -> None:
        for name in ("num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers"):
            positive(f"{section}.{name}", getattr(self, name))


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
class MaskConfig:
    """Which patches of the global crops are masked."""

    mask_probability: float = 0.5
    """Share of the global crops that are masked."""
    mask_ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """Smallest and largest share of masked patches in a masked crop."""
    mask_shape: str = "block"
    """block: rectangles laid over each other; random: single patches anywhere."""
    mask_start_epoch: float = field(default=0, metadata=usual_share("5%"))
    """Epochs at the start, or share of the run, in which nothing is masked."""

    def check_masks(self, section: str) -> None:
        share(f"{section}.mask_probability", self.mask_probability)
        interval(f"{section}.mask_ratio", self.mask_ratio, 0, 1)
        choice(f"{section}.mask_shape", self.mask_shape, ("block", "random"))
        at_least(f"{section}.mask_start_epoch", self.mask_start_epoch, 0)

    def masks(self, each_crop: bool) -> Masks:
        """How they are drawn: crop by crop, or over the whole batch, see `Masks.each_crop`."""
        smallest, largest = self.mask_ratio
        return Masks(self.mask_probability, (smallest, largest), self.mask_shape, self.mask_start_epoch, each_crop)


@dataclass
class IbotConfig(MaskConfig, PatchConfig):
    """The patch-level term, its head and its masks."""

    def check(self, section: str) -> None:
        super().check(section)
        self.check_masks(section)


@dataclass
class SharedPatchConfig(MaskConfig):
    """The patch-level term of iBOT on the head of the image-level term, and its masks."""

    loss_weight: float = 1.0
    """Weight in the objective; 0 switches the term off."""
    separate_head: bool = False
    """Prototypes of its own behind the MLP of the DINO head, or those of the DINO head."""
    separate_teacher_head: bool = False
    """The same for the teacher's targets. The published code can have a student with prototypes of its own for patches
    whose targets are over the teacher's prototypes for CLS; the two must be of the same number then."""
    num_prototypes: int = 8192
    """Prototypes of its own, where `separate_head` is set."""

    def check(self, section: str) -> None:
        at_least(f"{section}.loss_weight", self.loss_weight, 0)
        positive(f"{section}.num_prototypes", self.num_prototypes)
        self.check_masks(section)
        if self.separate_teacher_head and not self.separate_head:
            raise ValueError(
                f"{section}.separate_teacher_head=True needs prototypes of the patches that the student learns; set "
                f"{section}.separate_head=true too"
            )


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
    """sinkhorn_knopp, softmax (a running mean of the logits is subtracted), or none."""
    center_momentum: float = 0.9
    """Momentum of the running mean of softmax centering."""
    sinkhorn_queue: int = 0
    """CLS of earlier updates, two for each image, that Sinkhorn-Knopp balances together with those of an update once
    there are so many, where an update has fewer of them than prototypes; 0: none. Their bottleneck features are kept,
    and compared with the present prototypes; they shape the targets and have none themselves. Patches need none: an
    update has many. Best a multiple of twice the images of an update."""
    temp: float = 0.07
    """Temperature after the warm-up."""
    warmup_temp: float = 0.04
    """Temperature at the start."""
    warmup_temp_epochs: float = field(default=30, metadata=usual_share("30%"))
    """Length of the straight line between the two, in epochs or as a share of the run: `30%`."""
    target_entropy: float | None = None
    """Mean entropy of the targets, as a share of its maximum, to which the temperature is led: of each term it is the
    temperature above times a factor between 1/20 and 20, which is logged as `teacher_temp/<term>`; off by default.
    Sinkhorn-Knopp cannot go below 1 - ln(samples of an update and its queue) / ln(prototypes)."""
    student_temp: float = 0.1
    """Temperature of the student."""

    @property
    def idle_lengths(self) -> tuple[str, ...]:
        """Lengths that have no effect."""
        return ("warmup_temp_epochs",) if self.temp == self.warmup_temp else ()

    def check(self) -> None:
        super().check()
        choice("teacher.centering", self.centering, ("sinkhorn_knopp", "softmax", "none"))
        share("teacher.center_momentum", self.center_momentum)
        for name in ("temp", "warmup_temp", "student_temp"):
            positive(f"teacher.{name}", getattr(self, name))
        at_least("teacher.warmup_temp_epochs", self.warmup_temp_epochs, 0)
        at_least("teacher.sinkhorn_queue", self.sinkhorn_queue, 0)
        if self.sinkhorn_queue and self.centering != "sinkhorn_knopp":
            raise ValueError(
                f"teacher.sinkhorn_queue={self.sinkhorn_queue} is not read with teacher.centering={self.centering}; "
                "leave it out, or set teacher.centering=sinkhorn_knopp"
            )
        if self.target_entropy is not None and not 0 < self.target_entropy < 1:
            raise ValueError(
                f"teacher.target_entropy={self.target_entropy} is not in (0, 1); it is a share of the maximum, "
                "such as 0.8"
            )


@dataclass
class PatchTeacherConfig(TeacherConfig):
    """The teacher, with a temperature of its own for patches."""

    patch_temp: float = 0.07
    """Temperature of patches after the warm-up."""
    warmup_patch_temp: float = 0.04
    """Temperature of patches at the start, and until patches are masked (`ibot.mask_start_epoch`)."""

    @property
    def idle_lengths(self) -> tuple[str, ...]:
        return super().idle_lengths if self.patch_temp == self.warmup_patch_temp else ()

    def check(self) -> None:
        super().check()
        for name in ("patch_temp", "warmup_patch_temp"):
            positive(f"teacher.{name}", getattr(self, name))


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
