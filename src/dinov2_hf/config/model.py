"""The backbone, and where its weights start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from .checks import IMPORT_FIRST, at_least, choice, positive, share, usual_share
from .limits import check_config
from .paths import path_to

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "giant": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
}
"""Architectures of DINOv2 (Appendix B, table 17): `small`, `base`, `large` and `giant` (ViT-g); `tiny` is ours."""
CHANNELS = ("mean", "repeat", "random")
"""How the first convolution gets another number of channels than that of the source."""
DROP_PATH_SCHEDULES = ("uniform", "linear")
ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2", "flex_attention", "xformers")


@dataclass
class BackboneConfig:
    """The backbone: the keys of every family. A family adds its own."""

    family: str = "dinov2"
    """Family of the backbone."""
    num_channels: int = 3
    """Channels of the images: 3 for colour, 1 for grey, others for arrays (`.npy`, TIFF)."""
    drop_path_rate: float = 0.3
    """Stochastic depth of the student, share of samples left out per layer."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile each layer with torch.compile: faster steps after a start of a minute or more."""

    _OF_TRAINING: ClassVar[tuple[str, ...]] = ("drop_path_rate", "gradient_checkpointing", "compile")

    @classmethod
    def section_for(cls, name: str, values: Mapping[str, Any]) -> BackboneConfig:
        """The section of the family that `values` name.

        Raises:
            ValueError: no family of that name is registered.
        """
        family = values.get("family", "dinov2")
        if family not in FAMILIES:
            raise ValueError(f"{name}.family={family!r} is not one of {', '.join(FAMILIES)}; {IMPORT_FIRST}")
        return FAMILIES[family]()

    @property
    def stride(self) -> int:
        """Pixels between two neighbouring features; sides of crops are multiples of it."""
        raise NotImplementedError(f"{type(self).__name__} does not define its stride")

    @property
    def stride_in_words(self) -> str:
        """What messages call the stride."""
        patch = hasattr(self, "patch_size")
        return (
            f"model.patch_size={self.stride}" if patch else f"{self.stride}, the stride of model.family={self.family}"
        )

    @classmethod
    def shape_keys(cls) -> list[str]:
        """The keys that decide which weights fit; the others are of training only."""
        return [item.name for item in fields(cls) if item.name not in cls._OF_TRAINING]

    def check(self, key: str = "model") -> None:
        """Refuses impossible values of the section `key`."""
        check_config(vars(self), key)
        positive(f"{key}.num_channels", self.num_channels)
        share(f"{key}.drop_path_rate", self.drop_path_rate, below_one=True)


@dataclass
class ModelConfig(BackboneConfig):
    """The vision transformer of DINOv2."""

    preset: str = "large"
    """Architecture: tiny, small, base, large or giant."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    num_register_tokens: int = 4
    """Register tokens; 0 for none."""
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
    drop_path_schedule: str = "uniform"
    """Stochastic depth over the layers: uniform (the same rate in each) or linear (from 0 to the rate)."""
    interpolate_offset: float = 0.0
    """How position embeddings are interpolated for crops of another size than the global ones: 0 to the size, as
    transformers and the released models with registers; 0.1 by the scale factor `(patches + 0.1) / positions`, as the
    released models without registers."""
    attn_implementation: str = "auto"
    """sdpa, eager, flash_attention_2, flex_attention, xformers, or auto: eager on CPUs (faster there), else sdpa."""

    _OF_TRAINING: ClassVar[tuple[str, ...]] = (
        *BackboneConfig._OF_TRAINING,
        "layerscale_value",
        "drop_path_schedule",
        "interpolate_offset",
        "attn_implementation",
    )

    @property
    def stride(self) -> int:
        return self.patch_size

    def check(self, key: str = "model") -> None:
        super().check(key)
        choice(f"{key}.preset", self.preset, tuple(PRESETS))
        positive(f"{key}.patch_size", self.patch_size)
        at_least(f"{key}.num_register_tokens", self.num_register_tokens, 0)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) is not None:
                positive(f"{key}.{name}", getattr(self, name))
        share(f"{key}.interpolate_offset", self.interpolate_offset, below_one=True)
        choice(f"{key}.drop_path_schedule", self.drop_path_schedule, DROP_PATH_SCHEDULES)
        choice(f"{key}.attn_implementation", self.attn_implementation, ATTENTION)

    def architecture(self) -> dict[str, Any]:
        """The arguments of `Dinov2Config.preset` that this section sets, without `preset`."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("family", "preset", "gradient_checkpointing", "compile"):
            values.pop(name)
        values["drop_path_uniform"] = values.pop("drop_path_schedule") == "uniform"
        return values


FAMILIES: dict[str, type[BackboneConfig]] = {"dinov2": ModelConfig}
"""The section `model` of each family of backbones."""


@dataclass
class InitConfig:
    """Where the weights start from; from scratch where `path` is not set."""

    path: str | None = field(default=None, metadata=path_to("model"))
    """A run's output folder or one of its checkpoints (student, teacher and heads go on), a model on the Hub or in a
    folder that transformers loads, one of our exports, or a file: an original `.pth`, timm's, ONNX of ours."""
    heads: bool = True
    """Take the heads too, where the source has them."""
    channels: str | None = None
    """Where the source has another number of channels than `model.num_channels`: mean (each channel gets the mean of
    the source's), repeat (the source's in turn) or random (new); default: refuse. With mean and repeat, an image that
    is the same in every channel after normalisation keeps its features."""
    head_warmup_epochs: float = field(default=1.0, metadata=usual_share("5%"))
    """Where heads are new on a backbone that is not: epochs, or share of the run, in which only they are trained. The
    learning rate of the backbone then rises over `optim.warmup_epochs`."""

    @property
    def idle_lengths(self) -> tuple[str, ...]:
        """Lengths that have no effect."""
        return () if self.path else ("head_warmup_epochs",)

    def check(self) -> None:
        if self.channels is not None:
            choice("init.channels", self.channels, CHANNELS)
            if not self.path:
                raise ValueError(f"init.channels={self.channels} has no effect without init.path; leave it out")
        at_least("init.head_warmup_epochs", self.head_warmup_epochs, 0)
