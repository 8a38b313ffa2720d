import math
from collections import Counter

import numpy as np
import pytest

from dinov2_hf.data.sources.permutation import Permutation


def surprise(counts, expected):
    """By how many standard deviations the chi-square statistic of `counts` exceeds its mean."""
    counts = np.asarray(counts, dtype=float)
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 7, 10, 16, 17, 99, 1000, 1024, 4096, 4097, 10_007])
def test_every_number_of_the_range_comes_once(length):
    for key in range(5):
        assert sorted(Permutation(length, (key, 0))) == list(range(length))


def test_order_is_that_of_its_key():
    orders = {key: tuple(Permutation(100, key)) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 1)]}
    assert len(set(orders.values())) == len(orders)
    for key, order in orders.items():
        assert tuple(Permutation(100, key)) == order


def test_order_stays_the_same_in_every_release():
    """Written down once: runs that resume under a new release must go on with the images that are left."""
    assert list(Permutation(10, (0, 0))) == [9, 6, 4, 3, 8, 5, 1, 7, 0, 2]
    large = Permutation(142_000_000, (3, 7))
    assert [large[position] for position in (0, 1, 141_999_999)] == [
        54893638,
        111051955,
        63059603,
    ]


def test_item_needs_none_of_the_others():
    order = list(Permutation(4097, (1, 2)))
    again = Permutation(4097, (1, 2))
    assert [again[position] for position in (4096, 0, 2000)] == [order[4096], order[0], order[2000]]


@pytest.mark.parametrize("position", [-1, 10, 11])
def test_position_outside_is_refused(position):
    with pytest.raises(IndexError, match=f"position {position} is not in an order of 10"):
        Permutation(10, (0, 0))[position]


def test_142_million_have_no_duplicates_and_no_pattern():
    order = Permutation(142_000_000, (0, 0))
    first = np.array([order[position] for position in range(20_000)])
    assert len(np.unique(first)) == len(first) and first.min() >= 0 and first.max() < len(order)
    # of 20,000 draws the mean deviates by 0.002 of the range, and so does a correlation by 0.007; five of these
    assert abs(first.mean() / len(order) - 0.5) < 0.01
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.035
    assert surprise(np.bincount(first * 100 // len(order), minlength=100), 200) < 5


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_every_order_of_a_few_is_as_frequent_as_any_other(length):
    keys = 100 * math.factorial(length)
    counts = Counter(tuple(Permutation(length, (7, key))) for key in range(keys))
    assert len(counts) == math.factorial(length)
    assert surprise(list(counts.values()), 100) < 5


@pytest.mark.parametrize("length", [7, 10, 16, 23])
def test_every_number_is_as_frequent_in_every_place_and_beside_every_other(length):
    keys = 2000
    places, pairs = np.zeros((length, length)), np.zeros((length, length))
    for key in range(keys):
        order = list(Permutation(length, (9, key)))
        places[np.arange(length), order] += 1
        pairs[order[0], order[1]] += 1
    assert surprise(places, keys / length) < 5
    assert surprise(pairs[~np.eye(length, dtype=bool)], keys / length / (length - 1)) < 5
