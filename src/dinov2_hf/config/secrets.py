"""Access tokens in the place of other values: found, masked, refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

_TOKEN = re.compile(r"(hf_oauth_|hf_jwt_)[\w.-]{20,}|(hf_|api_org_)[A-Za-z0-9]{20,}")
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_SHORTEST = 16
"""Letters below which the value of a variable is not looked for: it would be found in ordinary words."""


def find_tokens(text: str) -> list[str]:
    """The access tokens in `text`: those of the Hub's forms, and the values of `HF_TOKEN` and its older names."""
    values = (os.environ.get(name, "").strip() for name in _VARIABLES)
    known = [value for value in values if len(value) >= _SHORTEST and value in text]
    return list(dict.fromkeys([match[0] for match in _TOKEN.finditer(text)] + known))


def masked(text: str) -> str:
    """`text` with `hf_***` in the place of every access token."""
    for token in sorted(find_tokens(text), key=len, reverse=True):
        text = text.replace(token, "hf_***")
    return text


def refuse_tokens_in_arguments(arguments: Sequence[str]) -> None:
    """Refuses a command line with an access token in it.

    Raises:
        ValueError: naming the argument, masked.
    """
    for argument in arguments:
        if find_tokens(argument):
            raise ValueError(
                f"{masked(argument)!r} holds an access token, and command lines can be read by others; give a name or "
                "a path there, and the token in HF_TOKEN or with `hf auth login`"
            )


def refuse_tokens(values: Any, origin: str) -> None:
    """Refuses a configuration, a dataclass or what a YAML file holds, with an access token in a key or a value.

    Raises:
        ValueError: naming the key, with the value masked.
    """
    for key, value in strings_in(values):
        if find_tokens(key) or find_tokens(value):
            raise ValueError(
                f"{masked(key)}={masked(value)} in {origin} holds an access token, and configurations are kept and "
                "published; give a name or a path there, and the token in HF_TOKEN or with `hf auth login`"
            )


def strings_in(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every value under `values` that is a string, keys of empty tables included."""
    if is_dataclass(values):
        values = {item.name: getattr(values, item.name) for item in fields(values)}
    if isinstance(values, dict):
        for name, value in values.items():
            key = f"{prefix}.{name}" if prefix else str(name)
            yield key, ""
            yield from strings_in(value, key)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from strings_in(value, prefix)
    elif isinstance(values, str):
        yield prefix, values
