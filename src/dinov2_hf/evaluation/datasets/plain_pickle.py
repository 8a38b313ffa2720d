"""Pickles of lists, dictionaries, texts, numbers and arrays of numbers, read without running what is in them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...files import first_line

_LARGEST = 64 << 20
"""Bytes of a file: the published ones have less than one million."""


class _Type:
    """Stands for `numpy.dtype`, of numbers only."""

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[biuf][1248]", name):
            raise pickle.UnpicklingError(f"has an array of {name!r}, not of numbers")
        self._name, self._order = name, "<"

    def __setstate__(self, state: Sequence[Any]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"has an array of the byte order {state[1]!r}")
        self._order = state[1]

    def numbers(self, data: Any) -> list[Any]:
        """The numbers that bytes hold."""
        if isinstance(data, str):  # as Python 2 wrote them
            data = data.encode("latin1")
        found: list[Any] = np.frombuffer(data, self._order + self._name).tolist()
        return found


class Array:
    """Stands for `numpy.ndarray`: the numbers of an array of one dimension, as a list."""

    values: list[Any]

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, kind, _, data = state
        self._set(shape, kind, data)

    def _set(self, shape: Any, kind: Any, data: Any) -> Array:
        if not isinstance(kind, _Type) or not isinstance(shape, tuple) or len(shape) != 1:
            raise pickle.UnpicklingError(f"has an array of the shape {shape!r}, not a list of numbers")
        self.values = kind.numbers(data)
        if len(self.values) != shape[0]:
            raise pickle.UnpicklingError("has an array of another length than its bytes")
        return self


def _reconstruct(*_: Any) -> Array:
    return Array()


def _from_buffer(data: Any, kind: Any, shape: Any, *_: Any) -> Array:
    return Array()._set(shape, kind, data)


def _scalar(kind: Any, data: Any) -> Any:
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError("has a number of no type")
    return kind.numbers(data)[0]


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


def _no_bytes(*given: Any) -> bytes:
    """Old protocols call `bytes` for an empty array."""
    if given:
        raise pickle.UnpicklingError("makes bytes of something")
    return b""


_STANDS_FOR: dict[str, Any] = {
    "dtype": _Type,
    "ndarray": Array,
    "_reconstruct": _reconstruct,
    "_frombuffer": _from_buffer,
    "scalar": _scalar,
    "encode": _encode,
    "bytes": _no_bytes,
}
_FULL_NAME = re.compile(
    r"numpy\.(dtype|ndarray)|numpy\._?core\.(multiarray|numeric)\.\w+|_codecs\.encode|(__builtin__|builtins)\.bytes"
)


class _Unpickler(pickle.Unpickler):
    """Makes containers, texts and numbers; whatever else is asked for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _STANDS_FOR and _FULL_NAME.fullmatch(f"{module}.{name}"):
            return _STANDS_FOR[name]
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which could run code")


def load_plain(path: Path) -> Any:
    """What a pickle holds; arrays of numbers are `Array`.

    Raises:
        ValueError: a file that is damaged, too large, or asks for other objects.
    """
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"it has {size >> 20} MiB, and {_LARGEST >> 20} MiB are the most")
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # what a damaged pickle raises can be anything
        raise ValueError(f"it {first_line(error)}") from None
