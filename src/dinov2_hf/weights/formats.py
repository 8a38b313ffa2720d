"""The table of formats: those of the package, one file each beside this one, and those that others register."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from ..data.names import place_of
from . import adapter, folder, onnx, original, run, stock, timm, torchvision
from .base import Format, Place, Weights

FORMATS: dict[str, Format] = {
    "run": run.FORMAT,
    "adapter": adapter.FORMAT,
    "stock": stock.FORMAT,
    "onnx": onnx.FORMAT,
    "hf": folder.FORMAT,
    "timm": timm.FORMAT,
    "torchvision": torchvision.FORMAT,
    "original": original.FORMAT,
}
"""By name, in the order in which they are asked whether they hold what is at a path."""

_FILES = {".pth", ".pt", ".bin", ".safetensors", ".onnx"}
_ARGUMENTS = {
    "holds": "place",
    "read": "place",
    "write": "path, backbone, preprocessor",
    "usage": "path, config",
    "limits": "config",
}
"""What the functions of a format are called with."""


def register_format(name: str, format: Format) -> Format:
    """Adds a format from outside the package: `dinov2-hf export --format NAME`, and any path of weights.

    It is asked before the formats of the package whether it holds what is at a path. A module that is loaded again
    replaces its own format.

    Args:
        name: of lower-case letters, digits and `_`.
        format: its functions; `write` needs `usage`.

    Raises:
        TypeError: a function that is missing, or that takes other arguments.
        ValueError: another name or suffix than is allowed, or a name that another format has.
    """
    where = f"the format {name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{where} has a name of other characters than a to z, digits and _; rename it")
    if format.suffix and not re.fullmatch(r"\.\w+", format.suffix):
        raise ValueError(f"{where} has suffix={format.suffix!r}; give a dot and letters, or '' for a folder")
    if format.write and not format.usage:
        raise TypeError(f"{where} has write and no usage; give a function of ({_ARGUMENTS['usage']})")
    for part, arguments in _ARGUMENTS.items():
        function = getattr(format, part)
        if (function is not None or part in ("holds", "read")) and not _takes(function, arguments):
            raise TypeError(f"{where}: {part} must be a function of ({arguments}), not {function!r}")
    known = FORMATS.get(name)
    if known and place_of(known.read) != place_of(format.read):
        raise ValueError(f"{where} is already registered by {place_of(known.read)}; use another name")
    others = {other: FORMATS[other] for other in FORMATS if other != name}
    FORMATS.clear()
    FORMATS.update({name: format, **others})
    return format


def _takes(function: object, arguments: str) -> bool:
    """Whether an object can be called with these arguments by position."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*arguments.split(", "))
    except TypeError:
        return False
    return True


def open_weights(
    path: str,
    key: str = "SOURCE",
    network: str = "teacher",
    student: str = "",
    num_attention_heads: int | None = None,
    device: str = "cpu",
) -> Weights:
    """Opens the weights at a path: a run or a checkpoint, a folder, a name on the Hub, a file of any of `FORMATS`.

    Args:
        path: what is there shows by itself what it is.
        key: what messages call the path, such as `init.path`.
        network: `teacher` (in a distillation the student's average) or `student`; of a run or a training state.
        student: name of a further student of a run.
        num_attention_heads: where nothing in a file says it.
        device: of the tensors of a run; `meta` reads their shapes and types only.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: what is there is damaged or not a model, or lacks the network that is wanted.
        ImportError: an ONNX file, and onnx is not installed.
    """
    place = Place(path, key, network, student, num_attention_heads, device)
    if not place.is_file and Path(path).suffix in _FILES | {format.suffix for format in FORMATS.values()} - {""}:
        raise FileNotFoundError(f"{place.where} does not exist")
    weights = next(format for format in FORMATS.values() if format.holds(place)).read(place)
    if weights.run is None and student:
        raise ValueError(f"{place.where} is not a run, so it has no students by name; leave --student out")
    if network == "student" and not weights.has_student:
        raise ValueError(f"{place.where} holds one network, not a student beside its teacher; leave --network out")
    return weights
