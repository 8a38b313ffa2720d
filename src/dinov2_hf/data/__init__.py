"""From any `datasets` source to batches of crops."""

from .loader import TrainingBatches, build_loader
from .photometric import PhotometricAugmentation
from .sources import LabeledImages, open_training_source

__all__ = [
    "LabeledImages",
    "PhotometricAugmentation",
    "TrainingBatches",
    "build_loader",
    "open_training_source",
]
