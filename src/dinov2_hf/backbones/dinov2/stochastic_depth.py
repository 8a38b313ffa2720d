"""Stochastic depth that computes only the samples it keeps (DINOv2 paper, section 5, "Efficient stochastic depth").

A residual branch with rate `p` runs on a random `max(int(B (1 - p)), 1)` of the `B` sequences of each group; its output
is scaled by `B / kept` so that the expectation stays what it was. At a rate of 0.4 this saves 40 % of the layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .packing import Group, Packing

Branch = Callable[[Tensor, Packing], Tensor]


def draw_kept(packing: Packing, rate: float, device: torch.device) -> list[Tensor]:
    """Indices of the sequences that each group keeps, drawn from torch's global generator of `device`."""
    return [
        torch.randperm(group.batch, device=device)[: max(int(group.batch * (1 - rate)), 1)] for group in packing.groups
    ]


def add_residual(tokens: Tensor, branch: Branch, packing: Packing, scale: Tensor) -> Tensor:
    """`tokens + scale * branch(tokens)` for packed `tokens` `[M, D]` and LayerScale `scale` `[D]`."""
    residual = branch(tokens, packing)
    return torch.addcmul(tokens, residual.to(tokens.dtype), scale.to(tokens.dtype))


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


def add_residual_of_kept(tokens: Tensor, branch: Branch, packing: Packing, scale: Tensor, kept: list[Tensor]) -> Tensor:
    """As `add_residual`, for the sequences `kept` of each group alone; the others pass unchanged."""
    rows, packing, weights = rows_of_kept(packing, kept)
    residual = branch(tokens.index_select(0, rows), packing)
    residual = residual.to(tokens.dtype) * scale.to(tokens.dtype) * weights.to(tokens.dtype)
    return tokens.index_add(0, rows, residual)
