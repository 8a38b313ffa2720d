"""A layer of a vision transformer over sequences or packed groups of them, and the stack of layers.

Axes: `B` sequences of `T` tokens, `M` packed tokens, `S` wanted tokens, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .attention import Attention, SelfAttentionOutput
from .layer_scale import LayerScale
from .packing import Packing
from .plain import is_plain
from .stochastic_depth import add_residual, add_residual_of_kept, draw_kept, rows_of_kept


class TransformerLayer(GradientCheckpointingLayer):
    """Base of the pre-norm layers: attention and a feed-forward network, each a residual branch with stochastic depth.

    A subclass builds `attention` and the rest under the names of its stock class, and says what they are.
    """

    attention: Attention

    def __init__(self, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate

    def norm_for_attention(self, tokens: Tensor) -> Tensor:
        """The norm of the first branch."""
        raise NotImplementedError

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """The second branch: norm and feed-forward network."""
        raise NotImplementedError

    @property
    def layer_scales(self) -> tuple[LayerScale | None, LayerScale | None]:
        """LayerScale of both branches, where the family has it."""
        return None, None

    def forward(
        self,
        tokens: Tensor,
        packing: Packing | None = None,
        attentions: list[Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Tokens after the layer.

        Args:
            tokens: `[B, T, D]`, or packed `[M, D]` with their `packing`.
            packing: the sequences of packed tokens.
            attentions: a list to which the attention probabilities are added, see `Attention.mix`.
            positions: `[S]`, rows of packed tokens. The result is then `[S, D]`: all tokens are attended to, but what
                follows attention is computed for these only.
        """
        if positions is not None:
            assert packing is not None
            if self._is_plain:
                return self._forward_at(tokens, packing, positions)
            return self.forward(tokens, packing).index_select(0, positions)
        if packing is None and self._drops:
            packed, packing = Packing.pack([tokens])
            return packing.unpack(self.forward(packed, packing, attentions))[0]

        def attend(tokens: Tensor, packing: Packing | None) -> Tensor:
            residual: Tensor = self.attention(self.norm_for_attention(tokens), packing, attentions)
            return residual

        def feed_forward(tokens: Tensor, packing: Packing | None) -> Tensor:
            return self.feed_forward(tokens)

        for branch, layer_scale in zip((attend, feed_forward), self.layer_scales):
            if self._drops:
                assert packing is not None
                kept = draw_kept(packing, self.drop_path_rate, tokens.device)
                tokens = add_residual_of_kept(tokens, branch, packing, layer_scale, kept)
            else:
                tokens = add_residual(tokens, branch, packing, layer_scale)
        return tokens

    @property
    def _drops(self) -> bool:
        return self.training and self.drop_path_rate > 0

    @property
    def _is_plain(self) -> bool:
        """Whether `_forward_at`, which does not call these modules, computes what they compute."""
        return (
            is_plain(self.attention, Attention)
            and is_plain(self.attention.output, SelfAttentionOutput)
            and all(scale is None or is_plain(scale, LayerScale) for scale in self.layer_scales)
        )

    def _forward_at(self, tokens: Tensor, packing: Packing, positions: Tensor) -> Tensor:
        wanted = tokens.index_select(0, positions)
        factors: list[Tensor | None] = [None if scale is None else scale.lambda1 for scale in self.layer_scales]
        if self._drops:
            rows, kept, weights = rows_of_kept(packing, draw_kept(packing, self.drop_path_rate, tokens.device))
            mixed = self.attention.mix(self.norm_for_attention(tokens.index_select(0, rows)), kept)
            mixed = mixed.new_zeros(tokens.shape).index_copy(0, rows, mixed).index_select(0, positions)
            of_attention = weights.new_zeros(len(tokens), 1).index_copy(0, rows, weights)[positions]
            # few tokens are left, so all of them go through the branch and those of dropped sequences are left out
            rows, _, weights = rows_of_kept(packing, draw_kept(packing, self.drop_path_rate, tokens.device))
            of_feed_forward = weights.new_zeros(len(tokens), 1).index_copy(0, rows, weights)[positions]
            kept_weights = (of_attention, of_feed_forward)
            factors = [each if factor is None else factor * each for factor, each in zip(factors, kept_weights)]
        else:
            mixed = self.attention.mix(self.norm_for_attention(tokens), packing).index_select(0, positions)
        wanted = _add_multiplied(wanted, self.attention.output.dense(mixed), factors[0])
        return _add_multiplied(wanted, self.feed_forward(wanted), factors[1])


def _add_multiplied(tokens: Tensor, residual: Tensor, factor: Tensor | None) -> Tensor:
    """`tokens + residual * factor`; no factor: 1."""
    residual = residual.to(tokens.dtype)
    return tokens + residual if factor is None else torch.addcmul(tokens, residual, factor.to(tokens.dtype))


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, layers: Iterable[TransformerLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def forward(
        self, tokens: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BaseModelOutput:
        """Tokens `[B, T, D]` after the last layer; where asked for, hidden states (input first) and attentions.

        Each hidden state is the tensor that the next layer reads, so gradients reach it.
        """
        attentions: list[Tensor] | None = [] if output_attentions else None
        hidden_states: tuple[Tensor, ...] = (tokens,)
        for layer in self.layer:
            tokens = layer(tokens, None, attentions)
            if output_hidden_states:
                hidden_states += (tokens,)
        return BaseModelOutput(
            last_hidden_state=tokens,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=None if attentions is None else tuple(attentions),
        )
