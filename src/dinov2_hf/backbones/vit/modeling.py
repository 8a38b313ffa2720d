"""The vision transformer of DINO (Caron et al., 2021) and iBOT (Zhou et al., 2021) as transformers models.

Axes: `B` images, `N = h w` patches, `T = 1 + N` tokens, `D` width. Parameter names are those of the stock class.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.activations import ACT2FN

from ..transformer.attention import Attention
from ..transformer.embeddings import Embeddings
from ..transformer.layer import Encoder, TransformerLayer
from ..transformer.model import PreTrainedTransformer, VisionTransformer
from .configuration import ViTConfig


class ViTIntermediate(nn.Module):
    """First linear layer of the feed-forward network, and its activation."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.activation(self.dense(tokens))
        return output


class ViTOutput(nn.Module):
    """Second linear layer of the feed-forward network."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.dense(hidden)
        return output


class ViTLayer(TransformerLayer):
    """A pre-norm layer without LayerScale."""

    def __init__(self, config: ViTConfig, drop_path_rate: float) -> None:
        super().__init__(drop_path_rate)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = ViTIntermediate(config)
        self.output = ViTOutput(config)

    def norm_for_attention(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.layernorm_before(tokens)
        return normed

    def feed_forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.output(self.intermediate(self.layernorm_after(tokens)))
        return output


class ViTPreTrainedModel(PreTrainedTransformer):
    """What the models of this family share."""

    config: ViTConfig
    config_class = ViTConfig
    base_model_prefix = "vit"
    _no_split_modules = ["Embeddings", "ViTLayer"]

    def _init_prefix(self, embeddings: Embeddings) -> None:
        """CLS as the weights, truncated normal; the mask token is 0."""
        init.trunc_normal_(embeddings.cls_token, std=self.config.initializer_range)
        if embeddings.mask_token is not None:
            init.zeros_(embeddings.mask_token)


class ViTModel(ViTPreTrainedModel, VisionTransformer):
    """The backbone. `ViTModel(config)` starts from scratch, `from_pretrained` reads files of the stock class.

    A pooler in a file is left out: DINO and iBOT have none.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        mask_shape = (1, 1, config.hidden_size) if config.use_mask_token else None
        self.embeddings = Embeddings(config, mask_shape)
        self.encoder = Encoder(ViTLayer(config, rate) for rate in config.drop_path_rates)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()


AutoModel.register(ViTConfig, ViTModel, exist_ok=True)
