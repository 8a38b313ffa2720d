"""The DINOv2 vision transformer (Oquab et al., 2023, section 4 and Appendix B) as transformers models.

Axes: `B` images, `N = h w` patches, `R` registers, `T = 1 + R + N` tokens, `D` width.
Parameter names are those of the interchange format (the published `facebook/dinov2-*` files), so saving and loading
rename nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput

from ..transformer.attention import Attention
from ..transformer.embeddings import Embeddings
from ..transformer.layer import Encoder, TransformerLayer
from ..transformer.layer_scale import LayerScale
from ..transformer.model import PreTrainedTransformer, VisionTransformer
from .configuration import Dinov2Config
from .stock_names import TakesStockNames


class Mlp(nn.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        hidden = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, hidden)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(hidden, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.activation(self.fc1(tokens)))
        return output


class SwiGLU(nn.Module):
    """SwiGLU feed-forward network (Shazeer, 2020) with two thirds of the MLP's hidden width, rounded up to 8."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        hidden = int(config.hidden_size * config.mlp_ratio)
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.weights_in = nn.Linear(config.hidden_size, 2 * hidden)
        self.weights_out = nn.Linear(hidden, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.weights_in(tokens).chunk(2, dim=-1)
        output: Tensor = self.weights_out(nn.functional.silu(gate) * value)
        return output


class Dinov2Layer(TransformerLayer):
    """A pre-norm layer with LayerScale."""

    def __init__(self, config: Dinov2Config, drop_path_rate: float) -> None:
        super().__init__(drop_path_rate)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.layer_scale1 = LayerScale(config.hidden_size, config.layerscale_value)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SwiGLU(config) if config.use_swiglu_ffn else Mlp(config)
        self.layer_scale2 = LayerScale(config.hidden_size, config.layerscale_value)

    def norm_for_attention(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.norm1(tokens)
        return normed

    def feed_forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.mlp(self.norm2(tokens))
        return output

    @property
    def layer_scales(self) -> tuple[LayerScale, LayerScale]:
        return self.layer_scale1, self.layer_scale2


class Dinov2PreTrainedModel(TakesStockNames, PreTrainedTransformer):
    """What the models of this family share."""

    config: Dinov2Config
    config_class = Dinov2Config
    base_model_prefix = "dinov2"
    _no_split_modules = ["Embeddings", "Dinov2Layer"]

    def _init_layer_scale(self, layer_scale: LayerScale) -> None:
        init.constant_(layer_scale.lambda1, self.config.layerscale_value)

    def _init_prefix(self, embeddings: Embeddings) -> None:
        """CLS and registers ~ N(0, 1e-6)."""
        init.normal_(embeddings.cls_token, std=1e-6)
        if embeddings.mask_token is not None:
            init.zeros_(embeddings.mask_token)
        if embeddings.register_tokens is not None:
            init.normal_(embeddings.register_tokens, std=1e-6)


class _Transformer(Dinov2PreTrainedModel):
    """Embeddings, layers and the final norm: what `Dinov2Model` and `Dinov2Backbone` share."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config, mask_shape=(1, config.hidden_size))
        self.encoder = Encoder(Dinov2Layer(config, rate) for rate in config.drop_path_rates)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()


class Dinov2Model(_Transformer, VisionTransformer):
    """The backbone. `Dinov2Model(config)` starts from scratch, `from_pretrained` reads the published checkpoints."""


class Dinov2Backbone(BackboneMixin, _Transformer):
    """Feature maps of chosen stages (`config.out_features` or `out_indices`), for detectors and segmenters."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Maps `[B, D, h, w]` (or tokens `[B, T, D]` if `config.reshape_hidden_states` is off) of the chosen stages."""
        encoded = self._encode(pixel_values, None, True, output_attentions)
        hidden_states = encoded.hidden_states
        assert hidden_states is not None
        feature_maps = []
        for stage, tokens in zip(self.stage_names, hidden_states):
            if stage in self.out_features:
                tokens = self.layernorm(tokens) if self.config.apply_layernorm else tokens
                if self.config.reshape_hidden_states:
                    tokens = self._feature_map(tokens, pixel_values)
                feature_maps.append(tokens)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = BackboneOutput(
            feature_maps=tuple(feature_maps),  # type: ignore[arg-type]  # annotated as a tuple of one
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=encoded.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


class Dinov2ForImageClassification(Dinov2PreTrainedModel):
    """A linear classifier on CLS and the mean of the patches, as the published linear heads."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        # the stock classes hold the backbone under their model type, which the names in the checkpoint repeat
        self.base_model_prefix = config.to_dict()["model_type"]
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, Dinov2Model(config))
        num_labels = config.num_labels or 0
        self.classifier = nn.Linear(2 * config.hidden_size, num_labels) if num_labels > 0 else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """`logits` `[B, num_labels]` and, with `labels` `[B]`, the `loss`."""
        features = self.base_model(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        tokens = features.last_hidden_state
        patches = tokens[:, self.config.num_prefix_tokens :]
        logits = self.classifier(torch.cat((tokens[:, 0], patches.mean(dim=1)), dim=1))
        output = ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


AutoModel.register(Dinov2Config, Dinov2Model, exist_ok=True)
AutoBackbone.register(Dinov2Config, Dinov2Backbone, exist_ok=True)
AutoModelForImageClassification.register(Dinov2Config, Dinov2ForImageClassification, exist_ok=True)
