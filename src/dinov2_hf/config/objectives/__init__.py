"""The configuration of the runs of each objective."""

from .dinov2 import DINOv2RunConfig
from .distill_features import FeatureDistillationConfig
from .distill_prototypes import PrototypeDistillationConfig

__all__ = ["DINOv2RunConfig", "FeatureDistillationConfig", "PrototypeDistillationConfig"]
