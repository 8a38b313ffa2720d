"""The keys of a configuration with what their docstrings say, for people."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any


def describe_keys(config: Any) -> Iterator[tuple[str, Any, str]]:
    """Yields the dotted key, the default and the explanation of every value that can be set.

    Args:
        config: a configuration class, or what `sections_of` returns.
    """
    return _described(config() if isinstance(config, type) else config, "")


def _described(config: Any, prefix: str) -> Iterator[tuple[str, Any, str]]:
    texts = _docstrings(type(config))  # type: ignore[arg-type]  # a class is hashable
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _described(value, f"{prefix}{item.name}.")
            continue
        sections = value if isinstance(value, dict) and any(map(is_dataclass, value.values())) else {}
        yield f"{prefix}{item.name}", {} if sections else value, texts.get(item.name, "")
        for name, section in sections.items():
            yield from _described(section, f"{prefix}{item.name}.{name}.")


@cache
def _docstrings(kind: type) -> dict[str, str]:
    """The string that follows each field, in the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for statement, after in zip(body, body[1:]):
            match statement, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
