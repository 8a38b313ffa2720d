"""The table of formats: to add one, write a file with its `FORMAT` beside these and name it here."""

from __future__ import annotations

from pathlib import Path

from . import folder, onnx, original, run, stock, timm
from .base import Format, Place, Weights

FORMATS: dict[str, Format] = {
    "run": run.FORMAT,
    "stock": stock.FORMAT,
    "onnx": onnx.FORMAT,
    "hf": folder.FORMAT,
    "timm": timm.FORMAT,
    "original": original.FORMAT,
}
"""By name, in the order in which they are asked whether they hold what is at a path."""

_FILES = (".pth", ".pt", ".bin", ".safetensors", ".onnx")


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
    if not place.is_file and Path(path).suffix in _FILES:
        raise FileNotFoundError(f"{place.where} does not exist")
    weights = next(format for format in FORMATS.values() if format.holds(place)).read(place)
    if weights.run is None and student:
        raise ValueError(f"{place.where} is not a run, so it has no students by name; leave --student out")
    if network == "student" and not weights.has_student:
        raise ValueError(f"{place.where} holds one network, not a student beside its teacher; leave --network out")
    return weights
