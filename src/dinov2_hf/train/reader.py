"""Reading of checkpoints that others may have written: their metadata is a pickle, and pickles can run code."""

from __future__ import annotations

import pickle

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata

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

    def find_class(self, module: str, name: str):
        own = getattr(metadata, name, None) if module == metadata.__name__ else None
        is_own = isinstance(own, type) and own.__module__ == module
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_own or is_dtype or (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its metadata asks for {module}.{name}, which is no part of a checkpoint")


class CheckpointReader(dcp.FileSystemReader):
    """As the reader of torch, but the metadata may hold nothing besides names, shapes, types and places of tensors.

    `read_metadata` raises `pickle.UnpicklingError` where it does.
    """

    def read_metadata(self, *args, **kwargs) -> metadata.Metadata:
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            found = _Unpickler(file).load()
        if not isinstance(found, metadata.Metadata):
            raise pickle.UnpicklingError("its metadata is that of something else")
        if found.storage_meta is None:
            found.storage_meta = metadata.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found
