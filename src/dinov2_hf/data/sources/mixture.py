"""Several sources in fixed shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .base import LanedSource, Sample
from .permutation import Permutation

_PERIOD = 1024
_PATTERN = 4
"""Keeps the random stream apart from the others that share a seed, see `training`."""


class MixedSource(LanedSource):
    """Several sources in fixed shares, each of which repeats without end by itself.

    In every lane a seeded pattern of 1,024 samples says which source each is from; how many came from it before is
    counted from the pattern, so that nothing of any source is left out or repeated and any number is found at once.

    Args:
        sources: by name, with as many lanes as each other, in the order of their `Sample.source`.
        weights: shares of the sources, relative to each other.
        seed: of the pattern.

    Raises:
        ValueError: a share too small for a single sample of the pattern.
    """

    def __init__(self, sources: dict[str, LanedSource], weights: Sequence[float], seed: int) -> None:
        self.sources = list(sources.values())
        listing = {key: content for source in self.sources for key, content in source.listing().items()}
        super().__init__(self.sources[0].lanes, listing)
        assert all(source.lanes == self.lanes for source in self.sources)
        self._names = list(sources)
        self._counts = _shares(weights)
        self._seed = seed
        self._patterns: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for name, weight, count in zip(self._names, weights, self._counts):
            if count == 0:
                raise ValueError(
                    f"{name}.weight={weight} of {sum(weights):g} in all is less than half a sample in {_PERIOD}; "
                    f"use {sum(weights) / _PERIOD:g} or more, or leave the source out"
                )

    def at(self, lane: int, position: int, ahead: int = 0) -> Sample:
        if lane not in self._patterns:
            self._patterns[lane] = self._pattern(lane)
        choices, before = self._patterns[lane]
        turn, place = divmod(position, _PERIOD)
        choice = int(choices[place])
        own = turn * self._counts[choice] + int(before[place])
        sample = self.sources[choice].at(lane, own, ahead)
        name = self._names[choice]
        broken = tuple(item._replace(name=f"{name}: {item.name}") for item in sample.broken)
        return replace(sample, name=f"{name}: {sample.name}", broken=broken)

    @property
    def num_shards(self) -> int:
        return sum(source.num_shards for source in self.sources)

    def _pattern(self, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each place `[1024]`: its source, and how many places before it have the same."""
        order = np.array(Permutation(_PERIOD, (self._seed, _PATTERN, lane)))
        choices = np.repeat(np.arange(len(self._counts)), self._counts)[order]
        before = np.zeros(_PERIOD, dtype=np.int64)
        for choice in range(len(self._counts)):
            chosen = choices == choice
            before[chosen] = np.arange(chosen.sum())
        return choices, before


def _shares(weights: Sequence[float]) -> list[int]:
    """How many of the places of a pattern each source gets, by largest remainder."""
    exact = [weight / sum(weights) * _PERIOD for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: counts[source] - exact[source])
    for source in by_remainder[: _PERIOD - sum(counts)]:
        counts[source] += 1
    return counts
