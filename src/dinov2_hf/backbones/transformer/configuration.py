"""What the configurations of vision transformers share: the grid of patches and the rates of stochastic depth."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from ...config.limits import check_config


class TransformerConfig(PreTrainedConfig):
    """Base of the configurations of vision transformers, which set these attributes and call `_check`."""

    if TYPE_CHECKING:  # transformers makes a dataclass of what a class annotates
        hidden_size: int
        num_hidden_layers: int
        num_attention_heads: int
        hidden_dropout_prob: float
        attention_probs_dropout_prob: float
        initializer_range: float
        layer_norm_eps: float
        image_size: int | list[int]
        patch_size: int | list[int]
        num_channels: int
        qkv_bias: bool
        drop_path_rate: float
        drop_path_uniform: bool
        num_register_tokens: int
        interpolate_antialias: bool
        interpolate_offset: float

    @property
    def patch_height_width(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return _pair(self.patch_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches that the position embeddings are made for."""
        return _count_patches(("image_size", "image_size"), _pair(self.image_size), self.patch_height_width)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the first patch: CLS and the registers."""
        return 1 + self.num_register_tokens

    @property
    def drop_path_rates(self) -> list[float]:
        """Stochastic-depth rate of every layer."""
        last = max(self.num_hidden_layers - 1, 1)
        return [
            self.drop_path_rate * (1.0 if self.drop_path_uniform else layer / last)
            for layer in range(self.num_hidden_layers)
        ]

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an input of `height` x `width` pixels.

        Raises:
            ValueError: a side that the patch does not divide.
        """
        return _count_patches(("height", "width"), (height, width), self.patch_height_width)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_config(config, f"the config.json of {pretrained_model_name_or_path}")
        return config, kwargs

    def _check(self) -> None:
        """Refuses sizes that do not fit each other or that no model has."""
        check_config(vars(self), type(self).__name__)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number above 0; use that of the published model")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}; "
                "use heads of 64 channels, num_attention_heads = hidden_size / 64"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} is not in [0, 1); published runs use 0.3 and 0.4")
        _ = self.grid_size  # refuses an image size that the patch does not divide


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _count_patches(names: tuple[str, str], sides: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches; refuses a side that its patch does not divide."""
    for name, side, step in zip(names, sides, patch):
        if side < step or side % step:
            below, above = side // step * step, (side // step + 1) * step
            remedy = f"use {below} or {above}" if below else f"use {above}"
            raise ValueError(f"{name}={side} is not a multiple of patch_size={step}; {remedy}")
    return sides[0] // patch[0], sides[1] // patch[1]
