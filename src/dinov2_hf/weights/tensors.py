"""Tensors in files, under whatever names: how they are read."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ..config.limits import check_size
from ..files import first_line
from .wrappings import is_head, tensors_in, unwrap

NOTES = "dinov2_hf"
"""The attribute of a pickled state dict that holds our notes; code that does not know it does not see it."""
PARTS = ("embeddings.", "encoder.", "layernorm.")
"""What the names of the tensors of a `Dinov2Model` begin with."""

SETTINGS = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "_codecs.encode",
)
"""Objects that training code leaves beside tensors: arguments, paths, results. `_Setting` takes their place."""


class _Setting:
    """Stands for an object of `SETTINGS`: whatever a file gives to it, it does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def tensors_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with `prefix`, such as `dino_head.`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def summary(items: Sequence[str]) -> str:
    """The first of several items, and how many more there are."""
    return items[0] + (f" (and {len(items) - 1} tensors more)" if len(items) > 1 else "")


def without_classifier(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without those of a classifier, whose names begin with `prefix`; and the names of these."""
    names = sorted(name for name in state if name.startswith(prefix))
    return {name: value for name, value in state.items() if name not in names}, names


def left_out(names: Iterable[str]) -> list[str]:
    """What to say of tensors that are not taken; nothing where there are none."""
    names = sorted(names)
    return [f"{summary(names)} is left out: no part of the backbone"] if names else []


def refuse_integers(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuses quantised weights, which mean nothing as the numbers that they are stored as.

    Raises:
        ValueError: a tensor that is not of floating-point numbers, and not the counter of a batch norm.
    """
    integers = (name for name, tensor in tensors.items() if not tensor.is_floating_point())
    if odd := next((name for name in integers if not name.endswith("num_batches_tracked")), None):
        kind = str(tensors[odd].dtype).removeprefix("torch.")
        raise ValueError(
            f"{where} has {odd} in {kind}, as quantised weights are; write them in float32, float16 or bfloat16"
        )


@dataclass
class TensorFile:
    """What a safetensors file or a pickle holds, without what training code wraps around it: see `wrappings`."""

    tensors: dict[str, Tensor]
    """Of a training state those of one network."""
    metadata: dict[str, str] = field(default_factory=dict)
    training_state: bool = False
    """Whether it had a student and a teacher, as training states of the original code."""
    left_out: list[str] = field(default_factory=list)
    """Names of tensors beside the backbone."""

    @property
    def heads(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.tensors.items() if is_head(name)}

    @property
    def backbone(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.tensors.items() if not is_head(name)}

    @classmethod
    def of(
        cls,
        state: Any,
        where: str = "the state dict",
        network: str = "teacher",
        metadata: Mapping[str, str] | None = None,
    ) -> TensorFile:
        """Takes one network out of a state dict, or of what a training script saved around it.

        Raises:
            ValueError: tensors that cannot be taken, several backbones, a training state without that network.
        """
        found = unwrap(state, where, network)
        return cls(found.tensors, dict(metadata or {}), found.training_state, found.left_out)

    @classmethod
    def read(cls, file: Path, where: str, network: str = "teacher") -> TensorFile:
        """Reads a safetensors file, or a pickle, which is not allowed to run code.

        Raises:
            ValueError: a file that is damaged, holds other objects or names tensors that are larger than it; otherwise
                as `of`.
        """
        if file.suffix == ".safetensors":
            state, metadata = read_safetensors([file], where)
            return cls.of(state, where, network, metadata)
        state = _read_pickle(file, where)
        return cls.of(state, where, network, getattr(state, NOTES, {}))


def read_safetensors(
    files: Sequence[Path], where: str, device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in safetensors files, and the metadata of the last.

    safetensors itself compares what a file declares with its size, before anything is read.

    Args:
        device: on `meta` only shapes and types are read.

    Raises:
        ValueError: a file that is damaged.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():
                    tensors[name] = opened.get_tensor(name) if device != "meta" else _shape_of(opened, name)
                metadata = opened.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{where} cannot be read: {first_line(error)}; fetch or export it again") from None
    return tensors, metadata


_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def _shape_of(opened: Any, name: str) -> Tensor:
    """A tensor on `meta`; of another type than floating-point numbers as uint8."""
    part = opened.get_slice(name)
    return torch.empty(part.get_shape(), dtype=_TYPES.get(part.get_dtype(), torch.uint8), device="meta")


def _read_pickle(file: Path, where: str) -> Any:
    """What `torch.save` wrote: first on `meta`, to compare the sizes of its tensors with that of the file."""
    size = file.stat().st_size
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                check_size("parts", sum(part.file_size for part in archive.infolist()), size, where)
        except zipfile.BadZipFile:
            raise ValueError(f"{where} is damaged; fetch it again") from None
    for path, tensor in tensors_in(_load_pickle(file, where, "meta")):
        check_size(".".join(path), tensor.numel() * tensor.element_size(), size, where)
    return _load_pickle(file, where, "cpu")


def _load_pickle(file: Path, where: str, device: str) -> Any:
    try:
        with safe_globals([(_Setting, name) for name in SETTINGS]):
            return torch.load(file, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{where} is damaged or holds other objects than tensors, which are not loaded as they can run "
            f"code{_names_of_others(file)}; save the state dict alone with torch.save, where you trust the file and "
            "load it with weights_only=False"
        ) from None


def _names_of_others(file: Path) -> str:
    """The classes of objects in a file that are not tensors nor settings, in brackets; empty where it is damaged."""
    try:
        names = sorted(set(get_unsafe_globals_in_checkpoint(file)) - set(SETTINGS))
    except Exception:  # a damaged pickle raises anything
        return ""
    return f" ({', '.join(names[:3])}{', …' * (len(names) > 3)})" if names else ""
