"""Softmax centering of teacher logits (DINO paper, section 3.1, "Avoiding collapse")."""

import torch
from torch import Tensor, nn

from .assignments import Assignments, Logits, chunks
from .reduce import global_sum_


class SoftmaxCentering(nn.Module):
    """Subtracts a running mean of the teacher's logits before the softmax.

    Args:
        num_prototypes: K.
        momentum: of the running mean.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, num_prototypes))

    @torch.no_grad()
    def forward(
        self, logits: Tensor | Logits, temperature: float | Tensor, population: tuple[Tensor, Tensor] | None = None
    ) -> Assignments:
        """Assignments of `logits` `[M, K]` under the centre of the batches before; then it takes this batch in.

        The centre moves towards the mean over the global batch; a batch without samples, or with
        logits that are not finite, leaves it where it is.
        Collective: call on all ranks.

        Args:
            population: features `[P, d]` and prototypes `[K, d]` of the samples whose mean logits the centre follows;
                by default it follows those of `logits`. Their logits are not made: their sum is that of the features
                times the prototypes.
        """
        assignments = Assignments(logits, temperature, self.center[0] / -temperature)
        total = self.center.new_zeros(logits.shape[1] + 1)
        if population is None:
            total[-1].fill_(logits.shape[0])  # assigning a number to an element waits for the device
            for start, stop in chunks(*logits.shape):
                total[:-1] += logits[start:stop].float().sum(dim=0)
        else:
            features, prototypes = population
            total[-1].fill_(len(features))
            total[:-1] += prototypes.float() @ features.float().sum(dim=0)
        count = global_sum_(total)[-1]
        moved = self.center.lerp(total[:-1] / count, 1 - self.momentum)
        self.center.copy_(torch.where((count > 0) & torch.isfinite(moved).all(), moved, self.center))
        return assignments
