"""From the configuration of a source to its images in order."""

from .base import TrainingSource, check_source
from .generators import register_source
from .training import open_training_source, reading_advice

__all__ = [
    "TrainingSource",
    "check_source",
    "open_training_source",
    "reading_advice",
    "register_source",
]
