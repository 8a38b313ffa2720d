"""What is trained: backbone, where it starts, heads, objective, teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .checks import at_least, choice, positive, share


@dataclass
class ModelConfig:
    """The backbone."""

    preset: str = "large"
    """Architecture: tiny, small, base, large or giant."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    num_register_tokens: int = 4
    """Register tokens; 0 for none."""
    num_channels: int = 3
    """Channels of the images: 3 for colour, 1 for grey, others for arrays (`.npy`, TIFF)."""
    hidden_size: int | None = None
    """Width in place of the preset's."""
    num_hidden_layers: int | None = None
    """Depth in place of the preset's."""
    num_attention_heads: int | None = None
    """Heads in place of the preset's."""
    use_swiglu_ffn: bool | None = None
    """SwiGLU (true) or MLP (false) in place of the preset's."""
    layerscale_value: float = 1e-5
    """Initial LayerScale."""
    drop_path_rate: float = 0.3
    """Stochastic depth of the student, share of samples left out per layer."""
    drop_path_uniform: bool = True
    """The same rate in every layer, or a linear rise from 0."""
    attn_implementation: str = "auto"
    """sdpa, eager, flash_attention_2, flex_attention, xformers, or auto: eager on CPUs (faster there), else sdpa."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile each layer with torch.compile: faster steps after a start of a minute or more."""

    def check(self) -> None:
        choice("model.preset", self.preset, ("tiny", "small", "base", "large", "giant"))
        positive("model.patch_size", self.patch_size)
        at_least("model.num_register_tokens", self.num_register_tokens, 0)
        share("model.drop_path_rate", self.drop_path_rate, below_one=True)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) is not None:
                positive(f"model.{name}", getattr(self, name))
        implementations = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention", "xformers")
        choice("model.attn_implementation", self.attn_implementation, implementations)
        positive("model.num_channels", self.num_channels)

    def architecture(self) -> dict[str, Any]:
        """The arguments of `Dinov2Config.preset` that this section sets, `preset` aside."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("preset", "gradient_checkpointing", "compile"):
            values.pop(name)
        return values


@dataclass
class InitConfig:
    """Where the weights start from; from scratch where `path` is not set."""

    path: str | None = None
    """A run's output folder or one of its checkpoints (student, teacher and heads go on), a model on the Hub or in a
    folder that transformers loads, one of our exports, or a file: an original `.pth`, timm's, ONNX of ours."""
    heads: bool = True
    """Take the heads too, where the source has them."""
    head_warmup_epochs: float = 1.0
    """Where heads start anew on a backbone that does not: epochs in which they alone are trained. The learning rate of
    the backbone then rises over `optim.warmup_epochs`."""

    def check(self) -> None:
        at_least("init.head_warmup_epochs", self.head_warmup_epochs, 0)


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
    """The image-level objective and its head."""

    loss_weight: float = 1.0
    """Weight in the objective; 0 switches the term off."""


@dataclass
class IbotConfig(HeadConfig):
    """The patch-level objective, its head and its masks."""

    loss_weight: float = 1.0
    """Weight in the objective; 0 switches the term, and the masks, off."""
    separate_head: bool = False
    """A head of its own, with the sizes given here, or the DINO head."""
    mask_probability: float = 0.5
    """Share of the global crops that are masked."""
    mask_ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """Smallest and largest share of masked patches in a masked crop."""


@dataclass
class KoleoConfig:
    """The KoLeo regulariser on the student's CLS of each global view."""

    loss_weight: float = 0.1
    """Weight in the objective; 0 switches the term off."""
    distributed: bool = False
    """Look for the nearest neighbour in the batches of all processes; published: in that of one GPU."""


@dataclass
class TeacherConfig:
    """The teacher: targets and exponential moving average."""

    centering: str = "sinkhorn_knopp"
    """sinkhorn_knopp or softmax."""
    temp: float = 0.07
    """Temperature after the warm-up."""
    warmup_temp: float = 0.04
    """Temperature at the start."""
    warmup_temp_epochs: float = 30
    """Length of the straight line between the two, in epochs."""
    momentum: float = 0.992
    """EMA momentum at the start."""
    final_momentum: float = 1.0
    """EMA momentum at the end (cosine)."""
    student_temp: float = 0.1
    """Temperature of the student."""

    def check(self) -> None:
        choice("teacher.centering", self.centering, ("sinkhorn_knopp", "softmax"))
        for name in ("temp", "warmup_temp", "student_temp"):
            positive(f"teacher.{name}", getattr(self, name))
        at_least("teacher.warmup_temp_epochs", self.warmup_temp_epochs, 0)
        share("teacher.momentum", self.momentum)
        share("teacher.final_momentum", self.final_momentum)


@dataclass
class DistillationConfig:
    """The frozen teacher of a distillation, and what is learnt from it."""

    teacher: str | None = None
    """With prototypes: a run, one of our exports or an original `.pth`, with its heads. With features: also any vision
    transformer that `AutoModel` loads, on the Hub or in a folder."""
    objective: str = "prototypes"
    """prototypes: the pretraining objective with the teacher's heads. features: its CLS and patch features."""
    cls_weight: float = 1.0
    """Weight of the CLS features; 0 switches them off."""
    patch_weight: float = 1.0
    """Weight of the patch features; 0 switches them off."""
    cosine_weight: float = 0.9
    """Weight of one minus the cosine, in both."""
    smooth_l1_weight: float = 0.1
    """Weight of the smooth L1 distance, in both."""

    def check(self) -> None:
        if not self.teacher:
            raise ValueError("distill.teacher is not set; give a run, an export with heads, or a model on the Hub")
        choice("distill.objective", self.objective, ("prototypes", "features"))
        for name in ("cls_weight", "patch_weight", "cosine_weight", "smooth_l1_weight"):
            at_least(f"distill.{name}", getattr(self, name), 0)
        if self.objective == "features" and not (
            max(self.cls_weight, self.patch_weight) and max(self.cosine_weight, self.smooth_l1_weight)
        ):
            raise ValueError(
                "distill: the weights leave nothing to learn; set one of cls_weight and patch_weight, and "
                "one of cosine_weight and smooth_l1_weight"
            )
