"""Sinkhorn-Knopp assignment of teacher logits to prototypes (SwAV, appendix A; DINOv2, section 4, "Sinkhorn-Knopp").

Axes: `M` samples of this process, `K` prototypes, `Q` samples of a queue, `d` width of the bottleneck.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .assignments import Assignments, Logits, chunks
from .reduce import gather_rows, global_max_, global_sum_, own_share


class Queued(NamedTuple):
    """Samples of earlier batches that are balanced together with those of a batch."""

    logits: Tensor | Logits
    """`[Q, K]`: this process' share of them."""
    counted: Tensor
    """Scalar bool on the device: whether they have any effect."""


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor | Logits, temperature: float | Tensor, num_iterations: int = 3, queued: Queued | None = None
) -> Assignments:
    """Soft assignments of the global batch, nearly uniform over prototypes.

    Alternates between giving every prototype an equal share of the samples and every sample a total of 1, on
    `Q = exp(logits / temperature)`. Scaling the columns of `Q` and then its rows is a softmax of the logits with a bias
    for each prototype, the logarithm of its scale; so all that an iteration has to find is that vector, from the column
    sums of the assignments before. The first column sums are of `Q` itself, of which the maximum over the global batch
    is subtracted before the exponential: the rows absorb it, and it cannot overflow. `M` may differ between processes
    and be 0. Samples of a queue are further rows of `Q`: they shape the bias, and are not returned.

    Collective: call on all ranks.
    """
    num_samples, num_prototypes = logits.shape
    parts: list[tuple[Tensor | Logits, Tensor | None]] = [(logits, None)]
    if queued is not None:
        parts.append(queued)
    lowest = torch.finfo(torch.float32).min
    largest = torch.full((), lowest, device=logits.device)
    for part, counted in parts:
        for start, stop in chunks(*part.shape):
            largest = torch.maximum(largest, _if_counted(counted, part[start:stop].max().float(), lowest))
    largest = global_max_(largest)
    sums = torch.zeros(num_prototypes, device=logits.device)
    share = torch.full((), float(num_samples), device=logits.device)
    for part, counted in parts:
        for start, stop in chunks(*part.shape):
            # subtracted before the division, of which the rounding could leave the largest above 0
            scaled = (part[start:stop].float() - largest).mul_(1 / temperature).exp_()
            sums += _if_counted(counted, scaled.sum(dim=0))
        if counted is not None:
            share += torch.where(counted, float(part.shape[0]), 0.0)
    share = global_sum_(share) / num_prototypes
    assignments = Assignments(logits, temperature, torch.zeros_like(sums))
    tiny = torch.finfo(torch.float32).tiny
    for iteration in range(num_iterations):
        if iteration:
            sums = assignments.column_sums()
            if queued is not None:
                further = Assignments(queued.logits, temperature, assignments.bias)
                sums += _if_counted(queued.counted, further.column_sums())
        assignments.bias += torch.log(share / global_sum_(sums).clamp_min_(tiny))
    return assignments


def _if_counted(counted: Tensor | None, value: Tensor, otherwise: float = 0.0) -> Tensor:
    return value if counted is None else torch.where(counted, value, otherwise)


class SinkhornQueue(nn.Module):
    """The newest samples of the batches before, for Sinkhorn-Knopp on batches of fewer samples than prototypes (SwAV,
    section 4.1).

    It keeps bottleneck features, not logits: their logits are made at every update with the prototypes of that update,
    so that only the backbone that made the features is older. Logits that are kept would compare present samples with
    prototypes that are no more. It has an effect once it is full. All processes hold the samples of all of them, and
    each one answers for its share, see `Queued`.

    Args:
        num_rows: samples that are kept.
        bottleneck_dim: d.
    """

    rows: Tensor
    filled: Tensor

    def __init__(self, num_rows: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(num_rows, bottleneck_dim))
        self.register_buffer("filled", torch.zeros(()))

    def queued(self, features: Tensor, prototypes: Tensor) -> Queued:
        """Returns the samples with their logits, in the dtype of `features`.

        Args:
            features: of the batch, `[M, d]`.
            prototypes: `[K, d]`.
        """
        rows = self.rows[own_share(len(self.rows))].to(features.dtype)
        return Queued(Logits(rows, prototypes), self.filled >= len(self.rows))

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Takes the samples of a batch in, and drops the oldest; a batch that is not finite is left out.

        Collective: call on all ranks.

        Args:
            features: two views of `B` images each, `[2 B, d]`, view by view; of as many images on every process.
        """
        by_image = features.float().unflatten(0, (2, -1)).transpose(0, 1).contiguous()  # independent of the processes
        new = gather_rows(by_image)[0].flatten(0, 1)
        finite = new.isfinite().all()
        rows = torch.cat((new, self.rows))[: len(self.rows)]
        self.rows.copy_(torch.where(finite, rows, self.rows))
        filled = (self.filled + len(new)).clamp_max(len(self.rows))
        self.filled.copy_(torch.where(finite, filled, self.filled))
