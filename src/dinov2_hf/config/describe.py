"""The keys of a configuration with what their docstrings say, for people."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any


def describe_keys(kind: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yields the dotted key, the default and the explanation of every value that can be set."""
    config, texts = kind(), _docstrings(kind)
    for item in fields(kind):
        value, text = getattr(config, item.name), texts.get(item.name, "")
        if is_dataclass(value):
            own = dict(_without_text(value, f"{prefix}{item.name}."))
            for key, _, inner in describe_keys(type(value), f"{prefix}{item.name}."):
                yield key, own[key], inner
        else:
            yield f"{prefix}{item.name}", value, text


def _without_text(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _without_text(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value


def _docstrings(kind: type) -> dict[str, str]:
    """The string that follows each field, in the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for statement, after in zip(body, body[1:]):
            named = isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr)
            if named and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                found[statement.target.id] = " ".join(after.value.value.split())
    return found
