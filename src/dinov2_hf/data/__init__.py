"""From any `datasets` source to batches of crops."""

from .broken import Broken, write_broken
from .labeled import LabeledImages, same_classes
from .load_image import load_image
from .loader import TrainingBatches, build_loader
from .photometric import PhotometricAugmentation
from .shared_memory import batch_bytes, check_shared_memory
from .sources import open_training_source, reading_advice

__all__ = [
    "Broken",
    "LabeledImages",
    "PhotometricAugmentation",
    "TrainingBatches",
    "batch_bytes",
    "build_loader",
    "check_shared_memory",
    "load_image",
    "open_training_source",
    "reading_advice",
    "same_classes",
    "write_broken",
]
