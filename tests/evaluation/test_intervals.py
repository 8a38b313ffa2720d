import numpy as np
import pytest

from dinov2_hf.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    "correct, total, low, high",
    # centre (p + z^2 / 2n) / (1 + z^2 / n), half width z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)
    [(50, 100, 40.383, 59.617), (10, 10, 72.247, 100.0), (0, 10, 0.0, 27.753), (0, 0, 0.0, 100.0)],
)
def test_interval_of_a_share_is_wilsons(correct, total, low, high):
    assert wilson(correct, total) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_interval_of_a_share_covers_the_truth_in_95_of_100_draws():
    rng = np.random.default_rng(0)
    intervals = [wilson(correct, 200) for correct in rng.binomial(200, 0.3, 2000)]
    assert 0.93 < np.mean([low <= 30 <= high for low, high in intervals]) < 0.97


def test_bootstrap_of_a_mean_is_that_of_its_standard_error():
    samples = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap(np.mean, samples)
    error = samples.std() / 20
    assert low == pytest.approx(samples.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(samples.mean() + 1.96 * error, abs=0.2 * error)
    assert bootstrap(np.mean, samples) == (low, high)
    assert bootstrap(np.mean, samples, seed=1) != (low, high)
