"""From any `datasets` source to batches of crops."""

from .broken import Broken, write_broken
from .labeled import LabeledImages, same_classes
from .loader import TrainingBatches, build_loader
from .photometric import PhotometricAugmentation
from .sources import open_training_source, reading_advice

__all__ = [
    "Broken",
    "LabeledImages",
    "PhotometricAugmentation",
    "TrainingBatches",
    "build_loader",
    "open_training_source",
    "reading_advice",
    "same_classes",
    "write_broken",
]
