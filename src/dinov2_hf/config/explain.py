"""A configuration as YAML, with a comment at each value that says where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

from .loading import Loaded
from .paths import with_absolute_paths
from .secrets import masked


def explain(loaded: Loaded[Any]) -> str:
    """Returns every value as YAML that `load_config` reads back from any folder, and where each comes from."""
    return masked("\n".join(_lines(with_absolute_paths(loaded.config), loaded.origin_of)))


def _lines(config: Any, origin_of: Callable[[str], str], prefix: str = "", indent: str = "") -> Iterator[str]:
    named = config if isinstance(config, dict) else {item.name: getattr(config, item.name) for item in fields(config)}
    for name, value in named.items():
        key = f"{prefix}{name}"
        if is_dataclass(value) or (isinstance(value, dict) and value):
            yield f"{indent}{_yaml({name: {}}).removesuffix(' {}')}"
            yield from _lines(value, origin_of, f"{key}.", f"{indent}  ")
            continue
        first, *more = _yaml({name: value}).split("\n")
        comment = f"# {origin_of(key)}"
        if more and isinstance(value, str):  # a comment would end the text
            yield f"{indent}{comment}"
            yield f"{indent}{first}"
        else:
            yield f"{indent}{first}  {comment}"
        yield from (f"{indent}{line}" for line in more)


def _yaml(values: dict[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(values)).rstrip("\n")
