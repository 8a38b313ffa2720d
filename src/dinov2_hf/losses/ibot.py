"""Masked patch prediction (iBOT paper, section 3.1; DINOv2, section 4, "Patch-level objective").

Axes: `M` masked patches of this process, `K` prototypes.
"""

from torch import Tensor

from .dino import prototype_cross_entropy


def ibot_loss(
    student_logits: Tensor, teacher_probabilities: Tensor, weights: Tensor, num_images: int, student_temp: float = 0.1
) -> Tensor:
    """Cross-entropy of the masked patches, averaged within each image and then over the images.

    Args:
        student_logits, teacher_probabilities: `[M, K]`; `M` may be 0, the loss is then 0.
        weights: `[M]`, one over the number of masked patches of the patch's image.
        num_images: global crops of this process, those without a mask included.
    """
    losses = prototype_cross_entropy(student_logits, teacher_probabilities, student_temp)
    return (losses * weights).sum() / num_images
