"""Images with a value for each pixel."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

from dinov2_hf.config import SourceConfig
from dinov2_hf.evaluation.datasets import DepthMaps, LabelMaps, common_grid
from dinov2_hf.evaluation.dense_training import CropRecipe, RandomMapCrops

from ..composed import MEAN, compose, composed, png


def saved(folder, columns, features=None):
    Dataset.from_dict(columns, features=Features(features) if features else None).save_to_disk(str(folder))
    return SourceConfig(str(folder))


def test_labels_and_depths_come_back_as_they_were_composed(tmp_path):
    composed(3).save_to_disk(str(tmp_path / "set"))
    rng = np.random.default_rng(0)
    made = [compose(rng) for _ in range(3)]
    source = SourceConfig(str(tmp_path / "set"))
    labels, depths = LabelMaps(source, 4), DepthMaps(source, 0.001)
    for row, (image, label, depth) in enumerate(made):
        pixels, values = labels.sample(row)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), image)
        assert np.array_equal(values, label)
        assert np.allclose(depths.sample(row)[1], depth, atol=5.1e-4)


def test_depths_are_read_from_16_bits_arrays_and_tables(tmp_path):
    depth = np.array([[0.5, 2.0, 0.0], [np.nan, -1.0, 79.5]], dtype=np.float32)
    expected = np.array([[0.5, 2.0, 0.0], [0.0, 0.0, 79.5]], dtype=np.float32)
    buffer = io.BytesIO()
    np.save(buffer, depth)
    image = png(np.zeros((2, 3, 3), np.uint8))
    units = (np.nan_to_num(depth).clip(0) * 256).astype(np.uint16)
    columns = {"picture": [image], "sixteen": [png(units)], "npy": [buffer.getvalue()], "table": [depth.tolist()]}
    features = {
        "picture": Image(),
        "sixteen": Image(),
        "npy": Value("binary"),
        "table": Array2D((2, 3), "float32"),
    }
    saved(tmp_path / "set", columns, features)
    for column in ("sixteen", "npy", "table"):
        source = SourceConfig(str(tmp_path / "set"), image_column="picture", label_column=column)
        assert np.array_equal(DepthMaps(source, 1 / 256).sample(0)[1], expected), column


def test_zero_label_and_ignored_label_are_no_class(tmp_path):
    labels = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    source = saved(
        tmp_path / "set",
        {"image": [png(np.zeros((1, 4, 3), np.uint8))], "annotation": [png(labels)]},
        {"image": Image(), "annotation": Image()},
    )
    assert LabelMaps(source, 3).map(0).tolist() == [[0, 1, 2, -1]]
    assert LabelMaps(source, 2, from_one=True).map(0).tolist() == [[-1, 0, 1, -1]]
    assert LabelMaps(source, 256, ignored=2).map(0).tolist() == [[0, 1, -1, 255]]


def test_palette_indices_are_labels(tmp_path):
    picture = Pillow.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    source = saved(
        tmp_path / "set",
        {"image": [png(np.zeros((2, 2, 3), np.uint8))], "mask": [{"bytes": buffer.getvalue(), "path": None}]},
        {"image": Image(), "mask": Image()},
    )
    assert LabelMaps(source, 3).map(0).tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.full((4, 6), 7, np.uint8), "row 0 of .* has the value 7; classes are 0 to 2"),
        (np.zeros((4, 5), np.uint8), "row 0 .* image of 4 x 6 pixels and a label map of 4 x 5"),
        (np.zeros((4, 6, 3), np.uint8), r"row 0 .* values of shape \[4, 6, 3\]"),
        (np.full((4, 6), 1.5, np.float32), "row 0 .* has values such as 1.5; labels are whole numbers"),
    ],
)
def test_maps_that_cannot_be_used_are_named(tmp_path, labels, message):
    buffer = io.BytesIO()
    np.save(buffer, labels)
    columns = {"image": [png(np.zeros((4, 6, 3), np.uint8))], "label_map": [buffer.getvalue()]}
    source = saved(tmp_path / "set", columns, {"image": Image(), "label_map": Value("binary")})
    with pytest.raises(ValueError, match=message):
        LabelMaps(source, 3).sample(0)


def test_missing_map_column_is_named_with_those_there_are(tmp_path):
    columns = {"image": [png(np.zeros((4, 6, 3), np.uint8))], "label": [0]}
    source = saved(tmp_path / "set", columns, {"image": Image(), "label": ClassLabel(names=["a", "b"])})
    with pytest.raises(ValueError, match="lacks a column of label maps; its columns are image, label; .*label_column="):
        LabelMaps(source, 3)
    with pytest.raises(ValueError, match="lacks label_column='depths'"):
        DepthMaps(replace(source, label_column="depths"))


def test_missing_and_broken_maps_are_named(tmp_path):
    image = png(np.zeros((4, 6, 3), np.uint8))
    columns = {"image": [image] * 2, "mask": [None, {"bytes": b"nothing", "path": None}]}
    maps = LabelMaps(saved(tmp_path / "set", columns, {"image": Image(), "mask": Image()}), 3)
    for row in (0, 1):
        with pytest.raises(ValueError, match=f"the label map of row {row} of .* cannot be read"):
            maps.sample(row)


def test_a_map_of_half_the_size_lies_on_its_image(tmp_path):
    assert common_grid((8, 12), (4, 6)) == ((4, 6), 2, 1)
    assert common_grid((4, 6), (12, 18)) == ((4, 6), 1, 3)
    assert common_grid((8, 12), (4, 5)) is None and common_grid((8, 12), (12, 8)) is None
    labels = np.arange(24).reshape(4, 6).astype(np.uint8)
    pixels = np.repeat(np.repeat(labels, 4, 0), 4, 1)[:, :, None].repeat(3, 2) * 10
    columns = {"image": [png(pixels)], "mask": [png(labels)]}
    maps = LabelMaps(saved(tmp_path / "set", columns, {"image": Image(), "mask": Image()}), 24)
    crops = RandomMapCrops(maps, CropRecipe((8, 8)), MEAN, 0)
    for epoch in range(5):
        crop, target, _, counts = crops[0, epoch]
        assert counts and torch.equal(crop[0].long(), target * 10)
