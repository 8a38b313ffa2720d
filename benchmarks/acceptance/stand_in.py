"""What the published code takes from xformers, in plain torch: it runs where xformers is not installed."""

from __future__ import annotations

import sys
import types

import torch
from torch import Tensor, nn


class _Sequences:
    """Sequences of several lengths, one after the other along the second axis."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self._batch_sizes = lengths, None

    @classmethod
    def from_seqlens(cls, lengths: list[int]) -> _Sequences:
        return cls(lengths)

    @classmethod
    def from_tensor_list(cls, tensors: list[Tensor]) -> tuple[_Sequences, Tensor]:
        """Of groups `[B, T, ...]`, packed as `[1, sum of B T, ...]`."""
        sequences = cls([group.shape[1] for group in tensors for _ in range(len(group))])
        sequences._batch_sizes = [len(group) for group in tensors]
        return sequences, torch.cat([group.reshape(1, -1, *group.shape[2:]) for group in tensors], dim=1)

    def groups(self) -> list[tuple[int, int]]:
        """Numbers of neighbours of the same length, and that length."""
        found: list[list[int]] = []
        for length in self.lengths:
            if found and found[-1][1] == length:
                found[-1][0] += 1
            else:
                found.append([1, length])
        return [tuple(group) for group in found]

    def split(self, packed: Tensor) -> list[Tensor]:
        """The groups of `from_tensor_list` again."""
        first, shapes = 0, []
        for size in self._batch_sizes:
            shapes.append((size, self.lengths[first]))
            first += size
        parts = packed.split([size * length for size, length in shapes], dim=1)
        return [part.reshape(size, length, *packed.shape[2:]) for part, (size, length) in zip(parts, shapes)]


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_bias: _Sequences | None = None) -> Tensor:
    """Each `[B, T, H, d]`; within each sequence of `attn_bias`."""

    def attend(*states: Tensor) -> Tensor:
        states = [state.transpose(1, 2) for state in states]
        return nn.functional.scaled_dot_product_attention(*states).transpose(1, 2)

    if attn_bias is None:
        return attend(query, key, value)
    groups = attn_bias.groups()
    sizes = [count * length for count, length in groups]
    outputs = []
    for (count, length), *states in zip(groups, *(state.split(sizes, dim=1) for state in (query, key, value))):
        states = [state.reshape(count, length, *query.shape[2:]) for state in states]
        outputs.append(attend(*states).reshape(1, count * length, *query.shape[2:]))
    return torch.cat(outputs, dim=1)


def _index_select_cat(sources: list[Tensor], indices: list[Tensor]) -> Tensor:
    return torch.cat([source[index].flatten() for source, index in zip(sources, indices)])


def _scaled_index_add(
    target: Tensor, index: Tensor, source: Tensor, scaling: Tensor | None = None, alpha: float = 1.0
) -> Tensor:
    source = source if scaling is None else source * scaling.to(source.dtype)
    return torch.index_add(target, 0, index, source, alpha=alpha)


class _SwiGLU(nn.Module):
    def __init__(self, in_features: int, hidden_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.w12 = nn.Linear(in_features, 2 * hidden_features, bias=bias)
        self.w3 = nn.Linear(hidden_features, out_features, bias=bias)

    def forward(self, states: Tensor) -> Tensor:
        gate, value = self.w12(states).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(gate) * value)


def install() -> None:
    """Puts a module `xformers` with these into `sys.modules`."""
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.fmha = types.SimpleNamespace(BlockDiagonalMask=_Sequences)
    ops.memory_efficient_attention, ops.unbind, ops.SwiGLU = _attention, torch.unbind, _SwiGLU
    ops.index_select_cat, ops.scaled_index_add = _index_select_cat, _scaled_index_add
    package.ops = ops
    sys.modules |= {"xformers": package, "xformers.ops": ops}
