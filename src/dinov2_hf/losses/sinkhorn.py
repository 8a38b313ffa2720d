"""Sinkhorn-Knopp assignment of teacher logits to prototypes (SwAV, appendix A; DINOv2, section 4, "Sinkhorn-Knopp").

Axes: `M` samples of this process, `K` prototypes.
"""

import torch
from torch import Tensor

from .reduce import global_max_, global_sum_


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, num_iterations: int = 3) -> Tensor:
    """Soft assignments `[M, K]` of the global batch, nearly uniform over prototypes; each row sums to 1.

    Alternates between giving every prototype an equal share of the samples and every sample a total of 1, on
    `Q = exp(logits / temperature)`. Only the scaling vectors of prototypes and samples are updated, so `Q` is written
    once and read twice an iteration. The maximum over the global batch is subtracted before the exponential, which
    changes nothing (the scaling absorbs it) but cannot overflow. `M` may differ between processes and be 0.

    Collective: call on all ranks.
    """
    scaled = logits.float() / temperature
    if scaled.shape[0]:
        largest = scaled.max()
    else:
        largest = scaled.new_tensor(torch.finfo(torch.float32).min)
    assignments = scaled.sub_(global_max_(largest)).exp_()

    tiny = torch.finfo(torch.float32).tiny
    share = global_sum_(scaled.new_tensor(float(scaled.shape[0]))) / scaled.shape[1]  # samples for each prototype
    samples = assignments.new_ones(assignments.shape[0])
    for _ in range(num_iterations):
        prototypes = share / global_sum_(samples @ assignments).clamp_min_(tiny)
        samples = (assignments @ prototypes).clamp_min_(tiny).reciprocal_()
    return assignments.mul_(prototypes).mul_(samples.unsqueeze(1))
