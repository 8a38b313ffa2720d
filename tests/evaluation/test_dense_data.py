"""Images with maps, and random crops of both."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
from torch import nn

from dinov2_hf.config import SourceConfig
from dinov2_hf.config.evaluations import SegmentationEvaluation
from dinov2_hf.evaluation.datasets.dense import DepthMaps, LabelMaps, common_grid
from dinov2_hf.evaluation.dense_training import CropRecipe, RandomMapCrops, map_updates, turned, warmed_up

from .composed import MEAN, colour_backbone, compose, composed, dense_evaluation, pixels_of, png


def saved(folder, columns, features=None):
    Dataset.from_dict(columns, features=Features(features) if features else None).save_to_disk(str(folder))
    return SourceConfig(str(folder))


# --- sources ---------------------------------------------------------------------------------------------------------


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


# --- training crops --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed")
    composed(4).save_to_disk(str(folder))
    return LabelMaps(SourceConfig(str(folder)), 4)


class Striped:
    """A source of one image in whose every pixel the red value is the label, in stripes of eight pixels."""

    void, kind, where = -1, "label map", "stripes"

    def __init__(self, height=30, width=41):
        self.labels = (np.arange(width) // 8 % 5)[None].repeat(height, axis=0)

    def __len__(self):
        return 1

    def sample(self, row, num_channels, decoding):
        return torch.from_numpy(self.labels.astype(np.uint8) * 50)[None].repeat(3, 1, 1), self.labels


def test_crops_of_image_and_map_show_the_same_place():
    crops = RandomMapCrops(Striped(), CropRecipe((16, 20)), MEAN, 0)
    seen = set()
    for epoch in range(30):
        crop, target, _, _ = crops[0, epoch]
        assert torch.equal(crop[0].long(), target * 50)
        seen.add(tuple(target[0].tolist()))
    assert len(seen) > 12  # places and mirrored


def test_scaled_crops_of_image_and_map_show_the_same_place():
    recipe = CropRecipe((48, 48), resize_size=60, scale_range=(0.5, 2.0))
    crops = RandomMapCrops(Striped(), recipe, MEAN, 0)
    padded = 0
    for epoch in range(20):
        crop, target, _, _ = crops[0, epoch]
        known = target >= 0
        padded += not bool(known.all())
        inner = known.clone()
        for shift in (-2, -1, 1, 2):  # away from edges, which the resizing of the image mixes
            inner &= target.roll(shift, 1) == target
        assert inner.any()
        assert ((crop[0].float() - target * 50).abs()[inner] <= 12).all()
    assert padded  # images at half the size are smaller than a crop


def test_a_turn_is_one_of_image_and_map():
    pixels, labels = pixels_of(9, 9), np.arange(81).reshape(9, 9)
    image, values = turned(pixels, labels, 90, -1)
    assert torch.equal(image, pixels.rot90(-1, (1, 2))) and np.array_equal(values, np.rot90(labels, -1))
    assert values.dtype == labels.dtype
    image, values = turned(torch.ones(1, 20, 60), np.zeros((20, 60), int), 45, -1)
    assert (values[0, 0], values[10, 30]) == (-1, 0) and (image[0, 0, 0], image[0, 10, 30]) == (0, 1)
    # a line stays as long as it is: axes are of one scale
    line = np.zeros((40, 80))
    line[20, 10:70] = 1
    rows, columns = np.nonzero(turned(pixels_of(40, 80), line, 20, 0)[1])
    assert np.hypot(np.ptp(rows), np.ptp(columns)) == pytest.approx(59, abs=1.5)
    assert np.degrees(np.arctan(np.polyfit(columns, rows, 1)[0])) == pytest.approx(20, abs=1)


def test_turned_crops_of_image_and_map_show_the_same_place():
    crops = RandomMapCrops(Striped(60, 60), CropRecipe((40, 40), rotation=10.0), MEAN, 0)
    plain = RandomMapCrops(Striped(60, 60), CropRecipe((40, 40)), MEAN, 0)
    changed = 0
    for epoch in range(20):
        crop, target, _, _ = crops[0, epoch]
        around = nn.functional.unfold(target[None, None].float(), 5).view(25, 36, 36)  # what lies near no edge
        crop, target = crop[:, 2:-2, 2:-2], target[2:-2, 2:-2]
        inner = (target >= 0) & (around == target).all(dim=0)
        assert inner.any()
        assert ((crop[0].float() - target * 50).abs()[inner] <= 1).all()
        changed += len(set(map(tuple, target.tolist()))) > 1
    assert 4 <= changed <= 16
    assert all(len(set(map(tuple, plain[0, epoch][1].tolist()))) == 1 for epoch in range(5))


def test_small_images_are_padded_with_the_mean_colour_and_no_label():
    crops = RandomMapCrops(Striped(10, 12), CropRecipe((16, 16)), MEAN, 0)
    crop, target, _, _ = crops[0, 0]
    assert (target[10:] == -1).all() and (target[:, 12:] == -1).all() and (target[:10, :12] >= 0).all()
    assert crop[:, 15, 15].tolist() == [128, 102, 76]


def test_crops_of_one_class_are_drawn_again():
    source = Striped(40, 40)
    source.labels = np.zeros((40, 40), dtype=int)
    source.labels[:, 30:] = 1
    shares = {}
    for most in (1.0, 0.75):
        crops = RandomMapCrops(source, CropRecipe((12, 12), max_class_share=most), MEAN, 0)
        shares[most] = np.mean(
            [max((crops[0, epoch][1] == c).float().mean() for c in (0, 1)) <= 0.75 for epoch in range(60)]
        )
    assert shares[0.75] > 0.8 > 0.4 > shares[1.0]


def test_a_draw_depends_on_seed_epoch_and_row_alone(composed_set):
    recipe = CropRecipe((32, 32), 64, (0.5, 2.0), 5.0, 0.75, lambda rng: rng.random(2))
    first, second = (RandomMapCrops(composed_set, recipe, MEAN, 3) for _ in range(2))
    for part, again in zip(first[2, 1], [second[0, 0], second[2, 1]][1]):
        assert torch.equal(torch.as_tensor(part), torch.as_tensor(again))
    assert not torch.equal(first[2, 1][0], first[2, 2][0])
    assert not torch.equal(first[2, 1][0], RandomMapCrops(composed_set, recipe, MEAN, 4)[2, 1][0])


def test_broken_images_do_not_count_and_bad_maps_are_refused(tmp_path, caplog):
    good = png(np.zeros((8, 8, 3), np.uint8))
    columns = {
        "image": [good, {"bytes": b"nothing", "path": None}],
        "mask": [png(np.full((8, 8), value, np.uint8)) for value in (0, 0)],
    }
    maps = LabelMaps(saved(tmp_path / "set", columns, {"image": Image(), "mask": Image()}), 2)
    crops = RandomMapCrops(maps, CropRecipe((8, 8)), MEAN, 0)
    assert crops[0, 0][3] and not crops[1, 0][3] and not crops[-1, 0][3]
    assert (crops[1, 0][1] == -1).all()
    assert "row 1" in caplog.text
    maps.num_classes = 0
    assert isinstance(crops[0, 0], ValueError)  # travels out of a worker as it is


def test_bad_maps_are_refused_with_and_without_workers(tmp_path):
    columns = {"image": [png(np.zeros((8, 8, 3), np.uint8))] * 4, "mask": [png(np.full((8, 8), 9, np.uint8))] * 4}
    path = saved(tmp_path / "set", columns, {"image": Image(), "mask": Image()}).path
    for workers in (0, 1):
        evaluation = dense_evaluation(
            SegmentationEvaluation, path, colour_backbone(), iterations=1, global_batch=2, num_workers=workers
        )
        maps = LabelMaps(evaluation.config.train, 2)
        with pytest.raises(ValueError, match="^the label map of row . of .* has the value 9"):
            for chunks in map_updates(evaluation, maps, CropRecipe((8, 8))):
                list(chunks)


def test_warm_up_rises_in_a_straight_line():
    assert warmed_up(0, 2.0, 10, 0.1) == pytest.approx(0.2)
    assert warmed_up(5, 2.0, 10, 0.1) == pytest.approx(2 * 0.55)
    assert warmed_up(10, 2.0, 10, 0.1) == warmed_up(0, 2.0, 0, 0.1) == 2.0
