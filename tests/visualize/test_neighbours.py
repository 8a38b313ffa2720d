"""Nearest images of a collection."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.data.sources import HeldImages
from dinov2_hf.visualize import Picture, draw_neighbours, find_neighbours, open_collection
from dinov2_hf.visualize.neighbours import nearest


def test_neighbours_are_those_computed_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [3.0, 4.0], [40.0, 3.0]])
    collection = HeldImages([(bytes([row]), f"row {row}") for row in range(12)], "images")
    rows = torch.tensor([0, 2, 3, 7, 11])  # the others could not be decoded
    right, up = nearest(torch.tensor([[2.0, 0.0], [0.0, 0.1]]), features, rows, 3, [b"x", b"y"], collection)
    assert right.rows == [0, 11, 7]
    assert right.cosines == pytest.approx([1.0, 40 / np.hypot(40, 3), 0.6])
    assert up.rows == [2, 7, 11]
    assert up.cosines == pytest.approx([1.0, 0.8, 3 / np.hypot(40, 3)])


def test_copies_of_the_query_are_left_out():
    collection = HeldImages([(b"same", "a"), (b"other", "b"), (b"same", "c")], "images")
    (found,) = nearest(torch.ones(1, 2), torch.ones(3, 2), torch.arange(3), 2, [b"same"], collection)
    assert found.rows == [1] and found.cosines == [pytest.approx(1.0)]


def test_an_image_is_nearest_to_itself_at_another_quality(backbone, photographs, tmp_path):
    with Image.open(photographs[2]) as image:
        image.save(tmp_path / "again.png")
    query = [((tmp_path / "again.png").read_bytes(), "again.png")]
    (found,) = find_neighbours(backbone, query, open_collection(str(photographs[0].parent)), 3)
    assert found.rows[0] == 2 and found.cosines[0] > 0.999
    assert found.cosines == sorted(found.cosines, reverse=True) and len(found.rows) == 3


def test_broken_images_of_the_collection_are_left_out(backbone, photographs, tmp_path):
    data = [path.read_bytes() for path in photographs]
    collection = HeldImages([(b"broken", "x"), (data[0], "a"), (data[1], "b")], "images")
    (found,) = find_neighbours(backbone, [(data[0], "a")], collection, 5)
    assert found.rows == [2]
    with pytest.raises(ValueError, match="no image of the collection can be decoded"):
        find_neighbours(backbone, [(data[0], "a")], HeldImages([(b"broken", "x")], "images"), 5)


def test_features_are_read_from_the_cache_the_second_time(backbone, photographs, tmp_path):
    collection, query = open_collection(str(photographs[0].parent)), [(photographs[0].read_bytes(), "a")]
    first = find_neighbours(backbone, query, collection, 4, cache=tmp_path)
    (shard,) = tmp_path.rglob("*.safetensors")
    written = shard.stat().st_mtime_ns
    assert find_neighbours(backbone, query, collection, 4, cache=tmp_path) == first
    assert shard.stat().st_mtime_ns == written
    assert find_neighbours(backbone, query, collection, 4) == first


def test_sheet_has_a_row_for_each_query_with_its_neighbours_in_order(tmp_path):
    tints = {"query": (200, 30, 60), "near": (30, 190, 60), "far": (40, 60, 210)}
    pictures = {
        name: Picture(name, np.zeros((3, 20, 20), np.uint8) + np.array(tint, np.uint8)[:, None, None])
        for name, tint in tints.items()
    }
    rows = [[(pictures["near"], 0.9), (pictures["far"], 0.1)], [(pictures["far"], 0.5)]]
    with Image.open(draw_neighbours([pictures["query"]] * 2, rows, tmp_path / "n.png")) as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    middle = drawn.shape[0] // 2

    def center(part, name):
        places = np.argwhere((np.abs(part - tints[name]) <= 2).all(axis=2))
        return places[:, 1].mean() if len(places) > 1000 else None

    top, bottom = drawn[:middle], drawn[middle + 20 :]
    assert center(top, "query") < center(top, "near") < center(top, "far")
    assert center(bottom, "query") < center(bottom, "far") < center(top, "far")
    assert center(bottom, "near") is None
