import numpy as np
import pytest

from dinov2_hf.curation.vectors import (
    build_index,
    components,
    load_index,
    neighbour_pairs,
    relative_dedup,
    save_index,
    self_dedup,
)


def all_pairs(vectors, threshold):
    similarities = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    return {(i, j) for i in range(len(vectors)) for j in range(i + 1, len(vectors)) if similarities[i, j] > threshold}


def smallest_of_components(pairs, count):
    """Labels by spreading the smaller label along each pair until nothing changes."""
    labels = list(range(count))
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            low = min(labels[i], labels[j])
            changed |= labels[i] != low or labels[j] != low
            labels[i] = labels[j] = low
    return labels


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("threshold", [0.45, 0.6, 0.9])
def test_pairs_are_those_of_the_naive_comparison(vectors, kind, threshold):
    index = build_index([vectors], 48, 1200, kind=kind)
    pairs, similarities = neighbour_pairs(index, vectors, 0, k=200, threshold=threshold, nprobe=10_000)
    assert set(map(tuple, pairs.tolist())) == all_pairs(vectors, threshold)
    assert len(pairs) == len(all_pairs(vectors, threshold)) > 150
    exact = (vectors[pairs[:, 0]].astype(np.float64) * vectors[pairs[:, 1]].astype(np.float64)).sum(axis=1)
    assert np.array_equal(similarities, exact.astype(np.float32))
    assert (pairs[:, 0] < pairs[:, 1]).all()


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_tasks_and_their_order_change_no_pair(vectors, kind):
    index = build_index([vectors], 48, 1200, kind=kind)
    whole, similarities = neighbour_pairs(index, vectors, 0, k=5, threshold=0.5)
    cuts = [0, 1, 400, 401, 1000, 1200]
    tasks = [neighbour_pairs(index, vectors[a:b], a, k=5, threshold=0.5) for a, b in zip(cuts, cuts[1:])]
    both, first = np.unique(np.concatenate([pairs for pairs, _ in tasks]), axis=0, return_index=True)
    assert np.array_equal(both, whole)
    assert np.array_equal(np.concatenate([part for _, part in tasks])[first], similarities)
    labels = components([whole], 1200)
    assert np.array_equal(components([pairs for pairs, _ in tasks[::-1]], 1200), labels)


def test_pairs_do_not_depend_on_bounds_of_memory_or_where_the_index_is(vectors, monkeypatch, tmp_path):
    vectors = vectors[:400]
    index = build_index([vectors], 48, 400, kind="ivf", num_lists=15)
    pairs, similarities = neighbour_pairs(index, vectors, 0, k=3, threshold=0.3)
    save_index(index, tmp_path / "index.faiss")
    for name, bound in (("join.PRODUCTS", 900), ("join.CANDIDATES", 2000), ("dedup.QUERIES", 150)):
        monkeypatch.setattr(f"dinov2_hf.curation.vectors.{name}", bound)
    again = neighbour_pairs(load_index(tmp_path / "index.faiss"), vectors, 0, k=3, threshold=0.3)
    assert np.array_equal(again[0], pairs) and np.array_equal(again[1], similarities)
    flat = neighbour_pairs(build_index([vectors], 48, 400), vectors, 0, k=3, threshold=0.3)
    assert np.array_equal(flat[0], pairs)  # 15 lists, of which 16 are looked into: all


def test_a_cosine_at_the_threshold_is_no_pair():
    """0.6 is not a float16; 0.5 is: the pair at exactly 0.5 stays out, the next larger value is in."""
    rows = np.zeros((3, 8), dtype=np.float16)
    rows[0, 0] = 1
    rows[1, [0, 1]] = [0.5, 0.75**0.5]
    rows[2, [0, 2]] = [np.nextafter(np.float16(0.5), np.float16(1)), 0.75**0.5]
    index = build_index([rows], 8, 3)
    assert neighbour_pairs(index, rows, 0, threshold=0.5)[0].tolist() == [[0, 2]]


def test_only_the_nearest_k_count():
    """Of five copies each sees its nearest alone, by row: all point to row 0, and row 0 to row 1."""
    rows = np.zeros((5, 8), dtype=np.float16)
    rows[:, 0] = 1
    index = build_index([rows], 8, 5)
    assert neighbour_pairs(index, rows, 0, k=1)[0].tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]


def test_many_more_copies_than_neighbours_are_one_component():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 16))
    rows[100:] = rows[5]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    for kind in ("flat", "ivf"):
        index = build_index([rows], 16, 400, kind=kind)
        labels = components([neighbour_pairs(index, rows, 0, k=8, threshold=0.99)[0]], 400)
        assert (labels[100:] == 5).all() and len(np.unique(labels)) == 100


def test_planted_copies_are_found_and_nothing_else(vectors):
    index = build_index([vectors], 48, 1200, kind="ivf")
    labels = components([neighbour_pairs(index, vectors, 0, threshold=0.85)[0]], 1200)
    assert labels.tolist() == list(range(1000)) + list(range(200))
    assert self_dedup(labels).sum() == 1000


def test_a_chain_is_one_component():
    """0 ~ 1 ~ 2 at 30 degrees each; 0 and 2 alone, at 60 degrees, are no pair."""
    angles = np.radians([0, 30, 60, 180])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    pairs, _ = neighbour_pairs(build_index([rows], 2, 4), rows, 0, threshold=0.6)
    assert pairs.tolist() == [[0, 1], [1, 2]]
    assert components([pairs], 4).tolist() == [0, 0, 0, 3]


