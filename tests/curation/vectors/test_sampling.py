import numpy as np
import pytest

from dinov2_hf.curation.vectors import (
    Hierarchy,
    balanced_sample,
    hierarchical_kmeans,
    retrieve_clusters,
    retrieve_nearest,
    waterfill,
)


@pytest.mark.parametrize(
    ("sizes", "target", "shares"),
    [
        ([5, 1, 10], 9, [4, 1, 4]),
        ([5, 1, 10], 12, [5, 1, 6]),
        ([5, 1, 10], 3, [1, 1, 1]),
        ([5, 1, 10], 2, [1, 1, 0]),
        ([5, 1, 10], 4, [2, 1, 1]),
        ([5, 1, 10], 16, [5, 1, 10]),
        ([5, 1, 10], 99, [5, 1, 10]),
        ([5, 1, 10], 0, [0, 0, 0]),
        ([0, 0, 3], 2, [0, 0, 2]),
        ([7], 3, [3]),
        ([], 3, []),
        ([], 0, []),
    ],
)
def test_shares_by_hand(sizes, target, shares):
    assert waterfill(np.array(sizes), target).tolist() == shares


@pytest.mark.parametrize("seed", range(30))
def test_shares_are_those_of_giving_one_at_a_time(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(12, size=rng.integers(1, 9))
    target = int(rng.integers(sizes.sum() + 3))
    expected = np.zeros_like(sizes)
    while expected.sum() < min(target, sizes.sum()):
        open_ones = np.flatnonzero(expected < sizes)
        expected[open_ones[expected[open_ones].argmin()]] += 1
    assert waterfill(sizes, target).tolist() == expected.tolist()
    drawn = waterfill(sizes, target, rng)
    assert sorted(drawn.tolist()) == sorted(expected.tolist()) or drawn.sum() == expected.sum()
    assert drawn.sum() == expected.sum() and (drawn <= sizes).all() and abs(drawn - expected).max(initial=0) <= 1


def test_negative_shares_are_refused():
    with pytest.raises(ValueError, match="at least 0"):
        waterfill(np.array([1]), -1)
    with pytest.raises(ValueError, match="at least 0"):
        waterfill(np.array([-1]), 1)


def two_levels():
    """Rows: 12 in cluster 0, 2 in 1, 6 in 2; coarse cluster 0 holds 0 and 1, coarse cluster 1 holds 2."""
    return Hierarchy([np.zeros((3, 2)), np.zeros((2, 2))], [np.repeat([0, 1, 2], [12, 2, 6]), np.array([0, 0, 1])])


@pytest.mark.parametrize(
    ("target", "per_cluster"),
    [(10, [3, 2, 5]), (16, [8, 2, 6]), (4, [1, 1, 2]), (20, [12, 2, 6]), (50, [12, 2, 6]), (0, [0, 0, 0])],
)
def test_levels_share_from_the_top_by_hand(target, per_cluster):
    hierarchy = two_levels()
    rows = balanced_sample(hierarchy, target)
    assert np.bincount(hierarchy.parents[0][rows], minlength=3).tolist() == per_cluster
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("target", [1, 7, 333, 1199, 1200])
def test_a_balanced_sample_has_the_target_once_each_and_follows_the_seed(vectors, target):
    hierarchy = hierarchical_kmeans(vectors, [80, 9], iterations=3, resampling_steps=1)
    rows = balanced_sample(hierarchy, target, seed=1)
    assert len(rows) == len(np.unique(rows)) == target
    assert np.array_equal(rows, balanced_sample(hierarchy, target, seed=1))
    if target < 1000:
        assert not np.array_equal(rows, balanced_sample(hierarchy, target, seed=2))
    sizes = np.bincount(hierarchy.clusters(), minlength=9)
    shares = np.bincount(hierarchy.clusters()[rows], minlength=9)
    assert sorted(shares) == sorted(waterfill(sizes, target)) or abs(shares - waterfill(sizes, target)).max() <= 1


def test_every_row_of_a_cluster_can_be_drawn():
    drawn = np.concatenate([balanced_sample(two_levels(), 4, seed=seed) for seed in range(200)])
    assert len(np.unique(drawn)) == 20


def test_a_negative_target_is_refused():
    with pytest.raises(ValueError, match="target=-1"):
        balanced_sample(two_levels(), -1)


def test_neighbours_are_counted_with_repeats():
    rows = np.array([[4, 2, 9], [4, 7, 2], [2, 4, 8]])
    similarities = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.9, 0.8, 0.7]])
    chosen, counts = retrieve_nearest(similarities, rows, 2)
    assert chosen.tolist() == [2, 4, 7] and counts.tolist() == [2, 3, 1]
    assert counts.sum() == 3 * 2


