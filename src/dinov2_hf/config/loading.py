"""Reading and writing configurations, key by key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints, overload

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..files import CHECKPOINTS, CONFIG_FILE, METRICS_FILE, SIGNATURE, STATE_FILE
from .run import RUNS, RunConfig, run_config_of
from .secrets import masked, refuse_tokens, strings_in
from .translate import translate


class Checked(Protocol):
    """A configuration: a dataclass that refuses impossible values."""

    def check(self) -> Checked: ...


Kind = TypeVar("Kind", bound=Checked)

_SAVED = (CONFIG_FILE, "curation.yaml")
_BESIDE_SAVED = (METRICS_FILE, f"{CHECKPOINTS}/step-*", STATE_FILE, ".metadata", "config.json", "stages")


@overload
def load_config(
    path: str | PathLike[str] | None = None, overrides: Sequence[str] = (), kind: type[RunConfig] = RunConfig
) -> RunConfig: ...
@overload
def load_config(
    path: str | PathLike[str] | None = None, overrides: Sequence[str] = (), kind: type[Kind] = ...
) -> Kind: ...
def load_config(
    path: str | PathLike[str] | None = None, overrides: Sequence[str] = (), kind: type[Any] = RunConfig
) -> Any:
    """The checked configuration: defaults, then the YAML file at `path`, then dotted `key=value` overrides.

    Interpolations such as `${oc.env:DATA}` are resolved, but not those of a file in a run's folder or in an export,
    which may be someone else's.

    Args:
        kind: a dataclass with `check`: of a run (the key `objective` chooses among its subclasses; default: that of
            `kind`), of an evaluation, of a curation.

    Raises:
        ValueError: a key that does not exist (with the nearest that does), a value of the wrong type, an impossible
            value or combination, an access token, an interpolation that is not resolved.
        FileNotFoundError: no file at `path`.
    """
    layers: list[tuple[str, Any]] = []
    if path is not None:
        layers.append((masked(str(path)), OmegaConf.to_container(_read(Path(path)))))
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.]*=", override):
            raise ValueError(
                f"{masked(override)!r} is not an override; write section.key=value, such as optim.base_lr=1e-3"
            )
        try:
            OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            key, _, value = override.partition("=")
            reason = " ".join(str(error).split())
            raise ValueError(
                masked(f"{override!r} has a value that is not YAML ({reason}); quote the text: {key}='\"{value}\"'")
            ) from None
    layers.append(("the command line", OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))))
    for origin, given in layers:
        refuse_tokens(given, origin)
    if issubclass(kind, RunConfig):
        layers = translate(layers, kind.objective)
        names = [str(given["objective"]) for _, given in layers if "objective" in given]
        kind = run_config_of(names[-1]) if names else RUNS[kind.objective]
    template = kind()
    for _, given in layers:
        _fill_sections(template, given)
    merged = OmegaConf.structured(template)
    for origin, given in layers:
        _refuse_unknown(given, _known_keys(given, kind, template), origin, kind)
        layer = OmegaConf.create(given)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            reason, key = str(error).splitlines()[0], str(error.full_key or "config")
            wrong = OmegaConf.select(layer, key, default=None) if error.full_key else None
            raise ValueError(masked(f"{key} in {origin}: {reason} (given: {wrong!r})")) from None
    try:
        config: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0])
        raise ValueError(masked(f"{error.full_key or 'config'}: {reason}; set it, or write the value itself")) from None
    _refuse_unsavable(config)
    return config.check()


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


def save_config(config: Any, path: str | PathLike[str]) -> None:
    """Writes every value as YAML that `load_config` reads back.

    Raises:
        ValueError: a value is an access token, or would be read back as an interpolation.
    """
    _refuse_unsavable(config)
    Path(path).write_text(f"{SIGNATURE}\n{OmegaConf.to_yaml(OmegaConf.structured(config))}")


def load_saved_config(path: str | PathLike[str]) -> RunConfig:
    """The configuration that a run saved.

    Raises:
        ValueError: not such a file, or one with an interpolation: a run saves the values themselves.
        FileNotFoundError: no file at `path`.
    """
    _refuse_interpolations(_read(Path(path)), path)
    return load_config(path)


def _read(path: Path) -> DictConfig:
    """A YAML file of sections and keys; the loader makes plain values, never objects of Python."""
    if not path.is_file():
        raise FileNotFoundError(masked(f"config file {str(path)!r} does not exist"))
    try:
        layer = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(masked(f"{path} is not a YAML file of sections and keys: {reason}")) from None
    if not isinstance(layer, DictConfig):
        raise ValueError(f"{path} does not hold sections of keys; see configs/pretrain/quickstart.yaml")
    if _is_saved(path):
        _refuse_interpolations(layer, path)
    return layer


def _is_saved(path: Path) -> bool:
    """Whether a file was left by a command, in a folder that may be someone else's."""
    if any(any(path.parent.glob(name)) for name in _BESIDE_SAVED):
        return True
    return path.name in _SAVED and path.read_text().startswith(SIGNATURE)


