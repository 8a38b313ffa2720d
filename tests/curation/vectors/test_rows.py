import math

import numpy as np
import pytest

from dinov2_hf.curation.vectors import VectorShards
from dinov2_hf.curation.vectors.rows import as_rows, equal_blocks, exact_products


def test_products_of_float16_rows_are_exact_in_any_order(vectors):
    left, right = vectors[:300].astype(np.float32), vectors[300:600].astype(np.float32)
    exact = [math.fsum(float(a) * float(b) for a, b in zip(*pair)) for pair in zip(left, right)]
    assert exact_products(left, right).tolist() == exact
    order = np.random.default_rng(0).permutation(48)
    assert exact_products(left[:, order], right[:, order]).tolist() == exact
    assert (left.astype(np.float64) @ right.astype(np.float64).T).diagonal().tolist() == exact


def test_shards_read_like_one_matrix(vectors, tmp_path):
    for number, shard in enumerate(np.split(vectors, [1, 500, 500, 900])):
        np.save(tmp_path / f"{number}.npy", shard)
    shards = VectorShards([np.load(tmp_path / f"{number}.npy", mmap_mode="r") for number in range(5)])
    assert shards.shape == (1200, 48) and len(shards) == 1200 and shards.dtype == np.float16
    rows = np.random.default_rng(0).integers(1200, size=500)
    assert np.array_equal(shards[rows], vectors[rows])
    assert np.array_equal(shards[np.array([899, 900, 0])], vectors[[899, 900, 0]])
    assert np.array_equal(shards[0:0], vectors[0:0])
    for part in (slice(0, 1200), slice(400, 950), slice(1190, 1300), slice(None)):
        assert np.array_equal(shards[part], vectors[part])


def test_shards_refuse_rows_outside_and_other_widths(vectors):
    with pytest.raises(IndexError, match="1200 of 1200"):
        VectorShards([vectors])[np.array([5, 1200])]
    with pytest.raises(IndexError):
        VectorShards([vectors])[np.array([-1])]
    with pytest.raises(ValueError, match="one width"):
        VectorShards([vectors, vectors[:, :7]])
    with pytest.raises(ValueError, match="one width"):
        VectorShards([])


@pytest.mark.parametrize("cuts", [[], [1], [5, 6, 700], list(range(0, 1200, 37)), [0, 0, 1200]])
def test_blocks_do_not_depend_on_the_cuts(vectors, cuts):
    got = list(equal_blocks(np.split(vectors, cuts), 100))
    assert [first for first, _ in got] == list(range(0, 1200, 100))
    assert np.array_equal(np.concatenate([rows for _, rows in got]), vectors.astype(np.float32))


def test_rows_are_rounded_to_float16(vectors):
    rows = as_rows(vectors.astype(np.float64) * (1 + 1e-4))
    assert rows.dtype == np.float32 and np.array_equal(rows, vectors.astype(np.float32))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "vector 107 is not finite"),
        (np.inf, "vector 107 is not finite"),
        (1e9, "vector 107 is not finite"),  # not in float16
        (0.0, "vector 107 has length 0, not 1"),
        (1.0, "vector 107 has length 6.93, not 1"),
    ],
)
def test_rows_that_are_no_unit_vectors_are_named(vectors, value, message):
    broken = vectors[:20].astype(np.float32)
    broken[7] = value
    with pytest.raises(ValueError, match=message):
        as_rows(broken, first_row=100)


def test_a_single_vector_is_not_a_matrix(vectors):
    with pytest.raises(ValueError, match=r"\(48,\) are not a matrix"):
        as_rows(vectors[0])
