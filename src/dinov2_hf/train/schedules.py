"""Schedules of the published training code: one value a step, known before the run starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace

import numpy as np

from ..config import RunConfig
from ..objectives import Scheduled


class Schedule:
    """Frozen, warmed up, then a half cosine; `final_value` ever after.

    Args:
        base_value: value at the end of the warm-up and the start of the cosine.
        final_value: value the cosine falls (or rises) to at `total_steps`.
        warmup_steps: steps of a straight line from `warmup_value` to `base_value`, both ends included.
        frozen_steps: steps at the start whose value is overwritten by 0.
        zero_every: the last one of so many steps has the value 0; 0: none has.
        delay_steps: steps before the warm-up, of `warmup_value`; not part of `total_steps`.
        hold: updates that a step lasts.
    """

    def __init__(
        self,
        base_value: float,
        final_value: float,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_value: float = 0.0,
        frozen_steps: int = 0,
        zero_every: int = 0,
        delay_steps: int = 0,
        hold: int = 1,
    ) -> None:
        self.final_value = final_value
        self.hold = hold
        warmup_steps = min(warmup_steps, total_steps)
        warmup = np.linspace(warmup_value, base_value, warmup_steps)
        progress = np.arange(total_steps - warmup_steps) / max(total_steps - warmup_steps, 1)
        cosine = final_value + 0.5 * (base_value - final_value) * (1 + np.cos(np.pi * progress))
        self._values = np.concatenate((np.full(delay_steps, warmup_value), warmup, cosine))
        self._values[:frozen_steps] = 0.0
        if zero_every:
            self._values[zero_every - 1 :: zero_every] = 0.0

    def __getitem__(self, update: int) -> float:
        step = update // self.hold
        return float(self._values[step]) if step < len(self._values) else float(self.final_value)


class StepValues(SimpleNamespace):
    """The scheduled values of one step as attributes.

    `lr`, `last_layer_lr`, `weight_decay` and `backbone_lr_scale` are the optimiser's; the objective adds its own.
    """

    def __init__(self, backbone_lr_scale: float = 1.0, **values: float) -> None:
        super().__init__(**values, backbone_lr_scale=backbone_lr_scale)


def build_schedules(
    config: RunConfig, scheduled: Mapping[str, Scheduled], global_batch_size: int, head_warmup_steps: int = 0
) -> Mapping[str, Schedule]:
    """Builds the schedules of a run, by the names of `StepValues`.

    `lr` follows `optim.lr_rule`, where the global batch counts all processes and accumulated gradients. Lengths given
    in epochs are multiplied by `train.epoch_length`. The backbone stands still for `head_warmup_steps`, then its
    learning rate rises over the warm-up's length. The momentum of an average that copies the student (`teacher.update`)
    is 0 where it does and 1 elsewhere.

    Args:
        scheduled: the values of the objective, `Objective.schedules_of`.
    """

    def steps(epochs: float) -> int:
        return round(epochs * config.train.epoch_length)

    optim, total = config.optim, config.train.num_steps
    learning_rate = partial(
        Schedule,
        optim.peak_lr(global_batch_size),
        optim.min_lr,
        total,
        warmup_steps=steps(optim.warmup_epochs),
    )
    rise = max(steps(optim.warmup_epochs), 1)
    copies = {
        "momentum": {},
        "previous_update": {"teacher_momentum": Schedule(0.0, 0.0, 0)},
        "previous_epoch": {"teacher_momentum": Schedule(1.0, 1.0, total, zero_every=config.train.epoch_length)},
    }
    return {
        "lr": learning_rate(),
        "last_layer_lr": learning_rate(frozen_steps=steps(optim.freeze_last_layer_epochs)),
        "weight_decay": Schedule(optim.weight_decay, optim.weight_decay_end, total),
        **{name: _schedule_of(value, config) for name, value in scheduled.items()},
        "backbone_lr_scale": Schedule(
            1.0,
            1.0,
            head_warmup_steps + rise if head_warmup_steps else 0,
            warmup_steps=head_warmup_steps + rise,
            warmup_value=-head_warmup_steps / rise,
            frozen_steps=head_warmup_steps,
        ),
        **copies[config.average_update],
    }


def _schedule_of(value: Scheduled, config: RunConfig) -> Schedule:
    """The schedule of a value of the objective, with a step for each update or for each epoch."""
    train = config.train
    updates = 1 if value.by_epoch else train.epoch_length
    return Schedule(
        value.base,
        value.final,
        round((train.epochs if value.epochs is None else value.epochs) * updates),
        warmup_steps=round(value.warmup_epochs * updates),
        warmup_value=value.warmup,
        delay_steps=round(value.delay_epochs * updates),
        hold=train.epoch_length if value.by_epoch else 1,
    )


def values_at(schedules: Mapping[str, Schedule], step: int) -> StepValues:
    """Returns the values of all schedules at `step`."""
    return StepValues(**{name: schedule[step] for name, schedule in schedules.items()})