def _refuse_interpolations(layer: DictConfig, path: str | PathLike[str]) -> None:
    """Refuses what would read something outside of the file, such as a variable of the environment."""
    for key, value in strings_in(OmegaConf.to_container(layer)):
        if "${" in value or "${" in key:
            raise ValueError(
                f"{key} in {path} is an interpolation, which could read the environment; it is not resolved in the "
                "folder of a run or of an export; write the value there, or copy the file elsewhere if it is yours"
            )


def _refuse_unsavable(config: Any) -> None:
    refuse_tokens(config, "the configuration")
    for key, value in strings_in(config):
        if "${" in value:
            raise ValueError(
                f"{key}={value!r} has '${{' in it, which would be read back as an interpolation; rename it"
            )


def _known_keys(given: dict[str, Any], kind: type[Any], template: Any) -> list[str]:
    """The keys of a configuration whose tables have the sections that `given` names."""
    config = kind()
    if hasattr(template, "model"):
        config.model = template.model
    _fill_sections(config, given, placeholders=True)
    return list(dotted_keys(config))


def _fill_sections(config: Any, given: Any, placeholders: bool = False) -> None:
    """Makes the sections of `config` those that `given` asks for.

    A table of sections, such as `data.mix`, gets a section for each name in `given`; with `placeholders` one called
    `NAME` where `given` does not say. A section whose class depends on its values (`section_for`) gets that class.
    """
    given = given if isinstance(given, dict) else {}
    hints = get_type_hints(type(config))
    for item in fields(config):
        inside, kind = given.get(item.name), hints[item.name]
        if is_dataclass(getattr(config, item.name)):
            if hasattr(kind, "section_for") and isinstance(inside, dict) and "family" in inside:
                chosen = kind.section_for(item.name, inside)
                if type(chosen) is not type(getattr(config, item.name)):
                    setattr(config, item.name, chosen)
            _fill_sections(getattr(config, item.name), inside, placeholders)
        elif get_origin(kind) is dict and is_dataclass(get_args(kind)[1]):
            table, section = getattr(config, item.name), get_args(kind)[1]
            for name in inside if isinstance(inside, dict) else ():
                if name not in table:
                    values = inside[name] if isinstance(inside[name], dict) else {}
                    table[name] = section.section_for(name, values) if hasattr(section, "section_for") else section()
                _fill_sections(table[name], inside[name], placeholders)
            if placeholders and not isinstance(inside, dict):
                table["NAME"] = section()
                _fill_sections(table["NAME"], None, placeholders)


def _refuse_unknown(given: dict[str, Any], known: list[str], origin: str, kind: type[Any], prefix: str = "") -> None:
    sections = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    for name, value in given.items():
        key = f"{prefix}{name}"
        if key in sections:
            if not isinstance(value, dict):
                inside = ", ".join(other for other in known if other.startswith(f"{key}."))
                raise ValueError(f"{key}={value!r} in {origin}: {key} is a section; set one of {inside}")
            _refuse_unknown(value, known, origin, kind, f"{key}.")
        elif key not in known:
            candidates = known + sorted(sections)
            if readers := _objectives_that_read(key, kind):
                raise ValueError(
                    f"{key} in {origin} is not read by objective={kind.objective}; remove it, or set "
                    f"objective={' or '.join(readers)}"
                )
            near = difflib.get_close_matches(key, candidates, n=1) or [
                other for other in candidates if other.rsplit(".", 1)[-1] == str(name)
            ]
            hint = f"; did you mean {near[0]}?" if near else f"; known sections: {', '.join(sorted(sections))}"
            raise ValueError(f"{key} in {origin} is not a config key{hint}")


def _objectives_that_read(key: str, kind: type) -> list[str]:
    """The objectives whose runs have a key or section that the runs of this one do not have."""
    if not issubclass(kind, RunConfig):
        return []
    found = []
    for name, other in RUNS.items():
        keys = list(dotted_keys(other()))
        if any(one == key or one.startswith(f"{key}.") for one in keys):
            found.append(name)
    return found
