"""From the configuration of a source to its images in order."""

from .training import open_training_source, reading_advice

__all__ = [
    "open_training_source",
    "reading_advice",
]
