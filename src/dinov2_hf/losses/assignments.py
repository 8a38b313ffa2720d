"""Soft assignments of samples to prototypes, made a few rows at a time.

Both of the teacher's ways to targets end in a softmax over prototypes with a bias for each of them: centering subtracts
the centre, Sinkhorn-Knopp (see `sinkhorn.py`) scales each prototype. So the logits and one vector are all that is kept,
and no `[M, K]` matrix of float32 ever exists.

Axes: `M` samples of this process, `K` prototypes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits that are held in float32 at a time: 64 MB."""


def chunks(num_rows: int, row_elements: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that together hold about `CHUNK_ELEMENTS` elements, or a single row; none of rows without any."""
    if not row_elements:
        return
    size = max(CHUNK_ELEMENTS // row_elements, 1)
    for start in range(0, num_rows, size):
        yield start, min(start + size, num_rows)


@dataclass
class Assignments:
    """Row `m` is `softmax(logits[m] / temperature + bias)`; each sums to 1."""

    logits: Tensor
    """`[M, K]` in the dtype they were computed in."""
    temperature: float
    bias: Tensor
    """`[K]` float32."""

    def __len__(self) -> int:
        return self.logits.shape[0]

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Assignments `[stop - start, K]` of a range of samples, float32; by default of all."""
        scaled = torch.add(self.bias, self.logits[start:stop].float(), alpha=1 / self.temperature)
        return torch.softmax(scaled, dim=-1)

    def column_sums(self) -> Tensor:
        """Sum of the assignments to each prototype over this process' samples, `[K]`."""
        sums = torch.zeros_like(self.bias)
        for start, stop in chunks(*self.logits.shape):
            sums += self.rows(start, stop).sum(dim=0)
        return sums
