"""Keys of a configuration as Python callers give them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf

from ..config import load_config
from ..config.layers import keys_layer
from ..config.loading import Checked

Keys = Mapping[str, Any] | Iterable[str]
"""Values by dotted key, `{"train.epochs": 3}`, or texts `key=value`, as on the command line."""
Kind = TypeVar("Kind", bound=Checked)


def as_config(
    config: str | PathLike[str] | Mapping[str, Any] | Any | None, keys: Iterable[str], kind: type[Kind]
) -> Kind:
    """Returns the checked configuration of a run or an evaluation.

    Args:
        config: a file or the name of a recipe, a mapping of its sections and keys, or a configuration; None for the
            defaults.
        keys: texts `key=value` that take precedence.
        kind: as of `config.load_config`.

    Raises:
        ValueError, FileNotFoundError: as of `config.load_config`.
    """
    if config is None or isinstance(config, (str, PathLike)):
        return load_config(config, [*keys], kind)
    if isinstance(config, Mapping):
        return load_config(keys_layer(as_overrides(config)).values, [*keys], kind)
    if not isinstance(config, kind):
        raise TypeError(f"config is {type(config).__name__}; give a file, a recipe, a mapping or a {kind.__name__}")
    values = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))
    return load_config(values, [*keys], type(config))


def as_overrides(keys: Keys) -> list[str]:
    """Returns keys as texts `key=value`, as `load_config` takes them."""
    if not isinstance(keys, Mapping):
        return [keys] if isinstance(keys, str) else [*keys]
    return [f"{key}={json.dumps(value, default=str, ensure_ascii=False)}" for key, value in keys.items()]
