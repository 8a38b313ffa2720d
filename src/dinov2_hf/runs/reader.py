"""Reading of checkpoints that others may have written: pickles in them can run code and name files elsewhere."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.planner import ReadItem

from ..files import first_line, lies_in

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"),
}


class _Unpickler(pickle.Unpickler):
    """Makes what `torch.distributed.checkpoint` writes into its metadata, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        own = getattr(metadata, name, None) if module == metadata.__name__ else None
        is_own = isinstance(own, type) and own.__module__ == module
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_own or is_dtype or (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"asks for {module}.{name}, which is not part of a checkpoint")


class CheckpointReader(FileSystemReader):
    """Reads as the reader of torch does, but only names, shapes, types and places of tensors in files of the folder.

    `read_metadata` raises `ValueError` for metadata that is damaged, holds anything else or names a file elsewhere.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            with path.open("rb") as file:
                loaded = _Unpickler(file).load()
            found = self._check(loaded)
        except OSError as error:
            raise ValueError(f"{path.name} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # what a damaged pickle raises can be anything
            raise ValueError(f"{path.name} {first_line(error)}") from None
        if found.storage_meta is None:
            found.storage_meta = metadata.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found

    def _check(self, found: Any) -> metadata.Metadata:
        """Raises ValueError unless every tensor lies within a file of the folder, and is no larger than it."""
        if not isinstance(found, metadata.Metadata) or not isinstance(found.storage_data, dict):
            raise ValueError("is the metadata of something else")
        sizes: dict[str, int] = {}
        for place in found.storage_data.values():
            name, begin, length = place.relative_path, place.offset, place.length
            if name not in sizes:
                if not lies_in(Path(self.path), name):
                    raise ValueError(f"names {name!r}, which lies outside the folder of the checkpoint")
                file = Path(self.path) / name
                if not file.is_file():
                    raise ValueError(f"names {name}, which is missing")
                sizes[name] = file.stat().st_size
            if not 0 <= begin <= begin + length <= sizes[name]:
                raise ValueError(f"needs {begin + length} bytes of {name}, which has {sizes[name]}")
        names = {index.fqn for index in found.storage_data}
        tensors = tensors_in(found).values()
        if lacking := sorted(found.state_dict_metadata.keys() - names):
            raise ValueError(f"does not say where {lacking[0]} is")
        if sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in tensors) > sum(sizes.values()):
            raise ValueError("names tensors that are larger than the files")
        return found

    def find_flipped(self, places: list[_StorageInfo]) -> str | None:
        """Which file differs from what was written, by the CRC-32 that `torch.save` adds to every tensor.

        For checkpoints without a manifest; costs a reading of the places.
        """
        for place in places:
            try:
                with (Path(self.path) / place.relative_path).open("rb") as file:
                    part = io.BufferedReader(_Slice(file, place.offset, place.length), 1 << 20)
                    with zipfile.ZipFile(part) as archive:
                        odd = archive.testzip()
            except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError):
                odd = place.relative_path
            if odd:
                return place.relative_path
        return None


def tensors_in(found: metadata.Metadata) -> dict[str, metadata.TensorStorageMetadata]:
    """The entries of tensors, by name; the others are of settings."""
    entries = found.state_dict_metadata.items()
    return {name: entry for name, entry in entries if isinstance(entry, metadata.TensorStorageMetadata)}


class _Slice(io.RawIOBase):
    """A part of an open file as a file by itself."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if self._at < 0:
            raise ValueError(f"position {self._at} is before the start")
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(self._length - self._at, 0))
        self._file.seek(self._offset + self._at)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class CheckpointPlanner(DefaultLoadPlanner):
    """Loads what is not a tensor (settings of the optimiser) without running code, and only in place of its like."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        loaded = torch.load(value, map_location="cpu", weights_only=True)
        if not _is_like(loaded, self.state_dict[name]):
            raise ValueError(f"{name} is {loaded!r} in the checkpoint and {self.state_dict[name]!r} in this run")
        set_element(self.original_state_dict, self.mappings[name], loaded)


def _is_like(value: Any, expected: Any) -> bool:
    """Whether one may stand in the place of the other: numbers, switches and None for each other, else the same."""
    if isinstance(expected, (list, tuple)):
        if type(value) is not type(expected) or len(value) != len(expected):
            return False
        return all(_is_like(*pair) for pair in zip(value, expected))
    plain = (bool, int, float, type(None))
    return value == expected if not isinstance(expected, plain) else isinstance(value, plain)
