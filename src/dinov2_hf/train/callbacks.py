"""What is measured and done during a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..backbones import Features, Layers

Results = dict[str, dict[str, nn.Module]]
"""For each student (`""` for the first one) the networks of its average, whole."""


@dataclass(frozen=True)
class StudentFeatures:
    """The features of the average of a student, or of the student itself, with what has to be known to use them."""

    name: str
    """Of the student; `""` for the first one."""
    layers: Layers
    """Collective where the average is sharded."""
    width: int
    stride: int
    """Pixels between two neighbouring patches."""
    num_layers: int

    def __call__(self, pixels: Tensor, layers: int = 1, final_norm: bool = True) -> list[Features]:
        return self.layers(pixels, layers, final_norm=final_norm)


@dataclass(frozen=True)
class Callback:
    """Called on cadence, after the checkpoint of the same update.

    A run that continues calls what a stop cut short again.
    """

    epochs: float
    """Epochs between two calls."""
    measure: Callable[[StudentFeatures], dict[str, float]] | None = None
    """Called at the start, at the end and in between with the average of each student; its numbers are logged.
    Collective: called on all ranks."""
    student: bool = False
    """Call `measure` with the student itself too; its numbers are logged as `NAME/student`."""
    act: Callable[[int, Results], None] | None = None
    """Called in between with the number of updates and the averages, on the main process."""
