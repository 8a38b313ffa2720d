"""The folder of a run: its configuration, checkpoints, metrics and facts."""

from .facts import RunFacts
from .folder import RunFolder
from .metrics import plot_metrics, read_metrics

__all__ = [
    "RunFacts",
    "RunFolder",
    "plot_metrics",
    "read_metrics",
]
