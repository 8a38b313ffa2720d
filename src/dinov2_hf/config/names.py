"""Names of models and sets of images that may be published: never a path of this machine."""

from __future__ import annotations

import re
from pathlib import Path

from .data import SourceConfig


def hub_name(path: str | None) -> str | None:
    """A path of the configuration, if it is the name of something on the Hub and not of a file or folder here."""
    if path is None or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path):
        return None
    return None if path.endswith(".pth") or Path(path).exists() or Path(path).parent.exists() else path


def public_name(path: str) -> str:
    """What may be told of a path: its name on the Hub, or its last part."""
    return hub_name(path) or re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def name_of_source(source: SourceConfig) -> str:
    """A source of images as a card names it; a pattern of files by the folder that they are in."""
    path = source.path or ""
    if "*" in path:
        path = str(Path(path.split("*")[0] + "x").parent)
    return public_name(path) + (f" ({source.name})" if source.name else "")
