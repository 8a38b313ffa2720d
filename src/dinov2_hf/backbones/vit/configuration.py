"""Configuration of the vision transformer of DINO and iBOT, in the format of the stock class `ViTModel`."""

from __future__ import annotations

from typing import Any

from ...config import VIT_PRESETS
from ...config.limits import check_config
from ..transformer.configuration import TransformerConfig


class ViTConfig(TransformerConfig):
    """Architecture of a `ViTModel`; `save_pretrained` writes a file that the stock class reads.

    Defaults are those of the stock class; a run states its own. See `Dinov2Config` for the arguments that both have.

    Args:
        intermediate_size: hidden width of the feed-forward network.
        layer_norm_eps: epsilon of the norms; the published DINO and iBOT models have 1e-6.
        interpolate_antialias: smooth when position embeddings are shrunk, as timm does; neither the stock class nor the
            published code does.
        interpolate_offset: 0 interpolates position embeddings to a size, as the stock class does; 0.1 by the scale
            factor `(patches + 0.1) / positions`, as the published code of DINO and iBOT does.
        use_mask_token: whether patches can be masked (iBOT). The stock `ViTModel` leaves the token out.

    Raises:
        ValueError: sizes that do not fit each other or that no model has, named with the rule and a remedy.
    """

    model_type = "vit"
    num_register_tokens = 0

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        image_size: int | tuple[int, int] | list[int] = 224,
        patch_size: int | tuple[int, int] | list[int] = 16,
        num_channels: int = 3,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        drop_path_uniform: bool = False,
        interpolate_antialias: bool = False,
        interpolate_offset: float = 0.0,
        use_mask_token: bool = False,
        **kwargs: Any,
    ) -> None:
        check_config(kwargs, type(self).__name__)  # before a list of labels is made of their number
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.image_size = list(image_size) if isinstance(image_size, tuple) else image_size
        self.patch_size = list(patch_size) if isinstance(patch_size, tuple) else patch_size
        self.num_channels = num_channels
        self.qkv_bias = qkv_bias
        self.drop_path_rate = drop_path_rate
        self.drop_path_uniform = drop_path_uniform
        self.interpolate_antialias = interpolate_antialias
        self.interpolate_offset = interpolate_offset
        self.use_mask_token = use_mask_token
        self._check()

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ViTConfig:
        """The architecture called `name` (a key of `VIT_PRESETS`) with `overrides` on top, feed-forward width 4 D."""
        if name not in VIT_PRESETS:
            raise ValueError(f"preset={name!r} is not known; use one of {', '.join(VIT_PRESETS)}")
        settings = {**VIT_PRESETS[name], **overrides}
        return cls(**{"intermediate_size": 4 * settings["hidden_size"], "layer_norm_eps": 1e-6, **settings})
