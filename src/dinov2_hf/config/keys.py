"""The dotted keys of a configuration: which there are, and the refusal of others."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from .model import FAMILIES
from .run import RUNS, RunConfig


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


def is_given(values: Any, key: str) -> bool:
    """Whether sections and keys out of a file have the dotted `key`."""
    for name in key.split("."):
        if not (isinstance(values, dict) and name in values):
            return False
        values = values[name]
    return True


def known_keys(given: dict[str, Any], kind: type[Any], template: Any) -> list[str]:
    """The keys of a configuration whose tables have the sections that `given` names."""
    config = kind()
    if hasattr(template, "model"):
        config.model = template.model
    fill_sections(config, given, placeholders=True)
    return list(dotted_keys(config))


def fill_sections(config: Any, given: Any, placeholders: bool = False) -> None:
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
            fill_sections(getattr(config, item.name), inside, placeholders)
        elif get_origin(kind) is dict and is_dataclass(get_args(kind)[1]):
            table, section = getattr(config, item.name), get_args(kind)[1]
            for name in inside if isinstance(inside, dict) else ():
                if name not in table:
                    values = inside[name] if isinstance(inside[name], dict) else {}
                    table[name] = section.section_for(name, values) if hasattr(section, "section_for") else section()
                fill_sections(table[name], inside[name], placeholders)
            if placeholders and not isinstance(inside, dict):
                table["NAME"] = section()
                fill_sections(table["NAME"], None, placeholders)


def refuse_unknown(given: dict[str, Any], known: list[str], origin: str, kind: type[Any], prefix: str = "") -> None:
    """Refuses keys that are not among `known`, and values in the place of sections.

    Raises:
        ValueError: naming the key, where it is given, and the nearest one.
    """
    sections = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    for name, value in given.items():
        key = f"{prefix}{name}"
        if key in sections:
            if not isinstance(value, dict):
                inside = ", ".join(other for other in known if other.startswith(f"{key}."))
                raise ValueError(f"{key}={value!r} in {origin}: {key} is a section; set one of {inside}")
            refuse_unknown(value, known, origin, kind, f"{key}.")
        elif key not in known:
            candidates = known + sorted(sections)
            if f"{prefix}family" in known and (families := _families_that_read(str(name))):
                raise ValueError(
                    f"{key} in {origin} is not read by the chosen {prefix}family; remove it, or set "
                    f"{prefix}family={' or '.join(families)}"
                )
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


def _families_that_read(name: str) -> list[str]:
    """The families of backbones whose section has a key."""
    return [family for family, section in FAMILIES.items() if any(item.name == name for item in fields(section))]


def _objectives_that_read(key: str, kind: type[Any]) -> list[str]:
    """The objectives whose runs have a key or section that the runs of this one do not have."""
    if not issubclass(kind, RunConfig):
        return []
    found = []
    for name, other in RUNS.items():
        keys = list(dotted_keys(other()))
        if any(one == key or one.startswith(f"{key}.") for one in keys):
            found.append(name)
    return found
