"""Terms of the objectives: tensors in, scalars out, computed in float32."""

from .assignments import Assignments, Logits
from .centering import SoftmaxCentering
from .cross_entropy import prototype_cross_entropy
from .dino import NUM_GLOBAL_CROPS, dino_loss
from .features import feature_loss
from .ibot import ibot_loss
from .koleo import koleo_loss
from .simdino import coding_rate, coding_rate_loss, crop_distances, patch_distance
from .sinkhorn import SinkhornQueue, sinkhorn_knopp

__all__ = [
    "NUM_GLOBAL_CROPS",
    "Assignments",
    "Logits",
    "SinkhornQueue",
    "SoftmaxCentering",
    "coding_rate",
    "coding_rate_loss",
    "crop_distances",
    "dino_loss",
    "feature_loss",
    "ibot_loss",
    "koleo_loss",
    "patch_distance",
    "prototype_cross_entropy",
    "sinkhorn_knopp",
]
