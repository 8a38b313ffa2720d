"""Norms of tensors that may be sharded (`DTensor`), each tensor by itself, without waiting for the device.

Axes: `N` tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

EPS = 1e-6
"""Added to a norm before a limit is divided by it, as in the published code."""


def local(tensor: Tensor) -> Tensor:
    """Returns this process' shard of a sharded tensor, which shares its memory; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Computes the L2 norms `[N]` of tensors, those of sharded ones over all shards. Collective where they are sharded.

    All tensors that are sharded alike need one reduction.
    """
    norms: list[Tensor] = [torch.empty(0)] * len(tensors)
    alike: dict[tuple[dist.ProcessGroup, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        alike.setdefault(_groups_of(tensor), []).append(index)
    for groups, indices in alike.items():
        found = torch.stack(torch._foreach_norm([local(tensors[index]) for index in indices]))
        if groups:
            squares = found.square()
            for group in groups:
                dist.all_reduce(squares, group=group)
            found = squares.sqrt()
        for index, norm in zip(indices, found.unbind()):
            norms[index] = norm
    return torch.stack(norms)


def fused_parameters(network: nn.Module) -> list[list[nn.Parameter]]:
    """Returns the parameters of layers that count as one, as a module says in `fused`: weights, and biases."""
    found = []
    for module in network.modules():
        layers = [getattr(module, name) for name in getattr(module, "fused", ())]
        for kind in ("weight", "bias"):
            group = [getattr(layer, kind, None) for layer in layers]
            if group and all(isinstance(parameter, nn.Parameter) for parameter in group):
                found.append(cast(list[nn.Parameter], group))
    return found


def clip_each_(
    parameters: Iterable[nn.Parameter], limit: float, fused: Sequence[Sequence[nn.Parameter]] = ()
) -> Tensor:
    """Clips the gradient of each parameter to the norm `limit`. Collective where they are sharded.

    Args:
        fused: some of the parameters, in groups of the same size; those of a group are clipped as one tensor.

    Returns:
        The norm of all gradients together, before clipping.
    """
    ordered, groups = fused_first([parameter for parameter in parameters if parameter.grad is not None], fused)
    gradients = [parameter.grad for parameter in ordered if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = whole_norms(gradients)
    scales = (limit / (joint_norms(norms, groups) + EPS)).clamp(max=1.0)
    torch._foreach_mul_([local(gradient) for gradient in gradients], list(scales.unbind()))
    total: Tensor = torch.linalg.vector_norm(norms)
    return total


Groups = tuple[int, int]
"""The number of groups of fused parameters, and their size."""


def fused_first(
    parameters: Sequence[nn.Parameter], fused: Sequence[Sequence[nn.Parameter]]
) -> tuple[list[nn.Parameter], Groups]:
    """Orders parameters so that those of whole groups come first, group by group. Returns them and the groups."""
    given = set(map(id, parameters))
    groups = [group for group in fused if all(id(parameter) in given for parameter in group)]
    first = [parameter for group in groups for parameter in group]
    inside = set(map(id, first))
    others = [parameter for parameter in parameters if id(parameter) not in inside]
    return [*first, *others], (len(groups), len(groups[0]) if groups else 0)


def joint_norms(norms: Tensor, groups: Groups) -> Tensor:
    """Gives the first of the norms `[N]`, those of groups of fused parameters, the norm of their group."""
    if not groups[0]:
        return norms
    first = norms[: groups[0] * groups[1]].view(groups)
    first = torch.linalg.vector_norm(first, dim=1, keepdim=True).expand_as(first)
    return torch.cat((first.flatten(), norms[first.numel() :]))


def _groups_of(tensor: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups of processes that together hold a tensor, for each dimension of the mesh that it is sharded over."""
    if not isinstance(tensor, DTensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(dim) for dim, place in enumerate(tensor.placements) if isinstance(place, Shard))
