"""Similarity to a chosen patch."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.visualize import Picture, best_patch, draw_similarity, patch_at, similarity_maps
from dinov2_hf.visualize.similarity import similarity_range


def test_cosines_are_those_computed_by_hand():
    first = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[-6.0, -8.0], [4.0, -3.0]]])  # 2 x 2 patches of width 2
    second = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [5.0, 5.0]]])  # 1 x 3 patches, one of them nothing
    one, other = similarity_maps([first, second], image=0, row=0, column=0)
    torch.testing.assert_close(one, torch.tensor([[1.0, 0.8], [-1.0, 0.0]]))
    torch.testing.assert_close(other, torch.tensor([[0.6, 0.0, 1.4 / math.sqrt(2)]]))
    assert best_patch(other) == (0, 2, pytest.approx(0.98995, abs=1e-5))


def test_similarity_is_symmetric():
    features = torch.randn(2, 5, 6, 16, generator=torch.Generator().manual_seed(0))
    there = similarity_maps(features, 0, 2, 3)[1][4, 1]
    back = similarity_maps(features, 1, 4, 1)[0][2, 3]
    torch.testing.assert_close(there, back)


@pytest.mark.parametrize(("image", "row", "column"), [(2, 0, 0), (-1, 0, 0), (0, 3, 0), (0, 0, 4), (1, -1, 0)])
def test_a_patch_that_does_not_exist_is_refused(image, row, column):
    with pytest.raises(ValueError, match="count from 0"):
        similarity_maps([torch.ones(3, 4, 8), torch.ones(3, 4, 8)], image, row, column)


@pytest.mark.parametrize(
    ("point", "place"),
    [((0, 0), (0, 0)), ((1, 1), (4, 9)), ((0.5, 0.5), (2, 5)), ((0.95, 0.19), (0, 9)), ((0.1, 0.2), (1, 1))],
)
def test_points_are_shares_of_width_and_height(point, place):
    assert patch_at(point, height=5, width=10) == place


def test_a_point_outside_is_refused():
    with pytest.raises(ValueError, match="point=1.2,0.5 lies outside"):
        patch_at((1.2, 0.5), 5, 5)


def test_the_scale_ends_at_one_and_a_few_outliers_do_not_take_it():
    maps = [torch.full((10, 10), 0.5), torch.full((10, 10), 0.3)]
    maps[0][0, :4] = -0.9
    assert similarity_range(maps) == (pytest.approx(0.3), 1.0)


def test_sheet_is_bright_where_patches_are_similar(tmp_path):
    pictures = [Picture(name, np.full((3, 32, 32), 128, np.uint8)) for name in ("first", "second")]
    maps = [torch.zeros(4, 4), torch.zeros(4, 4)]
    maps[0][1, 1], maps[1][:, 2:] = 1, 0.9
    with Image.open(draw_similarity(pictures, maps, 0, 1, 1, tmp_path / "s.png")) as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    heat = drawn[drawn.shape[0] // 2 + 20 :, : 2 * 190]  # of three columns the third is empty
    bright = (heat[..., 0] > 200) & (heat[..., 0] > heat[..., 2] + 20)
    first, second = np.array_split(bright, 2, axis=1)
    assert 500 < first.sum() < 0.2 * second.sum()
    assert np.argwhere(second)[:, 1].mean() > 0.55 * second.shape[1]
