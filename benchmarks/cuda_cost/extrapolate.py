"""From updates of two and of three layers to one of any depth."""

from __future__ import annotations

from dataclasses import dataclass

from dinov2_hf.backbones import PRESETS
from dinov2_hf.config import RunConfig, load_config
from dinov2_hf.objectives import find_objective

from .cards import HOST_SECONDS_A_KERNEL, HOST_SECONDS_AN_OPERATION, Card
from .ledger import Cost
from .update import PRESET, Update, run_update, teacher_preset

SHALLOW, DEEPER = 2, 3


@dataclass(frozen=True)
class Case:
    """The configuration of a run that is modelled."""

    name: str
    config_path: str | None
    overrides: tuple[str, ...]

    def load(self, *overrides: str) -> RunConfig:
        """The configuration, uncompiled, with further overrides."""
        return load_config(self.config_path, [*self.overrides, *overrides, "model.compile=false"])


@dataclass(frozen=True)
class Result:
    """The modelled update of a case on a card."""

    name: str
    card: Card
    images: int
    """Of an update."""
    costs: dict[tuple[str, str], Cost]
    """By part and operation."""
    peak: float
    """Bytes."""
    plain_flops: float | None
    synchronizations: list[str]

    @property
    def total(self) -> Cost:
        return sum(self.costs.values(), Cost())

    @property
    def host_seconds(self) -> float:
        """What the host needs to launch the kernels."""
        total = self.total
        return total.kernels * HOST_SECONDS_A_KERNEL + total.operations * HOST_SECONDS_AN_OPERATION

    @property
    def seconds(self) -> float:
        """The slower of device and host."""
        return max(self.total.seconds, self.host_seconds)

    def of_part(self, part: str) -> Cost:
        return sum((cost for (name, _), cost in self.costs.items() if name == part), Cost())

    def share_of_peak(self, flops: float) -> float:
        """Of the card's rate of products in half precision."""
        return flops / self.seconds / self.card.half_flops


def model_case(case: Case, card: Card, whole: bool = False, logged: bool = False) -> Result:
    """Models the update of a case.

    Args:
        whole: run all layers instead of extrapolating.
        logged: an update that is logged.

    Raises:
        ValueError: a configuration that cannot be extrapolated or is not modelled, with the remedy.
    """
    config = case.load()
    _check(config, case.name, whole)
    images = config.train.batch_size * config.train.gradient_accumulation_steps
    depth = config.model.num_hidden_layers or PRESETS[config.model.preset]["num_hidden_layers"]
    if whole:
        update = run_update(config, card, logged=logged)
        peak = update.peak + update.frozen
        return Result(case.name, card, images, update.costs, peak, update.plain_flops, update.synchronizations)

    def at(layers: int) -> Update:
        shallow = case.load(f"model.num_hidden_layers={layers}")
        return run_update(shallow, card, layers, logged)

    here, deeper = at(SHALLOW), at(DEEPER)
    layers = depth - SHALLOW
    preset = teacher_preset(config)
    teacher_layers = PRESETS[preset]["num_hidden_layers"] - SHALLOW if preset else layers
    costs = {
        key: here.costs.get(key, Cost()).extrapolated(
            deeper.costs.get(key, Cost()), teacher_layers if key[0] == "teacher" else layers
        )
        for key in {**here.costs, **deeper.costs}
    }
    plain = None if here.plain_flops is None else _line(here.plain_flops, deeper.plain_flops, layers)
    peak = _line(here.peak, deeper.peak, layers) + _line(here.frozen, deeper.frozen, teacher_layers)
    return Result(case.name, card, images, costs, peak, plain, here.synchronizations)


def _line(here: float, deeper: float, layers: int) -> float:
    return here + layers * (deeper - here)


def _check(config: RunConfig, name: str, whole: bool) -> None:
    preset = teacher_preset(config)
    if preset is not None and preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise ValueError(f"{name}: the teacher {PRESET}{preset} names no preset; use one of {known}")
    if not whole:
        if len(config.models) > 1:
            raise ValueError(f"{name}: students of several depths are not extrapolated; use --whole")
        if preset is None and find_objective(config).teachers_of(config):
            raise ValueError(
                f"{name}: a teacher on disk is not extrapolated; use --whole or distill.teacher=preset:giant"
            )
    if config.model.attn_implementation not in ("auto", "sdpa", "eager"):
        chosen = f"model.attn_implementation={config.model.attn_implementation}"
        raise ValueError(f"{name}: {chosen} is not modelled; use sdpa or eager")
