"""Features on disk: sharded safetensors in a folder of their own for each network, data and transform."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import beside


class FeatureCache:
    """Shards of features under `folder/<digest of key>/`, with the key beside them in `key.json`.

    A shard is written beside and renamed, so that what is there is whole.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        text = json.dumps(key, indent=2, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._key = text + "\n"

    def has(self, number: int) -> bool:
        return self._path(number).is_file()

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Leaves shard `number`.

        Raises:
            OSError: the folder cannot be written.
        """
        with beside(self.folder / "key.json") as path:
            path.write_text(self._key)
        with beside(self._path(number)) as path:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)

    def read(self, number: int) -> dict[str, Tensor]:
        """The tensors of shard `number`.

        Raises:
            ValueError: it is damaged.
        """
        path = self._path(number)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the features in {path} cannot be read: {error}; remove {self.folder}") from None

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number:05}.safetensors"
