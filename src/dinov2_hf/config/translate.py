"""Configurations of dinov2_hf 0.5, which had one class for both distillations, as they are written today."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .layers import Layer
from .notes import say

_NOT_READ = {
    "features": (
        "distill.objective dino ibot koleo teacher.centering teacher.temp teacher.warmup_temp "
        "teacher.warmup_temp_epochs teacher.student_temp"
    ),
    "prototypes": (
        "distill.objective distill.cls_weight distill.patch_weight distill.cosine_weight distill.smooth_l1_weight "
        "ibot.mask_ratio"
    ),
}
"""Keys that 0.5 accepted in a distillation and did not read, by `distill.objective`."""


def translate(layers: Sequence[Layer], default: str = "dinov2") -> list[Layer]:
    """Returns the layers of a configuration, with those of 0.5 translated.

    A configuration may be of 0.5 if it has a section `distill` and no key `objective`, or the key `distill.objective`.
    Says so in one line of the log where anything is translated.

    Args:
        default: the objective of a configuration that names none.
    """
    sections = [layer.values.get("distill") for layer in layers]
    given = [section["objective"] for section in sections if isinstance(section, dict) and "objective" in section]
    named = any("objective" in layer.values for layer in layers)
    if not given and (named or not any(isinstance(section, dict) for section in sections)):
        return list(layers)
    known = default.removeprefix("distill_")
    kind = str(given[-1]) if given else known if known in _NOT_READ else "prototypes"
    if kind not in _NOT_READ:
        raise ValueError(f"distill.objective={kind!r} is not one of prototypes, features; set objective=distill_…")
    dropped: list[str] = []
    translated = []
    for layer in layers:
        values = {name: dict(part) if isinstance(part, dict) else part for name, part in layer.values.items()}
        dropped += [key for key in _NOT_READ[kind].split() if _remove(values, key) and key != "distill.objective"]
        if kind == "prototypes" and isinstance(ibot := values.get("ibot"), dict) and ibot.get("mask_probability") == 0:
            del ibot["mask_probability"]
            dropped.append("ibot.mask_probability")
        translated.append(replace(layer, values=values))
    # the last `distill.objective` overrides an `objective` before it
    place = max((index for index, section in enumerate(sections) if "objective" in (section or ())), default=0)
    values, chosen = translated[place].values, {"objective": f"distill_{kind}"}
    values = values | chosen if given else chosen | values
    translated[place] = replace(translated[place], values=values, translated=("objective",))
    if given or dropped or default != f"distill_{kind}":
        origin = next(layer.origin for layer in layers if "distill" in layer.values)
        left_out = f"; left out, as they have no effect there: {', '.join(dict.fromkeys(dropped))}" if dropped else ""
        say(logging.INFO, f"{origin} is a configuration of dinov2_hf 0.5; read with objective=distill_{kind}{left_out}")
    return translated


def _remove(values: dict[str, Any], key: str) -> bool:
    section, _, name = key.partition(".")
    if not name:
        return values.pop(section, None) is not None
    return isinstance(values.get(section), dict) and values[section].pop(name, None) is not None
