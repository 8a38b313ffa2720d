"""Sums over all processes, which are the identity where there is one."""

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
