"""Paths in a configuration: the fields that hold one, and what a relative one means.

A relative path in a config file is relative to the folder of that file. A relative path on the command line, from
Python or in a default is relative to the working directory.
"""

from __future__ import annotations

import copy
import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from ..files import made_curation, made_evaluation, made_run

Role = Literal["images", "model", "file", "output"]
Config = TypeVar("Config")

_ROLE = "path"
_PREFIXED = re.compile(r"[a-z]{2,}:[\w.-]+")
"""Form of a name of something that is not a file: `generator:NAME`, `memory:NAME`."""
_NAME = re.compile(r"[A-Za-z0-9][\w-]*|[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Forms of a name on the Hub or of a recipe, which is not a path where nothing lies there."""


def path_to(role: Role) -> dict[str, Any]:
    """Returns the metadata of a dataclass field that holds a path: `field(default=None, metadata=path_to("model"))`.

    Args:
        role: `images` (a source of images), `model`, `file` (another file that is read) or `output`.
    """
    return {_ROLE: role}


def paths_in(config: Any, prefix: str = "") -> Iterator[tuple[str, Role, str]]:
    """Yields dotted key, role and value of every path in a configuration that is set."""
    for key, role, holder, name in _fields_in(config, prefix):
        if value := getattr(holder, name):
            yield key, role, value


def images_of(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields dotted key and path of every source of images, such as `data.train.path`, whose path is set."""
    return ((key, value) for key, role, value in paths_in(config, prefix) if role == "images")


def models_of(config: Any) -> Iterator[tuple[str, str]]:
    """Yields dotted key and path of every model that is set, such as `init.path`."""
    return ((key, value) for key, role, value in paths_in(config) if role == "model")


def map_paths(config: Any, change: Callable[[str, Role, str], str | None]) -> None:
    """Replaces every path that is set by what `change` returns for its dotted key, role and value."""
    for key, role, holder, name in list(_fields_in(config)):
        if value := getattr(holder, name):
            setattr(holder, name, change(key, role, value))


def is_relative(value: str) -> bool:
    """Whether a value is relative to a folder; not so absolute paths, `~`, URLs and names such as `generator:NAME`."""
    if os.path.isabs(value) or value.startswith("~") or "://" in value:
        return False
    return _PREFIXED.fullmatch(value) is None or os.path.exists(value)


def leads_nowhere(value: str, path: str) -> bool:
    """Whether nothing lies at the path that a relative value leads to; not so for what may be a name on the Hub."""
    return is_relative(value) and not _NAME.fullmatch(value) and not _is_there(path)


def resolve(role: Role, value: str, folder: Path) -> tuple[str, bool]:
    """Returns the path that `value` in a config file means, seen from the working directory.

    What may be a name on the Hub or of a recipe, and is not found, stays as it is.

    Args:
        folder: of the config file.

    Returns:
        The path, and whether the rule of 0.5 was needed: nothing lies at the path relative to the file, but something
        at the same path relative to the working directory.
    """
    beside = _join(folder, value)
    if not is_relative(value) or beside == os.path.normpath(value):
        return value, False
    if _is_there(beside):
        return beside, False
    if _is_output(Path(value)) if role == "output" else _is_there(value):
        return value, True
    return (value if role != "output" and _NAME.fullmatch(value) else beside), False


def with_absolute_paths(config: Config) -> Config:
    """Returns a copy whose relative paths, which are those of the working directory, are absolute."""

    def absolute(key: str, role: Role, value: str) -> str:
        if not is_relative(value) or (role != "output" and _NAME.fullmatch(value) and not _is_there(value)):
            return value
        return os.path.abspath(value)

    config = copy.deepcopy(config)
    map_paths(config, absolute)
    return config


def same_place(first: Any, second: Any) -> bool:
    """Whether two values of a path, seen from the working directory, lead to the same place."""
    if not (isinstance(first, str) and isinstance(second, str)):
        return bool(first == second)
    return first == second or _real(first) == _real(second)


def _fields_in(config: Any, prefix: str = "") -> Iterator[tuple[str, Role, Any, str]]:
    """Yields dotted key, role, section and name of every field that holds a path."""
    if isinstance(config, dict):
        for name, section in config.items():
            yield from _fields_in(section, f"{prefix}{name}.")
    elif is_dataclass(config):
        for item in fields(config):
            if _ROLE in item.metadata:
                yield f"{prefix}{item.name}", cast(Role, item.metadata[_ROLE]), config, item.name
            else:
                yield from _fields_in(getattr(config, item.name), f"{prefix}{item.name}.")


def _join(folder: Path, value: str) -> str:
    """Joins a path to the folder, without `..` where that leads to the same place, as it may not behind links."""
    joined = os.path.join(folder, value)
    short = os.path.normpath(joined)
    return short if os.path.realpath(short) == os.path.realpath(joined) else joined


def _is_there(path: str) -> bool:
    """Whether something lies at a path, or a file fits it where it is a pattern."""
    return os.path.exists(path) or (glob.has_magic(path) and next(glob.iglob(path, recursive=True), None) is not None)


def _is_output(path: Path) -> bool:
    """Whether a folder holds what a command wrote."""
    if not path.is_dir():
        return False
    return any(made(path) for made in (made_run, made_curation, made_evaluation)) or any(path.glob("*/key.json"))


def _real(value: str) -> str:
    return os.path.realpath(os.path.expanduser(value)) if is_relative(value) or value[0] in "~/" else value
