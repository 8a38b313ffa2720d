"""Control of the teacher's temperature by the entropy of its targets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .terms import Assignments
from .terms.reduce import global_sum_

GAIN = 0.5
"""Change of the logarithm of the temperature for each unit between the wanted and the found share of entropy."""
LARGEST_FACTOR = 20.0
"""The temperature is at most so many times the scheduled one, and at least that part of it."""


class EntropyControl(nn.Module):
    """Multiplies the scheduled temperature with a factor that leads the mean entropy of the targets to a wanted value.

    After each batch the logarithm of the factor moves by `GAIN` times the difference of the wanted and the found
    entropy, as shares of `ln K`. The entropy rises with the temperature by at most `2 ln K` for a unit of its logarithm
    where logits are normally distributed, so that this converges without swinging. Nothing is read from the device, and
    the entropy is that of the global batch, so that all processes have the same factor. It is a buffer, 0 at first.

    Args:
        target_entropy: wanted entropy of a target, as a share of its maximum `ln K`.
    """

    log_factor: Tensor

    def __init__(self, target_entropy: float) -> None:
        super().__init__()
        self.target_entropy = target_entropy
        self.register_buffer("log_factor", torch.zeros(()))

    def temperature(self, scheduled: float) -> Tensor:
        """Returns the temperature of the next targets, a scalar on the device."""
        return scheduled * self.log_factor.exp()

    @torch.no_grad()
    def follow(self, assignments: Assignments) -> None:
        """Moves the factor by the targets that were made last; no sample, or one that is not finite, leaves it.

        Collective: call on all ranks.
        """
        num_samples, num_prototypes = assignments.logits.shape
        entropy = assignments.entropy_sum()
        total, count = global_sum_(torch.stack((entropy, torch.full_like(entropy, num_samples))))
        share = total / count / math.log(num_prototypes)
        bound = math.log(LARGEST_FACTOR)
        moved = (self.log_factor + GAIN * (self.target_entropy - share)).clamp(-bound, bound)
        self.log_factor.copy_(torch.where(moved.isfinite(), moved, self.log_factor))