def test_one_row_has_no_pair(vectors):
    index = build_index([vectors[:1]], 48, 1)
    pairs, similarities = neighbour_pairs(index, vectors[:1], 0)
    assert pairs.shape == (0, 2) and pairs.dtype == np.int64 and similarities.shape == (0,)
    assert neighbour_pairs(index, vectors[:0], 1)[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 60}, "threshold=60 is no cosine"),
        ({"threshold": float("nan")}, "threshold=nan is no cosine"),
        ({"k": 0}, "k=0 neighbours"),
        ({"nprobe": 0}, "nprobe=0 lists"),
        ({"first_row": 1}, "rows 1 to 1200 of an index of 1200"),
        ({"first_row": -1}, "rows -1 to"),
    ],
)
def test_impossible_pairs_are_refused(vectors, arguments, message):
    index = build_index([vectors], 48, 1200)
    with pytest.raises(ValueError, match=message):
        neighbour_pairs(index, vectors, **{"first_row": 0, **arguments})


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [3, 40, 300])
def test_components_are_those_of_the_naive_spreading_in_any_order_and_portions(seed, count, monkeypatch):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(count, size=(int(count * rng.uniform(0.3, 1.2)), 2))
    expected = smallest_of_components(pairs.tolist(), count)
    assert components([pairs], count).tolist() == expected
    monkeypatch.setattr("dinov2_hf.curation.vectors.dedup.PORTION", 1 + count // 5)  # so that several are merged
    shuffled = rng.permutation(pairs)[:, ::-1]
    portions = np.split(shuffled, np.sort(rng.integers(len(pairs) + 1, size=5)))
    assert components(portions, count).tolist() == expected
    assert components((pair for pair in shuffled), count).tolist() == expected
    assert components([pairs] * 7, count).tolist() == expected


def test_components_without_pairs_or_rows():
    assert components([], 3).tolist() == [0, 1, 2]
    assert components([np.empty((0, 2), dtype=np.int64)], 2).tolist() == [0, 1]
    assert components([], 0).tolist() == []
    assert components([[[1, 1]]], 2).tolist() == [0, 1]


def test_pairs_of_another_pool_are_refused():
    with pytest.raises(ValueError, match="row 7 of 5 rows"):
        components([[[0, 7]]], 5)
    with pytest.raises(ValueError, match="row -1 of 5 rows"):
        components([[[-1, 2]]], 5)


def test_the_smallest_row_of_a_component_is_kept():
    assert self_dedup(np.array([0, 1, 0, 1, 4])).tolist() == [True, True, False, False, True]


def test_the_best_of_a_component_is_kept_and_of_equal_ones_the_first():
    labels = np.array([0, 0, 0, 3, 4, 4, 4])
    assert self_dedup(labels, np.array([1, 5, 5, 0, 2, 1, 9])).tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert self_dedup(labels, np.array([1, 5, 5, 0, 2, 1, 9], dtype=np.uint8)).tolist() == [0, 1, 0, 1, 0, 0, 1]
    lowest = np.array([np.iinfo(np.int64).min, 0, 0, 0, 0, 0, 0])
    assert self_dedup(labels, lowest).tolist() == [0, 1, 0, 1, 1, 0, 0]
    assert self_dedup(labels, np.array([-np.inf, -np.inf, -1.0, 0, 0, 0, np.inf])).tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert self_dedup(np.array([], dtype=np.int64), np.array([])).tolist() == []


def test_exactly_one_of_each_component_is_kept_whatever_the_scores():
    rng = np.random.default_rng(0)
    labels = components([rng.integers(500, size=(300, 2))], 500)
    for scores in (rng.integers(3, size=500), rng.standard_normal(500)):
        keep = self_dedup(labels, scores)
        assert sorted(labels[keep].tolist()) == sorted(set(labels.tolist()))
        for row in np.flatnonzero(keep):
            rivals = np.flatnonzero(labels == labels[row])
            assert row == min(rivals, key=lambda rival: (-scores[rival], rival))


def test_scores_that_decide_nothing_are_refused():
    with pytest.raises(ValueError, match="score of row 1 is not a number"):
        self_dedup(np.array([0, 1]), np.array([0, np.nan]))
    with pytest.raises(ValueError, match=r"shape \(3,\) for 2 rows"):
        self_dedup(np.array([0, 1]), np.arange(3))
    with pytest.raises(ValueError, match="keep='best'"):
        self_dedup(np.array([0, 1]), "best")


def test_every_component_with_a_reference_goes_whole():
    """Pool 0 to 4, references 5 and 6. 0 ~ 1 ~ 5 is a chain; 2 ~ 3 have no reference; 4 ~ 6."""
    labels = components([[[0, 1], [1, 5], [2, 3], [4, 6]]], 7)
    assert relative_dedup(labels, 5).tolist() == [False, False, True, True, False]
    assert relative_dedup(components([], 7), 5).all()
    assert relative_dedup(labels, 7).all()  # no references at all
    assert relative_dedup(labels, 0).shape == (0,)
    with pytest.raises(ValueError, match="count_pool=8 of 7"):
        relative_dedup(labels, 8)


def test_relative_dedup_drops_the_copies_of_references(vectors):
    """The copies as references: their originals leave the pool, at a threshold that nothing unrelated reaches."""
    index = build_index([vectors], 48, 1200)
    labels = components([neighbour_pairs(index, vectors, 0, threshold=0.85)[0]], 1200)
    assert np.flatnonzero(~relative_dedup(labels, 1000)).tolist() == list(range(200))
