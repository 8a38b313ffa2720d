"""From one dispatched operation to the kernels it launches, the bytes they move and the FLOPs of their products.

Every operation that is not a view reads its inputs and writes its outputs once. Exceptions are the tables below: what
gathers reads only the rows it takes, what fills only writes, what works in place reads what it writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Kind(Enum):
    """What bounds a kernel."""

    MEMORY = auto()
    PRODUCT = auto()
    BATCHED = auto()
    CONVOLUTION = auto()
    ATTENTION = auto()
    ATTENTION_BACKWARD = auto()
    HOST_COPY = auto()


@dataclass(frozen=True)
class Work:
    """What one operation does on the device."""

    name: str
    kernels: int
    bytes: int
    kind: Kind = Kind.MEMORY
    flops: float = 0.0
    shape: tuple[int, ...] = ()
    """`(m, n, k)` of a product, `(tokens,)` of attention."""
    half: bool = False
    """Products in half precision."""


_NO_KERNEL = {
    "_unsafe_view",
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "set_",
    "resize_",
}
_KERNELS = {
    "randperm": 6,
    "native_layer_norm_backward": 2,
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_efficient_attention_backward": 3,
    "convolution_backward": 3,
    "argsort": 4,
    "sort": 4,
    "topk": 3,
    "nonzero": 4,
    "index_put": 5,
    "index_put_": 5,
    "_index_put_impl_": 5,
    "_linalg_svd": 60,
}
"""Where it is not one."""
_FOREACH_TENSORS, _FOREACH_ELEMENTS = 60, 65536 * 320
"""Tensors and elements that one kernel of a `_foreach` operation takes."""

_GATHERS = {"index_select", "gather", "embedding", "index"}
_SCATTERS = {"index_add", "index_copy"}
_SCATTERS_IN_PLACE = {"index_add_", "index_copy_"}
_FILLS = {
    *("zeros", "ones", "full", "arange", "randperm", "scalar_tensor", "fill_", "zero_"),
    *("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
    *("slice_backward", "select_backward"),
}


def work_of(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> Work | None:
    """The work of one operation on the device, given what it returned; None where it launches nothing."""
    name = func._schema.name.partition("::")[2]
    mutable = func._schema.is_mutable
    outputs = _tensors(out)
    if name in _NO_KERNEL or func.is_view or func.namespace == "prim" or not (outputs or mutable):
        return None
    inputs = _tensors((args, kwargs))
    if not mutable and outputs and all(any(o is i for i in inputs) for o in outputs):
        return None
    if name in ("_to_copy", "copy_") and _devices(inputs, outputs) == {"cpu", "cuda"}:
        return Work(name, 1, sum(map(size, outputs)), Kind.HOST_COPY)
    product = _product(name, args, outputs)
    kernels = (
        _foreach_kernels(name, args)
        if name.startswith(("_foreach", "_amp_foreach", "_fused_"))
        else _KERNELS.get(name, 1)
    )
    moved = _moved(func, name, args, kwargs, inputs, outputs)
    if product is None:
        return Work(name, kernels, moved)
    kind, flops, shape = product
    half = inputs[0].dtype in (torch.bfloat16, torch.float16)
    return Work(name, kernels, moved, kind, flops, shape, half)


def size(tensor: Tensor) -> int:
    """Bytes that a tensor addresses: what is expanded counts once."""
    extents = (extent for extent, stride in zip(tensor.shape, tensor.stride()) if stride)
    return math.prod(extents) * tensor.element_size()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _devices(inputs: list[Tensor], outputs: list[Tensor]) -> set[str]:
    return {tensor.device.type for tensor in (*inputs, *outputs)}


def _foreach_kernels(name: str, args: Sequence[Any]) -> int:
    tensors = args[0]
    if name == "_foreach_mul_" and isinstance(args[1], (list, tuple)):
        pairs = list(zip(tensors, args[1]))
        if any(isinstance(factor, Tensor) and factor.shape != tensor.shape for tensor, factor in pairs):
            return len(tensors)  # one by one, where a factor is broadcast
    elements = sum(tensor.numel() for tensor in tensors)
    launches = max(math.ceil(len(tensors) / _FOREACH_TENSORS), math.ceil(elements / _FOREACH_ELEMENTS))
    return launches * (2 if "norm" in name else 1)


def _product(name: str, args: Sequence[Any], outputs: list[Tensor]) -> tuple[Kind, float, tuple[int, ...]] | None:
    """Kind, FLOPs and shape of what is a product; else None."""
    if name in ("mm", "addmm"):
        left, right = args[-2:] if name == "mm" else args[1:3]
        m, k, n = *left.shape, right.shape[1]
        return Kind.PRODUCT, 2 * m * k * n, (m, n, k)
    if name in ("bmm", "baddbmm"):
        left, right = args[-2:] if name == "bmm" else args[1:3]
        return Kind.BATCHED, 2 * math.prod(left.shape) * right.shape[2], ()
    if name == "convolution":
        return Kind.CONVOLUTION, _convolution_flops(outputs[0], args[1]), ()
    if name == "convolution_backward":
        gradient, _, weight, *_, wanted = args
        return Kind.CONVOLUTION, _convolution_flops(gradient, weight) * (wanted[0] + wanted[1]), ()
    if name.startswith("_scaled_dot_product"):
        backward = name.endswith("backward")
        query, key = args[1:3] if backward else args[:2]
        batch, heads, tokens, channels = query.shape
        flops = (10 if backward else 4) * batch * heads * tokens * key.shape[2] * channels
        return Kind.ATTENTION_BACKWARD if backward else Kind.ATTENTION, flops, (tokens,)
    return None


def _convolution_flops(output: Tensor, weight: Tensor) -> float:
    return 2 * output.shape[0] * math.prod(output.shape[2:]) * weight.numel()


def _moved(
    func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], inputs: list[Tensor], outputs: list[Tensor]
) -> int:
    """Bytes read and written."""
    written = sum(map(size, outputs))
    if name in _GATHERS:
        return 2 * written + sum(map(size, inputs[1:]))
    if name in _SCATTERS:  # a copy, then the rows: read, added to, written
        return 2 * written + 3 * size(inputs[-1]) + size(inputs[1])
    if name in _SCATTERS_IN_PLACE:
        return 3 * size(inputs[-1]) + size(inputs[1])
    if name in _FILLS:
        return written + (size(inputs[0]) if name.endswith("_backward") else 0)
    if func._schema.is_mutable:
        changed = sum(map(size, _changed(func, args, kwargs)))
        only_written = name.endswith("copy_") or func._overloadname == "out"
        return sum(map(size, inputs)) + (0 if only_written else changed)
    distinct = {id(tensor): tensor for tensor in inputs}
    return sum(map(size, distinct.values())) + written


def _changed(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to in place."""
    arguments = func._schema.arguments
    writes = [item.alias_info is not None and item.alias_info.is_write for item in arguments]
    by_position = [value for value, write in zip(args, writes) if write]
    by_name = [kwargs[item.name] for item, write in zip(arguments, writes) if write and item.name in kwargs]
    return _tensors((by_position, by_name))
