"""The terms of the objective: tensors in, scalars out, always in float32."""

from .centering import SoftmaxCentering
from .dino import dino_loss, prototype_cross_entropy
from .ibot import ibot_loss
from .koleo import koleo_loss
from .sinkhorn import sinkhorn_knopp

__all__ = ["SoftmaxCentering", "dino_loss", "ibot_loss", "koleo_loss", "prototype_cross_entropy", "sinkhorn_knopp"]
