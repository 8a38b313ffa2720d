"""Configurations of dinov2_hf 0.5, as they are written today: keys that were renamed, and distillations, which had one
class."""

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

    A distillation may be of 0.5 if it has a section `distill` and no key `objective`, or the key `distill.objective`.
    Says so in one line of the log where anything is translated, renamed keys in the file of a run aside.

    Args:
        default: the objective of a configuration that names none.
    """
    layers = [_rename(layer) for layer in layers]
    sections = [layer.values.get("distill") for layer in layers]
    given = [section["objective"] for section in sections if isinstance(section, dict) and "objective" in section]
    named = any("objective" in layer.values for layer in layers)
    if not given and (named or not any(isinstance(section, dict) for section in sections)):
        return layers
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
    translated[place] = replace(
        translated[place], values=values, translated=(*translated[place].translated, "objective")
    )
    if given or dropped or default != f"distill_{kind}":
        origin = next(layer.origin for layer in layers if "distill" in layer.values)
        left_out = f"; left out, as they have no effect there: {', '.join(dict.fromkeys(dropped))}" if dropped else ""
        say(logging.INFO, f"{origin} is a configuration of dinov2_hf 0.5; read with objective=distill_{kind}{left_out}")
    return translated


def _rename(layer: Layer) -> Layer:
    """Writes `drop_path_uniform: true` of a backbone as `drop_path_schedule: uniform`."""
    values = dict(layer.values)
    sections = {"model": values}
    if isinstance(values.get("students"), dict):
        students = values["students"] = dict(values["students"])
        sections |= {f"students.{name}": students for name in students}
    renamed = {}
    for section, holder in sections.items():
        name = section.rpartition(".")[2]
        part = holder.get(name)
        if isinstance(part, dict) and isinstance(uniform := part.get("drop_path_uniform"), bool):
            schedule = renamed[f"{section}.drop_path_schedule"] = "uniform" if uniform else "linear"
            rest = {key: value for key, value in part.items() if key != "drop_path_uniform"}
            holder[name] = {"drop_path_schedule": schedule} | rest
    if renamed and (layer.file is None or layer.folder is not None):  # a person wrote it, not a run
        now = ", ".join(f"{key}={schedule}" for key, schedule in renamed.items())
        say(logging.INFO, f"drop_path_uniform in {layer.origin} is a key of dinov2_hf 0.5; read as {now}")
    return replace(layer, values=values, translated=(*layer.translated, *renamed)) if renamed else layer


def _remove(values: dict[str, Any], key: str) -> bool:
    section, _, name = key.partition(".")
    if not name:
        return values.pop(section, None) is not None
    return isinstance(values.get(section), dict) and values[section].pop(name, None) is not None
