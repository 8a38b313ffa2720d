"""From the configuration of a source to its images in order."""

from .training import TrainingSource, open_training_source, reading_advice

__all__ = [
    "TrainingSource",
    "open_training_source",
    "reading_advice",
]
