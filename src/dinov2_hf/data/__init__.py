"""From any `datasets` source to batches of crops."""

from .batch import SSLBatch
from .broken import Broken, write_broken
from .load_image import load_image
from .loader import TrainingBatches, build_loader
from .photometric import PhotometricAugmentation
from .shared_memory import batch_bytes, check_shared_memory
from .sources import TrainingSource, check_source, open_training_source, reading_advice, register_source
from .transform import EvalTransform, default_colors, evaluation_transform, preprocessor_config

__all__ = [
    "Broken",
    "EvalTransform",
    "PhotometricAugmentation",
    "SSLBatch",
    "TrainingBatches",
    "TrainingSource",
    "batch_bytes",
    "build_loader",
    "check_source",
    "check_shared_memory",
    "default_colors",
    "evaluation_transform",
    "load_image",
    "open_training_source",
    "preprocessor_config",
    "reading_advice",
    "register_source",
    "write_broken",
]
