"""Sums and gathers over all processes, which are the identity where there is one."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def global_sum_(tensor: Tensor) -> Tensor:
    """Adds up `tensor` over all processes, in place. Collective: call on all ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def global_max_(tensor: Tensor) -> Tensor:
    """Takes the maximum of `tensor` over all processes, in place. Collective: call on all ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows `[B, ...]` of all processes, rank by rank, and the position of this one's first; differentiable.

    Collective, in the backward pass too: call on all ranks, with the same shape.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows, 0
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered, dist.get_rank() * rows.shape[0]


def own_share(num_rows: int) -> slice:
    """The range of `num_rows` rows, equal on all processes, that this process answers for; each has about as many."""
    if not (dist.is_available() and dist.is_initialized()):
        return slice(0, num_rows)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    return slice(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(dist.get_world_size() * rows.shape[0], *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        total = global_sum_(grad_output.clone(memory_format=torch.contiguous_format))
        return total.chunk(dist.get_world_size())[dist.get_rank()]
