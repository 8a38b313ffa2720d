"""Pretraining without prototypes (SimDINO); the defaults are those of its published `main_dino.py` and command."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..checks import at_least, choice, positive
from ..data import ColorsConfig, CropsConfig
from ..model import BackboneConfig
from ..run import register_run_config
from ..terms import MaskConfig, Masks, MomentumConfig
from ..training import OptimConfig
from ..vit import ViTModelConfig
from .dino import dino_colors, dino_optim
from .pretraining import PretrainingRunConfig


@dataclass
class ProjectionConfig:
    """The image-level term and its head, which is an MLP without prototypes."""

    loss_weight: float = 1.0
    """Weight in the objective; 0 switches the term off."""
    hidden_dim: int = 2048
    """Width of the hidden layers."""
    bottleneck_dim: int = 256
    """Width in which student and teacher are compared."""
    num_layers: int = 3
    """Linear layers."""
    batch_norm: bool = False
    """Batch norm after each hidden layer, over the samples of all processes."""

    def check(self, section: str) -> None:
        at_least(f"{section}.loss_weight", self.loss_weight, 0)
        for name in ("hidden_dim", "bottleneck_dim", "num_layers"):
            positive(f"{section}.{name}", getattr(self, name))


@dataclass
class CodingRateConfig:
    """The coding rate of the CLS projections of each global view, over the images of all processes."""

    loss_weight: float = 1.0
    """Weight in the objective, in units of 1/d + 1/n (d: `dino.bottleneck_dim`, n: images of a batch of all processes);
    0 switches the term off, and nothing keeps the features from becoming equal."""
    eps: float = 0.05
    """Mean squared distortion: the square of the paper's epsilon, `eps` of the published code. Smaller: the features
    spread over more directions."""
    features: str = "student"
    """Whose projections: student, or mean (of student and teacher, as in the published code)."""

    def check(self, section: str) -> None:
        at_least(f"{section}.loss_weight", self.loss_weight, 0)
        positive(f"{section}.eps", self.eps)
        choice(f"{section}.features", self.features, ("student", "mean"))


@dataclass
class MaskedPatchConfig(MaskConfig):
    """The patch-level term of SimDINOv2, on the head of the image-level term, and its masks."""

    loss_weight: float = 0.0
    """Weight in the objective; 0 switches the term off, and nothing is masked. SimDINOv2: 1."""

    def check(self, section: str) -> None:
        at_least(f"{section}.loss_weight", self.loss_weight, 0)
        self.check_masks(section)


@register_run_config("simdino")
@dataclass
class SimDINORunConfig(PretrainingRunConfig):
    """A pretraining run with the objective of SimDINO, or with masked patches of SimDINOv2."""

    objective: str = "simdino"
    model: BackboneConfig = field(default_factory=ViTModelConfig)
    crops: CropsConfig = field(
        default_factory=lambda: CropsConfig(
            local_size=96, num_local=10, global_scale=[0.4, 1.0], local_scale=[0.05, 0.4]
        )
    )
    colors: ColorsConfig = field(default_factory=dino_colors)
    optim: OptimConfig = field(default_factory=lambda: replace(dino_optim(), freeze_last_layer_epochs=0))
    dino: ProjectionConfig = field(default_factory=ProjectionConfig)
    coding_rate: CodingRateConfig = field(default_factory=CodingRateConfig)
    ibot: MaskedPatchConfig = field(default_factory=MaskedPatchConfig)
    teacher: MomentumConfig = field(default_factory=lambda: MomentumConfig(momentum=0.996))

    @property
    def masks(self) -> Masks:
        return self.ibot.masks(each_crop=False) if self.ibot.loss_weight else Masks()

    def check(self) -> SimDINORunConfig:
        super().check()
        self.dino.check("dino")
        self.coding_rate.check("coding_rate")
        self.ibot.check("ibot")
        if self.dino.loss_weight == self.ibot.loss_weight == 0:
            raise ValueError(
                "dino.loss_weight=0 and ibot.loss_weight=0 leave nothing to learn from the teacher; switch one on"
            )
        return self
