"""Softmax centering of teacher logits (DINO paper, section 3.1, "Avoiding collapse")."""

import torch
from torch import Tensor, nn

from .reduce import global_sum_


class SoftmaxCentering(nn.Module):
    """Subtracts a running mean of the teacher's logits before the softmax.

    Args:
        num_prototypes: K.
        momentum: of the running mean.
    """

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, num_prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Probabilities `[M, K]` under the centre of the batches before; then the centre takes this batch in.

        The centre moves towards the mean over the global batch; a batch without samples leaves it where it is.
        Collective: call on all ranks.
        """
        logits = logits.float()
        probabilities = torch.softmax((logits - self.center) / temperature, dim=-1)
        total = global_sum_(torch.cat((logits.sum(dim=0), logits.new_tensor([logits.shape[0]]))))
        count = total[-1]
        mean = total[:-1] / count.clamp_min(1)
        momentum = torch.where(count > 0, self.momentum, 1.0)
        self.center.mul_(momentum).add_((1 - momentum) * mean)
        return probabilities
