"""What a configuration reads: the paths that no command may write to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from .data import SourceConfig
from .loading import value_at

_MODELS = ("init.path", "distill.teacher", "embed.model", "concepts.model")


def images_of(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and path of every source of images, such as `data.train.path`, whose path is set."""
    if isinstance(config, SourceConfig):
        if config.path:
            yield f"{prefix}path", config.path
        return
    if is_dataclass(config):
        config = {item.name: getattr(config, item.name) for item in fields(config)}
    if isinstance(config, dict):
        for name, value in config.items():
            yield from images_of(value, f"{prefix}{name}.")


def models_of(config: Any) -> Iterator[tuple[str, str]]:
    """Dotted key and path of every model that is set, such as `init.path`."""
    for key in _MODELS:
        if hasattr(config, key.partition(".")[0]) and (path := value_at(config, key)):
            yield key, path
