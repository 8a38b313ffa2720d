"""Hashes of images and the tables of a curation."""

import io

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from dinov2_hf.curation.hashes import bytes_hash, distance, equal_pairs, near_pairs, perceptual_hash
from dinov2_hf.curation.tables import Vectors, beside, image_ids, positions_of, shards_of, write_table, write_vectors

from .made import ROOT


def hash_of(image):
    return perceptual_hash(np.asarray(image.convert("L")))


def test_distance_counts_bits():
    left = np.array([0, 0b1011, 2**64 - 1], dtype=np.uint64)
    assert distance(left, np.array([0, 0b0001, 0], dtype=np.uint64)).tolist() == [0, 2, 64]


@pytest.mark.parametrize("max_distance", [1, 2, 5])
def test_bands_find_every_pair_that_a_full_comparison_finds(max_distance):
    rng = np.random.default_rng(max_distance)
    base = rng.integers(0, 2**63, 40, dtype=np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (160, max_distance), dtype=np.uint64)
    hashes = np.concatenate([base, base[np.arange(160) % 40] ^ np.bitwise_xor.reduce(flips, axis=1), base[:3]])
    bands = [near_pairs(hashes, max_distance, band) for band in range(max_distance + 1)]
    found = {tuple(pair) for pairs in bands for pair in pairs.tolist()}
    unique, first = np.unique(hashes, return_index=True)
    near = distance(unique[:, None], unique[None]) <= max_distance
    expected = {tuple(sorted((int(first[i]), int(first[j])))) for i, j in zip(*np.nonzero(np.triu(near, 1)))}
    assert found == expected and len(expected) > 50


def test_equal_hashes_are_connected_through_the_first():
    hashes = np.array([7, 3, 7, 9, 3, 7], dtype=np.uint64)
    assert sorted(map(tuple, equal_pairs(hashes).tolist())) == [(0, 2), (0, 5), (1, 4)]
    assert equal_pairs(np.array([], dtype=np.uint64)).shape == (0, 2)


def test_size_and_compression_hardly_change_a_hash():
    rows = load_dataset("parquet", data_files=str(ROOT / "examples/data/clothing/test.parquet"), split="train[:1]")
    image, file = rows[0]["image"].convert("RGB"), io.BytesIO()
    image.save(file, "JPEG", quality=60)
    copies = [image.resize((image.width * 3 // 4, image.height * 3 // 4)), Image.open(file)]
    own = np.array([hash_of(copy) for copy in copies], dtype=np.uint64)
    assert distance(own, np.uint64(hash_of(image))).max() <= 4
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    assert distance(np.uint64([hash_of(noise)]), np.uint64(hash_of(image)))[0] > 16


def test_equal_bytes_alone_have_equal_hashes():
    assert bytes_hash(b"a") == bytes_hash(b"a") != bytes_hash(b"b")


def test_ids_ascend_through_shards_and_tell_both_numbers():
    ids = np.concatenate([image_ids(shard, np.array([0, 5, 2**32 - 1])) for shard in (0, 1, 70_000)])
    assert (np.diff(ids) > 0).all()
    assert shards_of(ids).tolist() == [0] * 3 + [1] * 3 + [70_000] * 3
    assert positions_of(ids).tolist() == [0, 5, 2**32 - 1] * 3


def test_vectors_are_the_rows_that_are_left(tmp_path):
    rng, files = np.random.default_rng(0), []
    everything, kept = [], []
    for shard, count in enumerate((5, 0, 4)):
        ids, rows = image_ids(shard, np.arange(count)), rng.standard_normal((count, 6)).astype(np.float16)
        write_vectors(tmp_path / f"v{shard}.parquet", ids, rows)
        mask = np.arange(count) % 2 == 0
        write_table(tmp_path / f"k{shard}.parquet", {"id": ids[mask]})
        files.append((tmp_path / f"v{shard}.parquet", tmp_path / f"k{shard}.parquet"))
        everything.append(rows)
        kept.append(rows[mask])
    vectors, whole = Vectors(files), Vectors([(file, file) for file, _ in files])
    assert (len(vectors), len(whole), vectors.width) == (5, 9, 6)
    assert [vectors.first_row(shard) for shard in range(4)] == [0, 3, 3, 5]
    np.testing.assert_array_equal(np.concatenate(list(vectors)), np.concatenate(kept))
    np.testing.assert_array_equal(np.concatenate(list(whole)), np.concatenate(everything))
    assert [len(part) for part in vectors] == [3, 0, 2] == [len(part) for part in vectors]  # again from the start


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(RuntimeError), beside(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with beside(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
