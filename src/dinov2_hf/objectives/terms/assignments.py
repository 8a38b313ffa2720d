"""Soft assignments of samples to prototypes, made a few rows at a time.

Both of the teacher's ways to targets end in a softmax over prototypes with a bias for each of them: centering subtracts
the centre, Sinkhorn-Knopp (see `sinkhorn.py`) scales each prototype. So the logits and one vector are all that is kept,
and large logits are not kept either, but made again from the features.

Axes: `M` samples of this process, `K` prototypes, `d` width of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits that are held in float32 at a time: 64 MB."""
KEPT_BYTES = 2**28
"""Logits up to this size are made once and kept; of larger ones every pass makes a few rows at a time."""


class Logits:
    """`features @ prototypes.T` as a matrix `[M, K]` of which ranges of rows are taken.

    Args:
        features: `[M, d]`; the logits are computed in its dtype.
        prototypes: `[K, d]`.
    """

    def __init__(self, features: Tensor, prototypes: Tensor) -> None:
        self.shape = (len(features), len(prototypes))
        self.device = features.device
        self._features, self._prototypes = features, prototypes.to(features.dtype)
        self._kept: Tensor | None = None
        if len(features) * len(prototypes) * features.element_size() <= KEPT_BYTES:
            self._kept = self._rows(slice(None))

    def __getitem__(self, rows: slice) -> Tensor:
        return self._rows(rows) if self._kept is None else self._kept[rows]

    def _rows(self, rows: slice) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self._features[rows] @ self._prototypes.T


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

    logits: Tensor | Logits
    """`[M, K]` in the dtype they were computed in."""
    temperature: float | Tensor
    """A number, or a positive scalar on the device, which is not read from there."""
    bias: Tensor
    """`[K]` float32."""

    @classmethod
    def uncentred(cls, logits: Tensor | Logits, temperature: float | Tensor) -> Assignments:
        """The softmax of the logits over the temperature, and nothing else."""
        return cls(logits, temperature, torch.zeros(logits.shape[1], device=logits.device))

    def __len__(self) -> int:
        return self.logits.shape[0]

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Assignments `[stop - start, K]` of a range of samples, float32; by default of all."""
        logits = self.logits[start:stop].float()
        if isinstance(self.temperature, Tensor):
            scaled = torch.addcmul(self.bias, logits, 1 / self.temperature)
        else:
            scaled = torch.add(self.bias, logits, alpha=1 / self.temperature)
        return torch.softmax(scaled, dim=-1)

    def column_sums(self) -> Tensor:
        """Sum of the assignments to each prototype over this process' samples, `[K]`."""
        sums = torch.zeros_like(self.bias)
        for start, stop in chunks(*self.logits.shape):
            sums += self.rows(start, stop).sum(dim=0)
        return sums

    def entropy_sum(self) -> Tensor:
        """Sum of the entropies of this process' assignments in nats, a scalar."""
        total = torch.zeros((), device=self.bias.device)
        for start, stop in chunks(*self.logits.shape):
            total += torch.special.entr(self.rows(start, stop)).sum()
        return total
