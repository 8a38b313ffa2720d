"""Index files of weights in several parts: each part lies beside its index."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

from ..files import lies_in


def check_indices(folder: str | PathLike[str] | None, subfolder: str | None = None) -> None:
    """Refuses index files in a folder, such as `model.safetensors.index.json`, that name files outside it.

    Does nothing where there is not such a folder, as with names on the Hub: there `huggingface_hub` refuses them.

    Raises:
        ValueError: naming the index and the file.
    """
    for path in sorted(Path(folder or "", subfolder or "").glob("*.index.json")) if folder else []:
        try:
            names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{path} is not an index of weights; fetch or export the model again") from None
        for name in names:
            if not lies_in(path.parent, name):
                raise ValueError(
                    f"{path} names {name!r}, which lies outside its folder; all parts of a model lie beside its index"
                )
