"""The section `model` of the family `vit`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from .checks import choice, positive, share
from .model import ATTENTION, DROP_PATH_SCHEDULES, FAMILIES, BackboneConfig

VIT_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
"""Architectures of the published code of DINO (tiny, small, base) and iBOT (large)."""


@dataclass
class ViTModelConfig(BackboneConfig):
    """The vision transformer of DINO and iBOT: no LayerScale, no registers."""

    family: str = "vit"
    drop_path_rate: float = 0.1
    """Stochastic depth of the student, share of samples left out in the last layer; see `drop_path_schedule`."""
    preset: str = "small"
    """Architecture: tiny, small, base or large."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    hidden_size: int | None = None
    """Width in place of the preset's."""
    num_hidden_layers: int | None = None
    """Depth in place of the preset's."""
    num_attention_heads: int | None = None
    """Heads in place of the preset's."""
    mask_token: bool = True
    """A token for masked patches. Without it the model takes no masks: the masked term has to be off."""
    drop_path_schedule: str = "linear"
    """Stochastic depth over the layers: uniform (the same rate in each) or linear (from 0 to the rate)."""
    interpolate_offset: float = 0.0
    """How position embeddings are interpolated for crops of another size than the global ones: 0 to the size, as the
    stock class does at every size; 0.1 by the scale factor `(patches + 0.1) / positions`, as the published code of DINO
    and iBOT does. An export with 0.1 equals the model at its own size only in stock transformers."""
    attn_implementation: str = "auto"
    """sdpa, eager, flash_attention_2, flex_attention, xformers, or auto: eager on CPUs (faster there), else sdpa."""

    _OF_TRAINING: ClassVar[tuple[str, ...]] = (
        *BackboneConfig._OF_TRAINING,
        "drop_path_schedule",
        "interpolate_offset",
        "attn_implementation",
    )

    @property
    def stride(self) -> int:
        return self.patch_size

    def check(self, key: str = "model") -> None:
        super().check(key)
        choice(f"{key}.preset", self.preset, tuple(VIT_PRESETS))
        positive(f"{key}.patch_size", self.patch_size)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) is not None:
                positive(f"{key}.{name}", getattr(self, name))
        share(f"{key}.interpolate_offset", self.interpolate_offset, below_one=True)
        choice(f"{key}.drop_path_schedule", self.drop_path_schedule, DROP_PATH_SCHEDULES)
        choice(f"{key}.attn_implementation", self.attn_implementation, ATTENTION)

    def architecture(self) -> dict[str, Any]:
        """The arguments of `ViTConfig.preset` that this section sets, without `preset`."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("family", "preset", "gradient_checkpointing", "compile"):
            values.pop(name)
        values["drop_path_uniform"] = values.pop("drop_path_schedule") == "uniform"
        values["use_mask_token"] = values.pop("mask_token")
        return values


FAMILIES["vit"] = ViTModelConfig
