"""Multi-head self-attention over sequences of tokens, on any of transformers' attention implementations.

Axes: `M` packed tokens, `B` sequences of `T` tokens, `H` heads of `d` channels, `D = H d`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_flash_attn_2_available

from .configuration import TransformerConfig
from .packing import Packing
from .plain import is_plain


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out: `[B, H, T, d]` each to `[B, T, H, d]`, with the probabilities `[B, H, T, T]`."""
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if attention_mask is not None:
        scores = scores + attention_mask
    with torch.autocast(scores.device.type, enabled=False):  # the kernel computes in float32 and rounds once
        probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


def xformers_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """xformers' memory-efficient attention, `[B, H, T, d]` to `[B, T, H, d]`: `attn_implementation="xformers"`.

    Raises:
        ImportError: xformers is not installed.
    """
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise ImportError(
            'attn_implementation="xformers" needs the xformers package: pip install "dinov2_hf[xformers]", '
            'or use attn_implementation="sdpa"'
        ) from error
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))  # xformers wants [B, T, H, d]
    return memory_efficient_attention(query, key, value, attn_bias=attention_mask, p=dropout, scale=scaling), None


AttentionInterface.register("xformers", xformers_attention_forward)


def check_attention(implementation: str, key: str) -> None:
    """Refuses an attention implementation whose package is missing, before a model is built.

    Raises:
        ValueError: the package is not installed, or finds no GPU.
    """
    if implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            f"{key}=flash_attention_2 needs a CUDA GPU and the flash-attn package: pip install flash-attn, or use "
            "sdpa, which runs torch's own flash kernel"
        )
    if implementation == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ValueError(f'{key}=xformers needs the xformers package: pip install "dinov2_hf[xformers]", or use sdpa')


def choose_attention(implementation: str) -> str:
    """The implementation that `model.attn_implementation` names; `auto`: the fastest on this machine.

    Raises:
        ValueError: its package is not installed.
    """
    if implementation == "auto":
        implementation = "sdpa" if torch.accelerator.is_available() else "eager"
    check_attention(implementation, "model.attn_implementation")
    return implementation


class SelfAttentionProjections(nn.Module):
    """Query, key and value projections, under the names of the interchange format."""

    fused = ("query", "key", "value")
    """Layers that the published codes keep as one, so that what is done to each tensor is done to them together."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.query = nn.Linear(width, width, bias=config.qkv_bias)
        self.key = nn.Linear(width, width, bias=config.qkv_bias)
        self.value = nn.Linear(width, width, bias=config.qkv_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[..., D]` to queries, keys and values side by side, `[..., 3D]`: one matrix product for the three.

        Where one of them is more than its weights (adapters, quantisation, hooks, offloading), each is called.
        """
        layers = (self.query, self.key, self.value)
        biases: list[Tensor] = [layer.bias for layer in layers if getattr(layer, "bias", None) is not None]
        if len(biases) not in (0, 3) or not all(is_plain(layer, nn.Linear) for layer in layers):
            return torch.cat([layer(tokens) for layer in layers], dim=-1)
        weight = torch.cat([layer.weight for layer in layers])
        return nn.functional.linear(tokens, weight, torch.cat(biases) if biases else None)


class SelfAttentionOutput(nn.Module):
    """Output projection, under the names of the interchange format."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, mixed: Tensor) -> Tensor:
        output: Tensor = self.dense(mixed)
        return output


class Attention(nn.Module):
    """Self-attention of tokens `[B, T, D]`, or packed `[M, D]`: each token attends within its sequence."""

    is_causal = False  # read by transformers' attention functions

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.attention = SelfAttentionProjections(config)
        self.output = SelfAttentionOutput(config)

    def forward(self, tokens: Tensor, packing: Packing | None = None, attentions: list[Tensor] | None = None) -> Tensor:
        """Attention with its output projection: tokens to tokens of the same shape, see `mix`."""
        attended: Tensor = self.output(self.mix(tokens, packing, attentions))
        return attended

    def mix(self, tokens: Tensor, packing: Packing | None = None, attentions: list[Tensor] | None = None) -> Tensor:
        """Attention before the output projection.

        Args:
            tokens: `[B, T, D]`, or packed `[M, D]` with their `packing`.
            attentions: a list to which the probabilities `[B, H, T, T]` of each group are added; the implementation
                is then `eager`, because no other keeps them.
        """
        implementation = "eager" if attentions is not None else self.config._attn_implementation
        attend = eager_attention_forward if implementation == "eager" else ALL_ATTENTION_FUNCTIONS[implementation]
        projected = self.attention(tokens).unflatten(-1, (3, self.num_heads, -1))
        outputs = []
        for group in [projected] if packing is None else packing.unpack(projected):
            query, key, value = group.permute(2, 0, 3, 1, 4)  # each [B, H, T, d]
            output, probabilities = attend(
                self,
                query,
                key,
                value,
                attention_mask=None,
                scaling=self.scaling,
                dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            )
            outputs.append(output.flatten(2))
            if attentions is not None:
                attentions.append(probabilities)
        return outputs[0] if packing is None else Packing.pack(outputs)[0]
