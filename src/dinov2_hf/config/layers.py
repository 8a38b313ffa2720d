"""The layers of a configuration over the defaults: a config file or a mapping, then the keys of the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..files import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, SIGNATURE, STATE_FILE, made_run
from .recipes import find_recipe, recipes_folder
from .secrets import masked, strings_in

Source = str | PathLike[str] | Mapping[str, Any]
"""The name of a recipe, the path of a YAML file, or sections and keys."""

CURATION_FILE = "curation.yaml"
COMMAND_LINE = "the command line"

_SAVED = (CONFIG_FILE, CURATION_FILE)
_BESIDE_SAVED = (METRICS_FILE, f"{CHECKPOINTS}/step-*", STATE_FILE, ".metadata", "config.json", "stages")


@dataclass(frozen=True)
class Layer:
    """Sections and keys that override those of the layers before."""

    origin: str
    """What messages call it."""
    values: dict[str, Any]
    folder: Path | None = None
    """What relative paths in it are relative to; None: the working directory."""
    file: Path | None = None
    translated: tuple[str, ...] = ()
    """Keys that it does not have itself: they stand for those of dinov2_hf 0.5."""

    @property
    def is_recipe(self) -> bool:
        """Whether it is a file that is shipped with the package."""
        return self.file is not None and Path(os.path.realpath(self.file)).is_relative_to(
            os.path.realpath(recipes_folder())
        )


def open_layer(source: Source, kind: str) -> Layer:
    """Reads a recipe, a config file or a mapping. An existing file comes before a recipe of the same name.

    Args:
        kind: of the recipes that are looked through first.

    Raises:
        FileNotFoundError: neither a file nor a recipe.
        ValueError: it does not hold sections and keys; the name of several recipes.
    """
    if isinstance(source, Mapping):
        try:
            return Layer("the mapping", _container(OmegaConf.create(dict(source))))
        except OmegaConfBaseException as error:
            raise ValueError(masked(f"the mapping does not hold sections and keys: {_in_one_line(error)}")) from None
    origin, path = masked(os.fspath(source)), Path(source)
    if not path.is_file():
        recipe = find_recipe(os.fspath(source), kind)
        if recipe.kind == "accelerate":
            raise ValueError(
                f"{origin} is a launch file of accelerate, not a configuration of a run; give it to "
                f'accelerate launch --config_file "$(dinov2-hf recipes --path {recipe.stem})"'
            )
        origin, path = f"the recipe {recipe.name}", recipe.path
    return Layer(origin, _container(read_file(path)), None if _is_written(path) else path.parent, path)


def keys_layer(overrides: Sequence[str]) -> Layer:
    """Reads dotted `key=value` overrides.

    Raises:
        ValueError: one of another form, or with a value that is not YAML.
    """
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.]*=", override):
            raise ValueError(
                f"{masked(override)!r} is not an override; write section.key=value, such as optim.base_lr=1e-3"
            )
        try:
            OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            key, _, value = override.partition("=")
            raise ValueError(
                masked(
                    f"{override!r} has a value that is not YAML ({_in_one_line(error)}); "
                    f"quote the text: {key}='\"{value}\"'"
                )
            ) from None
    return Layer(COMMAND_LINE, _container(OmegaConf.from_dotlist(list(overrides))))


def read_file(path: Path) -> DictConfig:
    """Reads a YAML file of sections and keys; the loader makes plain values, never objects of Python.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: it holds something else, or an interpolation where another may have left the file.
    """
    if not path.is_file():
        raise FileNotFoundError(masked(f"config file {str(path)!r} does not exist"))
    try:
        layer = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(masked(f"{path} is not a YAML file of sections and keys: {_in_one_line(error)}")) from None
    if not isinstance(layer, DictConfig):
        raise ValueError(f"{path} does not hold sections of keys; `dinov2-hf recipes quickstart` shows such a file")
    if _is_saved(path):
        refuse_interpolations(layer, path)
    return layer


def refuse_interpolations(layer: DictConfig, path: str | PathLike[str]) -> None:
    """Refuses what would read something outside of the file, such as a variable of the environment."""
    for key, value in strings_in(_container(layer)):
        if "${" in value or "${" in key:
            raise ValueError(
                f"{key} in {path} is an interpolation, which could read the environment; it is not resolved in the "
                "folder of a run or of an export; write the value there, or copy the file elsewhere if it is yours"
            )


def _is_saved(path: Path) -> bool:
    """Whether a file was left by a command, in a folder that may be someone else's."""
    return any(any(path.parent.glob(name)) for name in _BESIDE_SAVED) or _is_signed(path)


def _is_written(path: Path) -> bool:
    """Whether a command wrote a file: relative paths, of 0.5, are then those of the working directory."""
    if path.name not in _SAVED:
        return False
    return _is_signed(path) or made_run(path.parent) or (path.parent / STATE_FILE).is_file()


def _is_signed(path: Path) -> bool:
    return path.name in _SAVED and path.read_text().startswith(SIGNATURE)


def _container(layer: Any) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(layer))


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
