"""95 % confidence intervals of results on a test set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_Z = 1.959963984540054
"""Of the standard normal distribution: 95 % lie within so many deviations."""


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The interval of a share of `correct` out of `total`, in percent (Wilson, 1927)."""
    if total == 0:
        return 0.0, 100.0
    share, square = correct / total, _Z**2 / total
    centre = share + square / 2
    spread = _Z * np.sqrt(share * (1 - share) / total + square / (4 * total))
    low, high = ((centre + sign * spread) / (1 + square) for sign in (-1, 1))
    # the ends are exact where none or all are correct
    return 100 * float(low) if correct else 0.0, 100 * float(high) if correct < total else 100.0


def bootstrap(
    statistic: Callable[[np.ndarray], float], per_sample: np.ndarray, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """The interval of a statistic by drawing samples with replacement (percentile bootstrap; Efron, 1979).

    Args:
        statistic: of samples `[N, ...]`.
        per_sample: what each sample contributes, `[N, ...]`.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(per_sample[rng.integers(0, len(per_sample), len(per_sample))]) for _ in range(resamples)]
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)
