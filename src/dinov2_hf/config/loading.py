"""Reading and writing configurations, key by key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .runs import DistillConfig, PretrainConfig

Kind = TypeVar("Kind")


def load_config(
    path: str | PathLike | None = None, overrides: Sequence[str] = (), kind: type[Kind] = PretrainConfig
) -> Kind:
    """The checked configuration: defaults, then the YAML file at `path`, then dotted `key=value` overrides.

    Args:
        kind: of run (`PretrainConfig` or `DistillConfig`), of evaluation, of curation: a dataclass with `check`.

    Raises:
        ValueError: a key that does not exist (with the nearest that does), a value of the wrong type, an impossible
            value or combination.
        FileNotFoundError: no file at `path`.
    """
    merged = OmegaConf.structured(kind)
    layers: list[tuple[str, Any]] = []
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"config file {str(path)!r} does not exist")
        try:
            layers.append((str(path), OmegaConf.load(path)))
        except (yaml.YAMLError, OSError, OmegaConfBaseException) as error:
            raise ValueError(f"{path} is not a YAML file of sections and keys: {error}") from None
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.]*=", override):
            raise ValueError(f"{override!r} is not an override; write section.key=value, such as optim.base_lr=1e-3")
    layers.append(("the command line", OmegaConf.from_dotlist(list(overrides))))
    for origin, layer in layers:
        given = OmegaConf.to_container(layer)
        if not isinstance(given, dict):
            raise ValueError(f"{origin} does not hold sections of keys; see configs/pretrain/quickstart.yaml")
        _refuse_unknown(given, _known_keys(given, kind), origin)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            reason, key = str(error).splitlines()[0], error.full_key or "config"
            value = OmegaConf.select(layer, key, default=None) if error.full_key else None
            raise ValueError(f"{key} in {origin}: {reason} (given: {value!r})") from None
    return OmegaConf.to_object(merged).check()


def dotted_keys(config: Any, prefix: str = "") -> Iterable[str]:
    """The keys of all values under `config`, such as `optim.base_lr`; a table of sections without any is one key."""
    named = config if isinstance(config, dict) else {item.name: getattr(config, item.name) for item in fields(config)}
    for name, value in named.items():
        if is_dataclass(value) or (isinstance(value, dict) and value):
            yield from dotted_keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def value_at(config: Any, key: str) -> Any:
    """The value of the dotted `key`; None in a section of a table that has no such section."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else getattr(config, name)
        if config is None:
            return None
    return config


def save_config(config: PretrainConfig, path: str | PathLike) -> None:
    """Writes every value as YAML that `load_config` reads back."""
    Path(path).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))


def load_saved_config(path: str | PathLike) -> PretrainConfig:
    """The configuration that a run saved, of pretraining or of distillation, which has a section `distill`."""
    saved = OmegaConf.load(path)
    return load_config(path, kind=DistillConfig if "distill" in saved else PretrainConfig)


def _known_keys(given: dict, kind: type) -> list[str]:
    """The keys of a configuration whose tables have the sections that `given` names."""
    config = kind()
    _fill_tables(config, given)
    return list(dotted_keys(config))


def _fill_tables(config: Any, given: Any) -> None:
    """Gives every table of sections in `config`, such as `data.mix`, an empty section for each name in `given`."""
    given = given if isinstance(given, dict) else {}
    hints = get_type_hints(type(config))
    for item in fields(config):
        inside = given.get(item.name)
        if is_dataclass(getattr(config, item.name)):
            _fill_tables(getattr(config, item.name), inside)
        elif get_origin(hints[item.name]) is dict and is_dataclass(section := get_args(hints[item.name])[1]):
            table = {name: section() for name in (inside if isinstance(inside, dict) else ["NAME"])}
            for name, value in table.items():
                _fill_tables(value, inside.get(name) if isinstance(inside, dict) else None)
            setattr(config, item.name, table)


def _refuse_unknown(given: dict, known: list[str], origin: str, prefix: str = "") -> None:
    sections = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    for name, value in given.items():
        key = f"{prefix}{name}"
        if key in sections:
            if not isinstance(value, dict):
                inside = ", ".join(other for other in known if other.startswith(f"{key}."))
                raise ValueError(f"{key}={value!r} in {origin}: {key} is a section; set one of {inside}")
            _refuse_unknown(value, known, origin, f"{key}.")
        elif key not in known:
            candidates = known + sorted(sections)
            near = difflib.get_close_matches(key, candidates, n=1) or [
                other for other in candidates if other.rsplit(".", 1)[-1] == str(name)
            ]
            hint = f"; did you mean {near[0]}?" if near else f"; known sections: {', '.join(sorted(sections))}"
            raise ValueError(f"{key} in {origin} is not a config key{hint}")
