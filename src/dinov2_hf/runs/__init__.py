"""The folder of a run: its configuration, checkpoints, metrics and facts."""

from .facts import RunFacts
from .metrics import plot_metrics, read_metrics

__all__ = [
    "RunFacts",
    "plot_metrics",
    "read_metrics",
]
