"""Masked patch prediction (iBOT paper, section 3.1; DINOv2, section 4, "Patch-level objective").

Axes: `M` masked patches of this process, `K` prototypes, `d` width of the bottleneck.
"""

from torch import Tensor

from .assignments import Assignments
from .cross_entropy import prototype_cross_entropy


def ibot_loss(
    features: Tensor,
    prototypes: Tensor,
    teacher: Assignments,
    weights: Tensor,
    num_images: int,
    student_temp: float = 0.1,
) -> Tensor:
    """Cross-entropy of the masked patches, averaged within each image and then over the images.

    Args:
        features: of the student before the prototypes, `[M, d]`; `M` may be 0, the loss is then 0.
        prototypes: of the student, `[K, d]` float32.
        teacher: assignments of the same patches, seen without the mask.
        weights: `[M]`, one over the number of masked patches of the patch's image.
        num_images: global crops of this process, those without a mask included.
    """
    summed = prototype_cross_entropy(features.unsqueeze(0), prototypes, teacher, [[0]], weights, student_temp)
    return summed / num_images
