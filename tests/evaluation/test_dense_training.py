"""Random crops of images and their maps."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from torch import nn

from dinov2_hf.config import SourceConfig
from dinov2_hf.config.evaluations import SegmentationEvaluation
from dinov2_hf.evaluation.datasets import LabelMaps
from dinov2_hf.evaluation.dense_training import CropRecipe, RandomMapCrops, map_updates, turned, warmed_up

from .composed import MEAN, colour_backbone, composed, dense_evaluation, pixels_of, png


def saved(folder, columns, features=None):
    Dataset.from_dict(columns, features=Features(features) if features else None).save_to_disk(str(folder))
    return SourceConfig(str(folder))


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
