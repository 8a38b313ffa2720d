"""Configuration of the DINOv2 vision transformer, in the interchange format of the published checkpoints."""

from __future__ import annotations

from os import PathLike
from typing import Any

from transformers.backbone_utils import BackboneConfigMixin

from ...config import PRESETS
from ...config.limits import check_config
from ..transformer.configuration import TransformerConfig

_WITHOUT_REGISTERS = "dinov2"
_WITH_REGISTERS = "dinov2_with_registers"


class Dinov2Config(BackboneConfigMixin, TransformerConfig):
    """Architecture of a `Dinov2Model`; `save_pretrained` writes a file that the stock transformers classes read.

    The `model_type` that is written is `dinov2_with_registers` when there are register tokens and `dinov2` otherwise;
    both are read back. The defaults of the position-embedding rule are those of the stock class of that type.

    Args:
        hidden_size: width D of the tokens.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: number of heads; must divide `hidden_size`.
        mlp_ratio: hidden width of the feed-forward network as a multiple of D (an integer, as the stock class asks).
        use_swiglu_ffn: SwiGLU in place of the MLP, with two thirds of its hidden width rounded up to a multiple of 8.
        num_register_tokens: number of register tokens (Darcet et al., 2023, "Vision Transformers Need Registers").
        image_size: height and width in pixels that the position embeddings are made for; an int means a square.
        patch_size: height and width of a patch in pixels; an int means a square.
        num_channels: channels of the input.
        qkv_bias: bias of the query, key and value projections.
        layerscale_value: initial value of LayerScale; 1e-5 to train from scratch, 1.0 is what finished models carry.
        drop_path_rate: share of the samples whose residual branch is left out in training, in [0, 1).
        drop_path_uniform: the same rate in every layer (as published) instead of a linear rise from 0.
        interpolate_antialias: smooth when position embeddings are shrunk. Default: True with registers, else False.
        interpolate_offset: 0 interpolates position embeddings to a size; another value (the original checkpoints
            without registers: 0.1) interpolates by the scale factor `(patches + offset) / positions`.
        hidden_dropout_prob: dropout after the projections; DINOv2 trains without.
        attention_probs_dropout_prob: dropout of the attention; DINOv2 trains without.
        initializer_range: standard deviation of the truncated normal of weights and position embeddings.
        out_features: names of the feature maps of a `Dinov2Backbone`, such as `stage12`.
        out_indices: their numbers, in place of the names.
        apply_layernorm: whether a `Dinov2Backbone` normalises its feature maps.
        reshape_hidden_states: whether its feature maps are `[B, D, h, w]`; otherwise tokens `[B, T, D]`.

    Raises:
        ValueError: sizes that do not fit each other or that no model has, named with the rule and a remedy.
    """

    model_type = _WITHOUT_REGISTERS

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        mlp_ratio: int = 4,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-6,
        image_size: int | tuple[int, int] | list[int] = 224,
        patch_size: int | tuple[int, int] | list[int] = 14,
        num_channels: int = 3,
        qkv_bias: bool = True,
        layerscale_value: float = 1.0,
        drop_path_rate: float = 0.0,
        drop_path_uniform: bool = True,
        use_swiglu_ffn: bool = False,
        num_register_tokens: int = 0,
        interpolate_antialias: bool | None = None,
        interpolate_offset: float = 0.0,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        apply_layernorm: bool = True,
        reshape_hidden_states: bool = True,
        **kwargs: Any,
    ) -> None:
        check_config(kwargs, type(self).__name__)  # before a list of labels is made of their number
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.mlp_ratio = mlp_ratio
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.image_size = list(image_size) if isinstance(image_size, tuple) else image_size
        self.patch_size = list(patch_size) if isinstance(patch_size, tuple) else patch_size
        self.num_channels = num_channels
        self.qkv_bias = qkv_bias
        self.layerscale_value = layerscale_value
        self.drop_path_rate = drop_path_rate
        self.drop_path_uniform = drop_path_uniform
        self.use_swiglu_ffn = use_swiglu_ffn
        self.num_register_tokens = num_register_tokens
        self.interpolate_antialias = num_register_tokens > 0 if interpolate_antialias is None else interpolate_antialias
        self.interpolate_offset = interpolate_offset
        self.apply_layernorm = apply_layernorm
        self.reshape_hidden_states = reshape_hidden_states
        self._check()
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, num_hidden_layers + 1)]
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Dinov2Config:
        """The architecture called `name` (a key of `PRESETS`) with `overrides` on top."""
        if name not in PRESETS:
            raise ValueError(f"preset={name!r} is not known; use one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def to_dict(self) -> dict[str, Any]:
        output: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        output["model_type"] = _WITH_REGISTERS if self.num_register_tokens else _WITHOUT_REGISTERS
        if self.num_register_tokens and output.get("architectures"):
            # the stock class of the same checkpoint, which `pipeline` looks up by this name
            output["architectures"] = [
                name if "WithRegisters" in name else name.replace("Dinov2", "Dinov2WithRegisters", 1)
                for name in output["architectures"]
            ]
        return output

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config.pop("model_type", _WITHOUT_REGISTERS)
        if model_type not in (_WITHOUT_REGISTERS, _WITH_REGISTERS):
            raise ValueError(
                f"model_type={model_type!r} in {pretrained_model_name_or_path} is not a DINOv2 model; "
                f"expected {_WITHOUT_REGISTERS!r} or {_WITH_REGISTERS!r}"
            )
        if model_type == _WITH_REGISTERS:  # the stock defaults of that type, where the file leaves them out
            config = {"num_register_tokens": 4, "patch_size": 16, **config}
        return config, kwargs

    def _check(self) -> None:
        super()._check()
        if self.num_register_tokens < 0:
            raise ValueError(f"num_register_tokens={self.num_register_tokens} is negative; use 0 for none or 4")
