"""Values of a run that may be given in another form than they are kept in: shares of the run, the learning rate itself.

A length in epochs may be written as a share of the run, `optim.warmup_epochs=10%`. It is kept as the epochs that it is,
so that nothing else knows of it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from .checks import SHARE_OF_RUN
from .keys import is_given, value_at
from .layers import Layer
from .run import RunConfig
from .terms import HeadConfig


def lengths_in(config: Any, prefix: str = "") -> Iterator[tuple[str, float, str]]:
    """Yields dotted key, epochs and a usual share of the run of every length that is part of a run."""
    for item in fields(config):
        value, key = getattr(config, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from lengths_in(value, f"{key}.")
        elif SHARE_OF_RUN in item.metadata and item.name not in getattr(config, "idle_lengths", ()):
            yield key, value, item.metadata[SHARE_OF_RUN]


def take_shares(layer: Layer, template: Any) -> tuple[Layer, dict[str, float | None]]:
    """Returns a layer without the lengths that are shares of the run, and what it says of each length that it has.

    Args:
        template: the sections of the run, with any values.

    Returns:
        the layer, and by dotted key the share, or None for a length in epochs.

    Raises:
        ValueError: a share above 100%.
    """
    given: dict[str, float | None] = {}
    values = layer.values
    for key in _keys_of_lengths(template):
        if not is_given(layer.values, key):
            continue
        share = share_of(value_at(layer.values, key))
        given[key] = share
        if share is None:
            continue
        if share > 1:
            raise ValueError(f"{key}={share:.0%} in {layer.origin} is longer than the run; use 100% or less")
        values = copy.deepcopy(values) if values is layer.values else values
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        del section[name]
    return replace(layer, values=values), given


def share_of(value: Any) -> float | None:
    """Returns a text such as `10%` as a share; None of anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    return float(found[1]) / 100 if found else None


def describe_long_lengths(config: RunConfig) -> str | None:
    """Returns one line on the lengths that leave nothing of the run, with the remedy; None where there are none."""
    epochs, train = config.train.epochs, config.train
    heads = any(isinstance(getattr(config, item.name), HeadConfig) for item in fields(config))
    idle = () if heads else ("optim.freeze_last_layer_epochs",)  # there are no prototypes
    found = [(key, value, usual) for key, value, usual in lengths_in(config) if value >= epochs and key not in idle]
    if not found:
        return None
    given = ", ".join(f"{key}={value:g}" for key, value, _ in found)
    shares = " ".join(f"{key}={usual}" for key, _, usual in found)
    return (
        f"as long as the run or longer, which has train.epochs={epochs:g} of {train.epoch_length} updates: {given}; "
        f"give shares of the run: {shares}"
    )


def choose_learning_rate(layer: Layer) -> Layer:
    """Returns a layer that unsets `optim.base_lr` where it sets `optim.lr`, and the other way round.

    So the later layer wins, which sets one of them.

    Raises:
        ValueError: it sets both.
    """
    optim = layer.values.get("optim")
    if not isinstance(optim, dict):
        return layer
    lr, base_lr = optim.get("lr"), optim.get("base_lr")
    if lr is not None and base_lr is not None:
        raise ValueError(
            f"optim.lr={lr} and optim.base_lr={base_lr} in {layer.origin}: the first is the learning rate itself, the "
            "second is multiplied by optim.lr_rule; leave one out"
        )
    if lr is None and base_lr is None:
        return layer
    other = "lr" if lr is None else "base_lr"
    return replace(layer, values=layer.values | {"optim": optim | {other: None}})


def _keys_of_lengths(config: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _keys_of_lengths(value, f"{prefix}{item.name}.")
        elif SHARE_OF_RUN in item.metadata:
            yield f"{prefix}{item.name}"
