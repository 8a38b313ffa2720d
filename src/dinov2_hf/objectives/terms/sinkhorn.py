"""Sinkhorn-Knopp assignment of teacher logits to prototypes (SwAV, appendix A; DINOv2, section 4, "Sinkhorn-Knopp").

Axes: `M` samples of this process, `K` prototypes.
"""

import torch
from torch import Tensor

from .assignments import Assignments, Logits, chunks
from .reduce import global_max_, global_sum_


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor | Logits, temperature: float, num_iterations: int = 3) -> Assignments:
    """Soft assignments of the global batch, nearly uniform over prototypes.

    Alternates between giving every prototype an equal share of the samples and every sample a total of 1, on
    `Q = exp(logits / temperature)`. Scaling the columns of `Q` and then its rows is a softmax of the logits with a bias
    for each prototype, the logarithm of its scale; so all that an iteration has to find is that vector, from the column
    sums of the assignments before. The first column sums are of `Q` itself, of which the maximum over the global batch
    is subtracted before the exponential: the rows absorb it, and it cannot overflow. `M` may differ between processes
    and be 0.

    Collective: call on all ranks.
    """
    num_samples, num_prototypes = logits.shape
    lowest = torch.finfo(torch.float32).min
    largest = torch.full((), lowest, device=logits.device)
    for start, stop in chunks(num_samples, num_prototypes):
        largest = torch.maximum(largest, logits[start:stop].max().float())
    largest = global_max_(largest)
    sums = torch.zeros(num_prototypes, device=logits.device)
    for start, stop in chunks(num_samples, num_prototypes):
        # subtracted before the division, of which the rounding could leave the largest above 0
        sums += (logits[start:stop].float() - largest).mul_(1 / temperature).exp_().sum(dim=0)
    share = global_sum_(torch.full((), float(num_samples), device=logits.device)) / num_prototypes
    assignments = Assignments(logits, temperature, torch.zeros_like(sums))
    tiny = torch.finfo(torch.float32).tiny
    for iteration in range(num_iterations):
        if iteration:
            sums = assignments.column_sums()
        assignments.bias += torch.log(share / global_sum_(sums).clamp_min_(tiny))
    return assignments
