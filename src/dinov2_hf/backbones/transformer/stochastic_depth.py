"""Stochastic depth that computes only the samples it keeps (DINOv2 paper, section 5, "Efficient stochastic depth").

A residual branch with rate `p` runs on a random `max(int(B (1 - p)), 1)` of the `B` sequences of each group; its output
is scaled by `B / kept` so that the expectation is unchanged. At a rate of 0.4 this saves 40 % of the layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .layer_scale import add_scaled
from .packing import Group, Packing

Branch = Callable[[Tensor, Packing | None], Tensor]


def draw_kept(packing: Packing, rate: float, device: torch.device) -> list[Tensor]:
    """Indices of the sequences that each group keeps, drawn from torch's global generator of `device`."""
    return [
        torch.randperm(group.batch, device=device)[: max(int(group.batch * (1 - rate)), 1)] for group in packing.groups
    ]


def add_residual(tokens: Tensor, branch: Branch, packing: Packing | None, layer_scale: nn.Module | None) -> Tensor:
    """`tokens + layer_scale(branch(tokens))` for tokens `[B, T, D]`, or packed `[M, D]` with their `packing`."""
    return add_scaled(tokens, branch(tokens, packing), layer_scale)


def rows_of_kept(packing: Packing, kept: list[Tensor]) -> tuple[Tensor, Packing, Tensor]:
    """Where the sequences `kept` of each group lie in a packed matrix.

    Returns:
        Positions of their tokens, their packing, and for each of the tokens the factor `B / kept`, float32 `[n, 1]`.
    """
    rows, weights, groups, start = [], [], [], 0
    for group, indices in zip(packing.groups, kept):
        positions = torch.arange(group.length, device=indices.device)
        rows.append((start + indices.unsqueeze(1) * group.length + positions).flatten())
        groups.append(Group(len(indices), group.length))
        weights.append(torch.full((len(indices) * group.length, 1), group.batch / len(indices), device=indices.device))
        start += group.batch * group.length
    return torch.cat(rows), Packing(tuple(groups)), torch.cat(weights)


def add_residual_of_kept(
    tokens: Tensor, branch: Branch, packing: Packing, layer_scale: nn.Module | None, kept: list[Tensor]
) -> Tensor:
    """As `add_residual`, of the sequences `kept` of each group; the others pass unchanged."""
    rows, packing, weights = rows_of_kept(packing, kept)
    residual = branch(tokens.index_select(0, rows), packing).to(tokens.dtype)
    if layer_scale is not None:
        residual = layer_scale(residual).to(tokens.dtype)
    return tokens.index_add(0, rows, residual * weights.to(tokens.dtype))
