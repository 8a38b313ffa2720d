"""Images that a caller hands in from Python, for the time of a call: the path `memory:NAME` stands for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ...config import SourceConfig
from ..names import few
from .given import KINDS, encode_image

HELD = "memory:"
"""What the path of images that were handed in begins with."""
_held: dict[str, Any] = {}


@contextmanager
def holding(data: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Holds images by name while the block runs; gives the path of each.

    Args:
        data: by name, a `datasets` object; a sequence of images, or anything that can be iterated over again and again,
            as `given.encode_image` takes images; or a function that yields them, called for every pass. A path is
            given back as it is, and None is left out.

    Raises:
        TypeError: an object that cannot be read twice, or holds no images.
    """
    paths = {name: os.fspath(item) for name, item in data.items() if isinstance(item, (str, os.PathLike))}
    held = {name: item for name, item in data.items() if item is not None and name not in paths}
    for name, item in held.items():
        _check(name, item)
    before = {name: _held[name] for name in held if name in _held}
    _held.update(held)
    try:
        yield paths | {name: HELD + name for name in held}
    finally:
        for name in held:
            del _held[name]
        _held.update(before)


def is_held(path: str | None) -> bool:
    """Whether a path stands for images that were handed in."""
    return path is not None and str(path).startswith(HELD)


def held_at(config: SourceConfig) -> Any:
    """Returns what is held at `config.path`; of several splits the one that the configuration names.

    Raises:
        ValueError: nothing is held under that name, or no such split.
    """
    path = str(config.path)
    item = _held.get(path.removeprefix(HELD))
    if item is None:
        raise ValueError(
            f"{path} stands for images that were handed in from Python; call the function again with the same images"
        )
    if isinstance(item, (DatasetDict, IterableDatasetDict)):
        if config.split not in item:
            raise ValueError(f"split={config.split!r} is not in {path}; it has {few(item)}")
        item = item[config.split]
    return item


class HeldImages:
    """A sequence of images in memory, or of their paths (`base.IndexedImages`).

    Raises:
        ValueError: it is empty.
    """

    fingerprint: str | None = None

    def __init__(self, items: Sequence[Any], name: str) -> None:
        if len(items) == 0:
            raise ValueError(f"{name} has no images; give one or more")
        self._items, self._name = items, name

    def __len__(self) -> int:
        return len(self._items)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`; `fetch.Missing` where there are no bytes.

        Raises:
            ValueError: the item is not an image.
        """
        data, name = _encode(self._items[index], index, self._name)
        return data, name or f"image {index} of {self._name}"

    def name_at(self, index: int) -> str:
        """Name of image `index`."""
        return self.read(index)[1]

    def listing(self) -> dict[str, Any]:
        """As `Loaded.listing`; the digest is of the paths, where they are paths."""
        digest = hashlib.sha256(str(len(self)).encode())
        for index in range(len(self)):
            item = self._items[index] if isinstance(self._items, (list, tuple)) else None
            digest.update(f"{os.fspath(item)}\0".encode() if isinstance(item, (str, os.PathLike)) else b"")
        return {"count": len(self), "unit": "images", "digest": digest.hexdigest()[:32]}


class Passes:
    """A function that starts a new pass over an iterable."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __call__(self) -> Iterator[Any]:
        return iter(self._items)


def is_sequence(item: Any) -> bool:
    """Whether items are read by number."""
    return hasattr(item, "__len__") and hasattr(item, "__getitem__") and not isinstance(item, Mapping)


def passes_over(item: Any) -> Callable[..., Iterable[Any]]:
    """Returns the function that makes a pass over what was handed in."""
    return item if callable(item) else Passes(item)


def encoded_images(items: Iterable[Any], name: str) -> HeldImages:
    """Reads an iterable of images into memory, each image encoded.

    Raises:
        ValueError: an item is not an image.
    """
    return HeldImages([_encode(item, index, name) for index, item in enumerate(items)], name)


def _encode(item: Any, index: int, where: str) -> tuple[bytes, str | None]:
    try:
        return encode_image(item)
    except TypeError as error:
        raise ValueError(f"image {index} of {where} is {error}; give {KINDS}") from None


def _check(name: str, item: Any) -> None:
    """Refuses what cannot be read in every pass.

    Raises:
        TypeError: says what to give instead.
    """
    datasets = (Dataset, DatasetDict, IterableDataset, IterableDatasetDict)
    if isinstance(item, datasets) or is_sequence(item):
        return
    if isinstance(item, Iterator):
        raise TypeError(
            f"{name} is {_a(item)}, which can be read once only; give a list of its images, or the function that "
            "makes it"
        )
    if isinstance(item, Mapping) or not (callable(item) or isinstance(item, Iterable)):
        raise TypeError(
            f"{name} is {_a(item)}; give a path, a datasets.Dataset, a sequence or iterable of images, or a function "
            "that yields images"
        )


def _a(item: Any) -> str:
    return f"an object of the type {type(item).__name__}"
