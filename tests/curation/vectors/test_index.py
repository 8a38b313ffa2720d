import faiss
import numpy as np
import pytest

from dinov2_hf.curation.vectors import build_index, load_index, save_index, search


def nearest_of_all(vectors, queries, k):
    """Similarities and rows of the `k` nearest, each pair compared; ties by row."""
    similarities = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.lexsort((np.broadcast_to(np.arange(len(vectors)), similarities.shape), -similarities), axis=1)[:, :k]
    return np.take_along_axis(similarities, rows, axis=1).astype(np.float32), rows


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_search_in_all_lists_is_the_naive_search_to_the_bit(vectors, kind):
    index = build_index([vectors], 48, 1200, kind=kind, num_lists=20 if kind == "ivf" else 0)
    similarities, rows = search(index, vectors[:300], 9, nprobe=20)
    expected, expected_rows = nearest_of_all(vectors, vectors[:300], 9)
    assert np.array_equal(rows, expected_rows) and np.array_equal(similarities, expected)


def test_search_agrees_with_the_flat_index_of_faiss(vectors):
    oracle = faiss.IndexFlatIP(48)
    oracle.add(vectors.astype(np.float32))
    expected, expected_rows = oracle.search(vectors[:200].astype(np.float32), 5)
    similarities, rows = search(build_index([vectors], 48, 1200, kind="ivf"), vectors[:200], 5, nprobe=10_000)
    assert np.allclose(similarities, expected, atol=1e-6) and (rows == expected_rows).mean() > 0.999


def test_few_lists_find_the_copies(vectors):
    index = build_index([vectors], 48, 1200, kind="ivf")
    assert index.nlist == 139
    _, rows = search(index, vectors[1000:], 3, nprobe=16)
    assert (rows == np.arange(200)[:, None]).any(axis=1).mean() == 1


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_index_does_not_depend_on_cuts_batches_or_threads(vectors, kind, threads):
    threads(1)
    one = search(build_index([vectors], 48, 1200, kind=kind, seed=3), vectors, 7)
    threads(3)
    index = build_index(np.array_split(vectors, 11), 48, 1200, kind=kind, seed=3)
    parts = [search(index, part, 7) for part in np.split(vectors, [1, 20, 21, 640])]
    assert np.array_equal(one[0], np.concatenate([similarities for similarities, _ in parts]))
    assert np.array_equal(one[1], np.concatenate([rows for _, rows in parts]))


def test_auto_is_flat_for_few_and_inverted_for_many(vectors, monkeypatch):
    assert isinstance(build_index([vectors], 48, 1200), faiss.IndexFlatIP)
    monkeypatch.setattr("dinov2_hf.curation.vectors.index.FLAT_ROWS", 1199)
    index = build_index([vectors], 48, 1200)
    assert isinstance(index, faiss.IndexIVFScalarQuantizer) and not index.by_residual
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_saved_index_finds_the_same_and_a_killed_save_leaves_the_old_one(vectors, kind, tmp_path, monkeypatch):
    index = build_index([vectors], 48, 1200, kind=kind)
    path = tmp_path / "folder" / "index.faiss"
    save_index(index, path)
    loaded = load_index(path)
    for got, expected in zip(search(loaded, vectors[:50], 4), search(index, vectors[:50], 4)):
        assert np.array_equal(got, expected)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_index(build_index([vectors[:10]], 48, 10), path)
    assert load_index(path).ntotal == 1200


def test_a_missing_index_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.faiss: no such index"):
        load_index(tmp_path / "none.faiss")


def test_one_row_and_more_neighbours_than_rows(vectors):
    for kind in ("flat", "ivf"):
        similarities, rows = search(build_index([vectors[:1]], 48, 1, kind=kind), vectors[:2], 3)
        assert rows.tolist() == [[0, -1, -1]] * 2
        assert np.isneginf(similarities[:, 1:]).all() and abs(similarities[0, 0] - 1) < 2e-3


def test_no_queries_find_nothing(vectors):
    similarities, rows = search(build_index([vectors], 48, 1200), vectors[:0], 3)
    assert similarities.shape == rows.shape == (0, 3)


def test_equal_rows_come_in_their_order(vectors):
    same = np.repeat(vectors[:3], 4, axis=0)
    _, rows = search(build_index([same], 48, 12), same[:1], 4)
    assert rows.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "index of 0 vectors"),
        ({"count": 1199}, "more vectors came than count=1199"),
        ({"count": 1201}, "1200 vectors came, not count=1201"),
        ({"count": 1199, "kind": "ivf"}, "1200 vectors came, not count=1199"),
        ({"count": 1201, "kind": "ivf"}, "1200 vectors came, not count=1201"),
        ({"dim": 32}, "width 48 for an index of width 32"),
        ({"dim": 32, "kind": "ivf"}, "width 48 for an index of width 32"),
        ({"kind": "hnsw"}, "kind='hnsw' is not auto, flat or ivf"),
        ({"kind": "ivf", "num_lists": 1201}, "num_lists=1201 of 1200 vectors"),
    ],
)
def test_impossible_indexes_are_refused(vectors, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_index([vectors], **{"dim": 48, "count": 1200, **arguments})


def test_a_generator_is_refused_where_rows_are_read_twice(vectors):
    assert build_index((part for part in [vectors]), 48, 1200).ntotal == 1200
    with pytest.raises(ValueError, match="can be read once only"):
        build_index((part for part in [vectors]), 48, 1200, kind="ivf")


def test_broken_rows_and_queries_are_named(vectors):
    broken = vectors.copy()
    broken[1100] = 0
    for kind in ("flat", "ivf"):
        with pytest.raises(ValueError, match="vector 1100 has length 0"):
            build_index([vectors[:700], broken[700:]], 48, 1200, kind=kind)
    index = build_index([vectors], 48, 1200)
    with pytest.raises(ValueError, match="vector 1100 has length 0"):
        search(index, broken, 3)
    with pytest.raises(ValueError, match="queries of width 47 for an index of width 48"):
        search(index, vectors[:, :47], 3)
    with pytest.raises(ValueError, match="k=0"):
        search(index, vectors, 0)
    with pytest.raises(ValueError, match="nprobe=0"):
        search(index, vectors, 1, 0)
