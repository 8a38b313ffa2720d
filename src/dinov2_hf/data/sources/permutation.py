"""Random orders that are computed instead of stored, so that 142 million images cost no memory in any worker."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_ROUNDS = 8
_MASK = (1 << 64) - 1


class Permutation(Sequence[int]):
    """A random order of `range(length)`: item `position` in microseconds, without the ones before it.

    A keyed Feistel network (Black and Rogaway, 2002) on a grid just large enough for the numbers: each round shifts the
    row by a hash of the column, then the column by a hash of the row, both of which can be undone. What leaves the
    range is sent through again until it is back inside. Equal keys give equal orders on every machine and release.

    Args:
        length: how many numbers there are.
        key: numbers that the order depends on, such as `(seed, epoch)`.
    """

    def __init__(self, length: int, key: Sequence[int]) -> None:
        self._length = length
        self._height = max(math.isqrt(max(length - 1, 0)) + 1, 1)
        self._width = max(-(-length // self._height), 1)
        keys = np.random.SeedSequence(key).generate_state(2 * _ROUNDS, np.uint64).tolist()
        self._keys = list(zip(keys[::2], keys[1::2]))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> int:  # type: ignore[override]  # no slices
        if not 0 <= position < self._length:
            raise IndexError(f"position {position} is not in an order of {self._length}")
        height, width = self._height, self._width
        while True:
            row, column = divmod(position, width)
            for row_key, column_key in self._keys:
                mixed = ((column ^ row_key) * 0x9E3779B97F4A7C15) & _MASK
                mixed = ((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93) & _MASK
                row = (row + (mixed ^ (mixed >> 32))) % height
                mixed = ((row ^ column_key) * 0x9E3779B97F4A7C15) & _MASK
                mixed = ((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93) & _MASK
                column = (column + (mixed ^ (mixed >> 32))) % width
            position = row * width + column
            if position < self._length:
                return position
