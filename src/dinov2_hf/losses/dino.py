"""Cross-entropy between student and teacher over prototypes (DINO paper, section 3.1, equation 2).

Axes: `S` student crops, `V` teacher views, `B` images, `K` prototypes.
"""

import torch
from torch import Tensor


def prototype_cross_entropy(student_logits: Tensor, targets: Tensor, student_temp: float = 0.1) -> Tensor:
    """`-sum_k targets_k log softmax(student_logits / student_temp)_k`, float32: `[..., K]` to `[...]`."""
    log_probabilities = torch.log_softmax(student_logits.float() / student_temp, dim=-1)
    return -(targets.float() * log_probabilities).sum(dim=-1)


def dino_loss(student_logits: Tensor, teacher_probabilities: Tensor, student_temp: float = 0.1) -> Tensor:
    """Sum over all pairs of a student crop and a teacher view of their mean cross-entropy over the images.

    The cross-entropy is linear in its targets, so each student crop is compared once with the sum of the views.

    Args:
        student_logits: `[S, B, K]`.
        teacher_probabilities: `[V, B, K]`, each row sums to 1.
    """
    targets = teacher_probabilities.float().sum(dim=0)
    return prototype_cross_entropy(student_logits, targets, student_temp).mean(dim=1).sum()
