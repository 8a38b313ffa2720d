"""Groups of equal-length token sequences packed into one matrix.

Global crops share one length and local crops another. Everything that works token by token (linear layers, norms,
MLPs) runs on the packed `[M, D]` matrix of all tokens; only attention has to know which tokens belong together, and
takes each group as a dense `[B, T, ...]` view. No variable-length kernel is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """`batch` sequences of `length` tokens."""

    batch: int
    length: int


@dataclass(frozen=True)
class Packing:
    """Where each group lies in a packed `[M, D]` matrix: one group after the other, sequence by sequence."""

    groups: tuple[Group, ...]

    @classmethod
    def pack(cls, sequences: Sequence[Tensor]) -> tuple[Tensor, Packing]:
        """Packs tensors `[B_g, T_g, D]` into one `[sum B_g T_g, D]`; one tensor is viewed, not copied."""
        packing = cls(tuple(Group(*tokens.shape[:2]) for tokens in sequences))
        flat = [tokens.flatten(0, 1) for tokens in sequences]
        return (flat[0] if len(flat) == 1 else torch.cat(flat)), packing

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of each group."""
        return [group.batch * group.length for group in self.groups]

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Views `[M, ...]` as one `[B_g, T_g, ...]` per group."""
        parts = packed.split(self.sizes) if len(self.groups) > 1 else (packed,)
        return [part.unflatten(0, group) for part, group in zip(parts, self.groups)]
