"""The rules that values are held to: each says the key, the value, the rule and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

IMPORT_FIRST = "a part of your own is there once its file is imported (--import FILE)"
"""The remedy where a name is not registered."""
SHARE_OF_RUN = "share_of_run"
"""Metadata of a field with a length in epochs that may be given as a share of the run: a usual share."""


def usual_share(share: str) -> dict[str, str]:
    """Returns the metadata of a dataclass field with a length in epochs that is part of the run.

    Such a key takes a share of the run too: `optim.warmup_epochs=10%`. See `shorthand.py`.

    Args:
        share: a usual one, such as `10%`, which messages offer as a remedy.
    """
    return {SHARE_OF_RUN: share}


def choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r} is not one of {', '.join(choices)}")


def positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{key}={value} is not positive; use a value above 0")


def at_least(key: str, value: float, lowest: float) -> None:
    if not value >= lowest:
        raise ValueError(f"{key}={value} is below {lowest}; use {lowest} or more")


def share(key: str, value: float, below_one: bool = False) -> None:
    if not (0 <= value < 1 if below_one else 0 <= value <= 1):
        raise ValueError(f"{key}={value} is not in [0, 1{')' if below_one else ']'}; it is a share")


def interval(key: str, value: Sequence[float], lowest: float, highest: float) -> None:
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest or value[1] == 0:
        raise ValueError(f"{key}={list(value)} is not [smallest, largest] within [{lowest}, {highest}]")


def multiple_of_patch(key: str, size: int, patch_size: int, of: str = "") -> None:
    """Refuses a size that the patch does not divide; `of` is what messages call the patch, as `model.patch_size=14`."""
    if size % patch_size:
        below, above = size // patch_size * patch_size, (size // patch_size + 1) * patch_size
        remedy = f"use {below} or {above}" if below else f"use {above}"
        raise ValueError(f"{key}={size} is not a multiple of {of or f'model.patch_size={patch_size}'}; {remedy}")


def named(table: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(f"{table} has one named {name!r}; use letters, digits and _ alone")
