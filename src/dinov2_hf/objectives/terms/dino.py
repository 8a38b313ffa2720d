"""The image-level objective: CLS of every crop against CLS of the global crops (DINO paper, section 3.1, equation 3).

Axes: `V` crops of an image of which the first two are global, `B` images, `K` prototypes, `d` width of the bottleneck.
"""

import torch
from torch import Tensor

from .assignments import Assignments
from .cross_entropy import prototype_cross_entropy

NUM_GLOBAL_CROPS = 2


def dino_loss(
    features: Tensor, prototypes: Tensor, teacher: Assignments, student_temp: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Sums over the pairs of a student crop and a teacher view of another crop of their mean cross-entropy.

    The cross-entropy is linear in its targets, so a local crop is compared once with the sum of the teacher's views.

    Args:
        features: of the student before the prototypes, `[V, B, d]`.
        prototypes: of the student, `[K, d]` float32.
        teacher: assignments of the global crops, `2B` rows, view by view.

    Returns:
        The sum over the pairs of two global crops, and over those of a local with a global crop (0 if there is none).
    """
    batch = features.shape[1]
    weights = torch.full((batch,), 1 / max(batch, 1), device=features.device)

    global_crops, local_crops = features[:NUM_GLOBAL_CROPS], features[NUM_GLOBAL_CROPS:]
    among_global = prototype_cross_entropy(global_crops, prototypes, teacher, [[1], [0]], weights, student_temp)
    with_local = prototype_cross_entropy(local_crops, prototypes, teacher, [[0, 1]], weights, student_temp)
    return among_global, with_local
