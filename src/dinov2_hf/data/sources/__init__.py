"""From the configuration of a source to its images: a column of a table (`ImageColumn`), or an endless sequence."""

from .base import TrainingSource, check_source, is_source
from .columns import ImageColumn, find_images, open_images
from .generators import register_source
from .held import HELD, HeldImages, encoded_images, held_at, holding, is_held, is_sequence
from .load import Loaded, load
from .shards import LOST, Shards
from .training import open_training_source, reading_advice

__all__ = [
    "HELD",
    "LOST",
    "HeldImages",
    "ImageColumn",
    "Loaded",
    "Shards",
    "TrainingSource",
    "check_source",
    "encoded_images",
    "find_images",
    "held_at",
    "holding",
    "is_held",
    "is_sequence",
    "is_source",
    "load",
    "open_images",
    "open_training_source",
    "reading_advice",
    "register_source",
]