def test_neighbours_of_several_indexes_are_merged_and_missing_ones_left_out():
    rows = np.array([[4, 2, 9, 1], [-1, 3, 5, 6]])
    similarities = np.array([[0.5, 0.4, 0.9, 0.4], [-np.inf, 0.1, 0.2, 0.3]], dtype=np.float32)
    chosen, counts = retrieve_nearest(similarities, rows, 3)
    assert chosen.tolist() == [1, 3, 4, 5, 6, 9] and (counts == 1).all()  # 1 before 2 at the same similarity
    chosen, _ = retrieve_nearest(similarities, rows, 4)
    assert -1 not in chosen


def test_retrieval_refuses_more_neighbours_than_searched():
    with pytest.raises(ValueError, match="num_neighbours=3 must be 1 to 2"):
        retrieve_nearest(np.zeros((1, 2)), np.zeros((1, 2), dtype=int), 3)
    with pytest.raises(ValueError, match=r"must be \[queries, k\]"):
        retrieve_nearest(np.zeros((1, 2)), np.zeros((1, 3), dtype=int), 1)


def test_no_queries_retrieve_nothing():
    chosen, counts = retrieve_nearest(np.zeros((0, 4), dtype=np.float32), np.zeros((0, 4), dtype=np.int64), 4)
    assert len(chosen) == len(counts) == 0
    assert retrieve_clusters(np.array([0, 1]), np.array([], dtype=int), np.zeros(2), 5).tolist() == []


POOL = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
DISTANCES = np.array([0.4, 0.1, 0.3, 0.2, 0.1, 0.1, 0.3, 0.1, 0.2])
QUERIES = np.array([0] * 4 + [1] * 3 + [2] * 9)


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ({"per_cluster": 2}, [1, 3, 7, 8]),  # cluster 1 has three queries, and more than three are asked for
        ({"per_cluster": 2, "min_queries": 2}, [1, 3, 4, 5, 7, 8]),
        ({"per_cluster": 100}, [0, 1, 2, 3, 6, 7, 8]),
        ({"per_cluster": 100, "cap": 3}, [1, 3, 7]),
        ({"per_cluster": 100, "cap": 5}, [1, 2, 3, 7, 8]),
        ({"per_cluster": 1, "cap": 5}, [1, 7]),
        ({"per_cluster": 1, "cap": 0}, []),
        ({"per_cluster": 1, "min_queries": 9}, []),
    ],
)
def test_clusters_with_enough_queries_give_their_nearest_by_hand(arguments, rows):
    assert retrieve_clusters(POOL, QUERIES, DISTANCES, **arguments).tolist() == rows


def test_queries_in_clusters_without_pool_retrieve_nothing():
    assert retrieve_clusters(POOL, np.array([5] * 10), DISTANCES, 3).tolist() == []
    assert retrieve_clusters(np.array([], dtype=int), QUERIES, np.array([]), 3).tolist() == []


def test_impossible_cluster_retrieval_is_refused():
    with pytest.raises(ValueError, match=r"distances \(2,\) for 9 rows"):
        retrieve_clusters(POOL, QUERIES, DISTANCES[:2], 3)
    with pytest.raises(ValueError, match="per_cluster=0 must be at least 1"):
        retrieve_clusters(POOL, QUERIES, DISTANCES, 0)
