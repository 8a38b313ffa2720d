"""The section `model` of the family `resnet`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .checks import choice
from .model import FAMILIES, BackboneConfig

_BASIC = {"layer_type": "basic", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512]}
_BOTTLENECK = {"layer_type": "bottleneck", "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048]}
RESNET_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"layer_type": "basic", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]},
    "resnet18": {**_BASIC, "depths": [2, 2, 2, 2]},
    "resnet34": {**_BASIC, "depths": [3, 4, 6, 3]},
    "resnet50": {**_BOTTLENECK, "depths": [3, 4, 6, 3]},
    "resnet101": {**_BOTTLENECK, "depths": [3, 4, 23, 3]},
    "resnet152": {**_BOTTLENECK, "depths": [3, 8, 36, 3]},
}
"""Architectures of He et al. (2016) as torchvision has them; `tiny` is ours."""


@dataclass
class ResNetModelConfig(BackboneConfig):
    """A residual network, as DINO trains ResNet-50. It takes no masks, and has no stochastic depth."""

    family: str = "resnet"
    drop_path_rate: float = 0.0
    """0: a ResNet has no stochastic depth."""
    preset: str = "resnet50"
    """Architecture: resnet18, resnet34, resnet50, resnet101, resnet152, or tiny for trials on CPUs."""
    depths: list[int] | None = None
    """Residual blocks of each stage in place of the preset's."""
    hidden_sizes: list[int] | None = None
    """Channels of each stage in place of the preset's; those of the last one are the width of the features."""
    embedding_size: int | None = None
    """Channels of the first convolution in place of the preset's."""

    @property
    def stride(self) -> int:
        depths: list[int] = self.architecture()["depths"]
        return 2 << len(depths)

    def check(self, key: str = "model") -> None:
        super().check(key)
        choice(f"{key}.preset", self.preset, tuple(RESNET_PRESETS))
        check_resnet(self.architecture(), f"{key}.")
        if self.drop_path_rate:
            raise ValueError(f"{key}.drop_path_rate={self.drop_path_rate}, and a ResNet has no stochastic depth; set 0")
        if self.gradient_checkpointing and self.compile:
            raise ValueError(
                f"{key}.gradient_checkpointing and {key}.compile together count every batch twice in the running "
                "statistics of a ResNet; switch one off"
            )

    def architecture(self) -> dict[str, Any]:
        """The arguments of `ResNetConfig` that this section sets, without `num_channels`."""
        own = {name: getattr(self, name) for name in ("depths", "hidden_sizes", "embedding_size")}
        return RESNET_PRESETS[self.preset] | {name: value for name, value in own.items() if value is not None}


def check_resnet(architecture: dict[str, Any], prefix: str = "") -> None:
    """Refuses sizes of a ResNet that do not fit each other or that no model has.

    Args:
        architecture: `depths`, `hidden_sizes`, `embedding_size` and `layer_type`.
        prefix: what stands before the names in messages.
    """
    depths, widths = architecture["depths"], architecture["hidden_sizes"]
    if len(depths) != len(widths) or not 1 <= len(depths) <= 8:
        raise ValueError(
            f"{prefix}depths={depths} and {prefix}hidden_sizes={widths} must have a value for each stage, of 1 to 8; "
            "ResNet-50 has [3, 4, 6, 3] and [256, 512, 1024, 2048]"
        )
    for name, values, largest in (
        ("depths", depths, 1_000),
        ("hidden_sizes", widths, 65_536),
        ("embedding_size", [architecture["embedding_size"]], 65_536),
    ):
        for value in values:
            if not isinstance(value, int) or not 1 <= value <= largest:
                raise ValueError(f"{prefix}{name} has {value!r}, which is not a whole number from 1 to {largest:,}")
    choice(f"{prefix}layer_type", architecture["layer_type"], ("basic", "bottleneck"))
    if architecture["layer_type"] == "bottleneck" and any(width % 4 for width in widths):
        raise ValueError(f"{prefix}hidden_sizes={widths}: the channels of bottleneck stages are multiples of 4")


FAMILIES["resnet"] = ResNetModelConfig
