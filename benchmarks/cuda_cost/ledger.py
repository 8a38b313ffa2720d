"""Runs operations on the fake device, and books what each would cost: time, memory, and waits of the host."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .cards import Card
from .kernels import Work, work_of

DEVICE = torch.device("cuda:0")


@dataclass(frozen=True)
class Cost:
    """What some operations need."""

    operations: float = 0
    kernels: float = 0
    bytes: float = 0
    flops: float = 0
    seconds: float = 0
    """On the device."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(Cost)))

    def extrapolated(self, deeper: Cost, layers: int) -> Cost:
        """What `layers` more layers than here need, given what one more needs."""
        return Cost(
            *(
                (here := getattr(self, item.name)) + layers * (getattr(deeper, item.name) - here)
                for item in fields(Cost)
            )
        )


_NO_FAKE_KERNEL = {"aten::_fused_sgd_"}
"""Operations that change their arguments and return nothing, and that torch cannot run on fake tensors."""


class Synchronization(RuntimeError):
    """The value of a tensor on the fake device is needed on the host."""


class Ledger(TorchDispatchMode):
    """Operations on tensors of `DEVICE` run on fake tensors; those on the host run as they are.

    Entered around all that touches the device. What is booked:

    `costs`: by part and operation; `synchronizations`: operations that make the host wait for the device, with the line
    of the package that called them; `peak`: the most bytes that lived at a time. Costs are booked after `start`.
    """

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    """One for the process: the package keeps constants on the device from one update to the next."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card
        self.costs: dict[tuple[str, str], Cost] = {}
        self.synchronizations: list[str] = []
        self.live = self.peak = 0
        self._part = "other"
        self._booking = False
        self._storages: set[int] = set()
        self._pinned: set[int] = set()

    def tensor(self, like: Tensor) -> FakeTensor:
        """A tensor on the device of the shape and type of `like`; its storage counts as live."""
        fake = FakeTensor(self.fake, torch.empty_like(like, device="meta"), DEVICE)
        self._track(fake)
        return fake

    def start(self) -> None:
        """Forgets what was booked, but not what lives, and books costs from here on."""
        self.costs.clear()
        self.synchronizations.clear()
        self.peak = self.live
        self._booking = True

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Books what runs inside under `name`."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def charge(self, owner: Any, method: str, name: str) -> None:
        """Books every call of a method of an object under `name`."""
        function: Callable = getattr(owner, method)

        @wraps(function)
        def charged(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        setattr(owner, method, charged)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if func._schema.name == "aten::_pin_memory":
            pinned = args[0].clone()
            self._pinned.add(pinned.untyped_storage().data_ptr())
            return pinned
        on_device = any(isinstance(leaf, FakeTensor) for leaf in leaves) or _wants_device(kwargs)
        if not on_device:
            return func(*args, **kwargs)
        if reason := self._wait(func, args, kwargs):
            self.synchronizations.append(f"{reason} at {_caller()}")
        if func._schema.name in _NEEDS_VALUE:
            raise Synchronization(f"{func._schema.name} needs a value from the device, at {_caller()}")
        with self.fake:
            absent = func._schema.name in _NO_FAKE_KERNEL
            out = None if absent else func(*tree_map(self._known, args), **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, FakeTensor) and tensor.device.type == DEVICE.type:
                self._track(tensor)
        if self._booking and (work := work_of(func, args, kwargs, out)):
            self._book(work)
        return out

    def _known(self, value: Any) -> Any:
        """A tensor of the host as a fake one; else the value."""
        return self.fake.from_tensor(value) if type(value) is Tensor else value

    def _book(self, work: Work) -> None:
        cost = Cost(1, work.kernels, work.bytes, work.flops, self.card.seconds(work))
        key = self._part, work.name
        self.costs[key] = self.costs.get(key, Cost()) + cost

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, held = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.live += held
        self.peak = max(self.peak, self.live)

        def freed() -> None:
            self._storages.discard(key)
            self.live -= held

        weakref.finalize(storage, freed).atexit = False

    def _wait(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> str | None:
        """Why an operation makes the host wait for the device; None where it does not."""
        name = func._schema.name.partition("::")[2]
        if name in ("_to_copy", "copy_"):
            return self._copy_wait(name, args, kwargs)
        if f"aten::{name}" in _NEEDS_VALUE or name in _WAITS:
            return name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [leaf for leaf in tree_leaves(args[1]) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
            return f"{name} by a mask" if masks else None
        return None

    def _copy_wait(self, name: str, args: tuple, kwargs: dict[str, Any]) -> str | None:
        if name == "_to_copy":
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            non_blocking = kwargs.get("non_blocking", False)
        else:
            source, target = args[1], args[0].device
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if source.device.type == target.type:
            return None
        if target.type == "cpu":
            return "copy to the host"
        if not non_blocking:
            return "blocking copy from the host"
        pinned = not isinstance(source, FakeTensor) and source.untyped_storage().data_ptr() in self._pinned
        if not pinned and source.numel() * source.element_size() > _STAGED_BYTES:
            return "copy from pageable memory of the host"
        return None


_NEEDS_VALUE = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
}
"""Operations whose result the host reads, or whose shape depends on values."""
_WAITS = {"repeat_interleave", "multinomial", "_linalg_svd", "_linalg_eigh", "linalg_eig", "linalg_lstsq"}
"""Operations whose kernels wait for the device inside."""
_STAGED_BYTES = 64 * 1024
"""Pageable memory up to this is staged by the driver without waiting."""


def _wants_device(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == DEVICE.type


def _caller() -> str:
    """The innermost line of the package on the stack."""
    for frame in reversed(traceback.extract_stack()):
        _, found, inside = frame.filename.rpartition("dinov2_hf/")
        if found and "cuda_cost" not in frame.filename:
            return f"dinov2_hf/{inside}:{frame.lineno}"
    return "a line outside the package"
