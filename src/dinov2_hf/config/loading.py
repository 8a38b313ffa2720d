"""Reading and writing configurations: defaults, then a file, then the keys of the command line."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..files import SIGNATURE, made_run
from .curation import CurationConfig
from .keys import fill_sections, is_given, known_keys, refuse_unknown, value_at
from .layers import Layer, Source, keys_layer, open_layer, read_file, refuse_interpolations
from .notes import say
from .paths import Role, leads_nowhere, map_paths, resolve, with_absolute_paths
from .run import RUNS, RunConfig, run_config_of
from .secrets import masked, refuse_tokens, strings_in
from .shorthand import choose_learning_rate, share_of, take_shares
from .translate import translate

_OUTPUT_OF_0_5 = "runs/pretrain"


class Checked(Protocol):
    """A configuration: a dataclass that refuses impossible values."""

    def check(self) -> Any: ...


Kind = TypeVar("Kind", bound=Checked)


@dataclass(frozen=True)
class Loaded(Generic[Kind]):
    """A checked configuration, and where its values come from."""

    config: Kind
    layers: list[Layer]

    def origin_of(self, key: str) -> str:
        """Returns where the value of a dotted key comes from: `default`, or what messages call the file."""
        layer = _last_with(self.layers, key)
        if layer is None:
            return "default"
        if (value := value_at(layer.values, key)) is not None and share_of(value) is not None:
            return f"{layer.origin}, {value} of the run"
        return f"{layer.origin}, translated from 0.5" if key in layer.translated else layer.origin


@overload
def load_config(
    path: Source | None = None, overrides: Sequence[str] = (), kind: type[RunConfig] = RunConfig
) -> RunConfig: ...
@overload
def load_config(path: Source | None = None, overrides: Sequence[str] = (), kind: type[Kind] = ...) -> Kind: ...
def load_config(path: Source | None = None, overrides: Sequence[str] = (), kind: type[Any] = RunConfig) -> Any:
    """Returns the checked configuration: defaults, then the file at `path`, then dotted `key=value` overrides.

    Interpolations such as `${oc.env:DATA}` are resolved, but not those of a file in a run's folder or in an export,
    which may be someone else's. Relative paths in the file are relative to its folder, others to the working directory.

    Args:
        path: a YAML file, the name of a recipe (`dinov2-hf recipes` lists them), or a mapping of sections and keys.
        kind: a dataclass with `check`: of a run (the key `objective` chooses among its subclasses; default: that of
            `kind`), of an evaluation, of a curation.

    Raises:
        ValueError: a key that does not exist (with the nearest that does), a value of the wrong type, an impossible
            value or combination, an access token, an interpolation that is not resolved, a value left open (`???`).
        FileNotFoundError: neither a file nor a recipe at `path`.
    """
    return load_with_origins(path, overrides, kind).config


def load_with_origins(path: Source | None, overrides: Sequence[str], kind: type[Any]) -> Loaded[Any]:
    """As `load_config`, with the layers that the values come from."""
    layers, kind = _open_layers(path, overrides, kind)
    template = kind()
    for layer in layers:
        fill_sections(template, layer.values)
    merged: Any = OmegaConf.structured(template)
    shares: dict[str, float | None] = {}
    for layer in layers:
        refuse_unknown(layer.values, known_keys(layer.values, kind, template), layer.origin, kind)
        in_epochs, given_shares = take_shares(layer, template)
        shares |= given_shares
        given = OmegaConf.create(in_epochs.values)
        try:
            merged = OmegaConf.merge(merged, given)
        except OmegaConfBaseException as error:
            reason, key = str(error).splitlines()[0], str(error.full_key or "config")
            value = OmegaConf.select(given, key, default=None) if error.full_key else None
            raise ValueError(masked(f"{key} in {layer.origin}: {reason} (given: {value!r})")) from None
    _refuse_open(layers)
    try:
        for key, share in shares.items():
            if share is not None:
                OmegaConf.update(merged, key, share * merged.train.epochs)
        config: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
        raise ValueError(masked(f"{error.full_key or 'config'}: {reason}; set it, or write the value itself")) from None
    _resolve_paths(config, layers)
    _name_output(config, layers[0].file)
    _refuse_unsavable(config)
    return Loaded(config.check(), layers)


def sections_of(path: Source | None, overrides: Sequence[str], kind: type[Any]) -> Any:
    """Returns the sections with the defaults of a configuration that a file and overrides choose, for `describe_keys`.

    The objective and the families of the backbones are those that are named; a table of sections has one called `NAME`.

    Raises:
        as `load_config` where a file or an override cannot be read.
    """
    layers, kind = _open_layers(path, overrides, kind)
    template = kind()
    for layer in layers:
        fill_sections(template, layer.values, placeholders=True)
    return template


def _open_layers(path: Source | None, overrides: Sequence[str], kind: type[Any]) -> tuple[list[Layer], type[Any]]:
    """Reads a file and overrides, and chooses the configuration of the objective that they name."""
    layers = [] if path is None else [open_layer(path, getattr(kind, "recipes", "pretrain"))]
    layers.append(keys_layer(overrides))
    for layer in layers:
        refuse_tokens(layer.values, layer.origin)
    if issubclass(kind, RunConfig):
        layers = translate(layers, kind.objective)
        names = [str(layer.values["objective"]) for layer in layers if "objective" in layer.values]
        kind = run_config_of(names[-1]) if names else RUNS[kind.objective]
        layers = [choose_learning_rate(layer) for layer in layers]
    return layers, kind


def save_config(config: Any, path: str | PathLike[str]) -> None:
    """Writes every value as YAML that `load_config` reads back; paths are absolute, so that they stay the same.

    Raises:
        ValueError: a value is an access token, or would be read back as an interpolation.
    """
    _refuse_unsavable(config)
    text = OmegaConf.to_yaml(OmegaConf.structured(with_absolute_paths(config)))
    Path(path).write_text(f"{SIGNATURE}\n{text}")


def load_saved_config(path: str | PathLike[str]) -> RunConfig:
    """The configuration that a run saved.

    Raises:
        ValueError: not such a file, or one with an interpolation: a run saves the values themselves.
        FileNotFoundError: no file at `path`.
    """
    refuse_interpolations(read_file(Path(path)), path)
    return load_config(path)


def _last_with(layers: Sequence[Layer], key: str) -> Layer | None:
    """The layer that a value comes from; None for a default."""
    return next((layer for layer in reversed(layers) if is_given(layer.values, key)), None)


def _refuse_open(layers: Sequence[Layer]) -> None:
    """Refuses a value that is left open (`???`) and that no later layer sets."""
    for layer in layers:
        for key, value in strings_in(layer.values):
            if value == "???" and _last_with(layers, key) is layer:
                raise ValueError(f"{key} is left open in {layer.origin}; set it: {key}=…")


def _resolve_paths(config: Any, layers: Sequence[Layer]) -> None:
    """Makes the relative paths of a config file those that they mean from the working directory.

    Images that a recipe of the package names and that are not installed with it are left unset.
    """
    missing: dict[str, str] = {}
    old: dict[str, list[str]] = {}

    def resolved(key: str, role: Role, value: str) -> str | None:
        layer = _layer_of_path(layers, key)
        if layer is None or layer.folder is None:
            return value
        path, of_0_5 = resolve(role, value, layer.folder)
        if of_0_5:
            old.setdefault(layer.origin, []).append(f"{key}={os.path.relpath(path, layer.folder)}")
        if role == "images" and layer.is_recipe and leads_nowhere(value, path):
            missing[key] = value
            return None
        return path

    map_paths(config, resolved)
    for origin, keys in old.items():
        say(
            logging.WARNING,
            f"{origin} has paths that are relative to the working directory, as in dinov2_hf 0.5; a path in a config "
            f"file is relative to the folder of the file, and from 1.0 on only that holds; write {' and '.join(keys)}",
        )
    if missing:
        value, unset = next(iter(missing.values())), ", ".join(missing)
        say(logging.WARNING, f"{value} is not installed with the recipe; not set: {unset}; give images of your own")


def _layer_of_path(layers: Sequence[Layer], key: str) -> Layer | None:
    """The layer that a path comes from; of an interpolation of another key, the layer of that key."""
    layer = _last_with(layers, key)
    given = value_at(layer.values, key) if layer else None
    if isinstance(given, str) and (other := re.fullmatch(r"\$\{(\w[\w.]*)\}", given)):
        return _last_with(layers, other[1])
    return layer


def _name_output(config: Any, file: Path | None) -> None:
    """Sets the default of the output folder: `runs/NAME`, of the config file or else of the objective.

    Distillations and curations have their kind before the name, as recipes of several kinds may have the same one.
    """
    if isinstance(config, RunConfig) and not config.train.output_dir:
        config.train.output_dir = _output(config.recipes, file) if file else f"runs/{config.objective}"
        if made_run(Path(_OUTPUT_OF_0_5)) and not os.path.exists(config.train.output_dir):
            say(
                logging.WARNING,
                f"{_OUTPUT_OF_0_5} was the default of train.output_dir in dinov2_hf 0.5 and holds a run; this one goes "
                f"to {config.train.output_dir}; to continue that one, set train.output_dir={_OUTPUT_OF_0_5}",
            )
    elif isinstance(config, CurationConfig) and not config.output_dir and file:
        config.output_dir = _output(config.recipes, file)


def _output(kind: str, file: Path) -> str:
    return f"runs/{file.stem if kind == 'pretrain' or file.stem.startswith(kind) else f'{kind}_{file.stem}'}"


def _refuse_unsavable(config: Any) -> None:
    refuse_tokens(config, "the configuration")
    for key, value in strings_in(config):
        if "${" in value:
            raise ValueError(
                f"{key}={value!r} has '${{' in it, which would be read back as an interpolation; rename it"
            )
