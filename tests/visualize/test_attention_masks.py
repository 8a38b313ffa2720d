"""Areas that the heads look at."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.visualize import Picture, attention_masks, color_heads, draw_attention_masks, head_colors


def naive_mask(attention, mass):
    """Patches from the least to the most looked at; those that are kept are above the first 1 - mass of the sum."""
    values = sorted((value, index) for index, value in enumerate((attention / attention.sum()).flatten().tolist()))
    kept, passed = set(), 0.0
    for value, index in values:
        passed += value
        if passed > 1 - mass:
            kept.add(index)
    return torch.tensor([index in kept for index in range(attention.numel())]).reshape(attention.shape)


@pytest.mark.parametrize("mass", [0.1, 0.6, 0.95])
def test_areas_are_those_of_the_published_rule(mass):
    attention = torch.rand(3, 5, 7, dtype=torch.double) ** 4
    found = attention_masks(attention, mass)
    for head in range(3):
        assert torch.equal(found[head], naive_mask(attention[head], mass))


@pytest.mark.parametrize("mass", [0.3, 0.6, 1.0])
def test_area_is_the_smallest_that_has_the_mass(mass):
    attention = torch.rand(4, 6, 6) * 0.01  # most went to CLS itself
    masks = attention_masks(attention, mass)
    for values, mask in zip(attention / attention.sum(dim=(1, 2), keepdim=True), masks):
        kept = values[mask]
        assert kept.sum() >= mass - 1e-6 and kept.sum() - kept.min() < mass
        assert mask.all() or kept.min() >= values[~mask].max()


def test_patches_that_get_nothing_are_never_kept():
    attention = torch.zeros(1, 2, 2)
    attention[0, 0] = torch.tensor([0.25, 0.75])
    assert attention_masks(attention, 1.0).tolist() == [[[True, True], [False, False]]]
    assert attention_masks(attention, 0.6).tolist() == [[[False, True], [False, False]]]


@pytest.mark.parametrize("mass", [0.0, -0.1, 1.01])
def test_other_shares_are_refused(mass):
    with pytest.raises(ValueError, match="is not a share of the attention"):
        attention_masks(torch.rand(1, 2, 2), mass)


@pytest.fixture
def halves():
    """A grey picture; one head looks at its left, the other at its right and a little at the left."""
    picture = Picture("name", np.full((3, 32, 48), 128, np.uint8))
    attention = torch.zeros(2, 4, 6)
    attention[0, :, :3], attention[1, :, 3:], attention[1, :, 2] = 0.05, 0.04, 0.03
    return picture, attention, attention_masks(attention, 1.0)


def test_patch_has_the_colour_of_the_head_that_looks_at_it_most(halves):
    colored = color_heads(*halves)
    assert colored.shape == (32, 48, 3)
    colors = (0.4 * 128 + 0.6 * head_colors(2)).round()
    assert (colored[:, :24] == colors[0]).all() and (colored[:, 24:] == colors[1]).all()


def test_one_head_by_itself_keeps_its_colour_and_the_rest_is_dark(halves):
    colored = color_heads(*halves, heads=[1])
    color = (0.4 * 128 + 0.6 * head_colors(2)[1]).round()
    assert (colored[:, 16:] == color).all() and (colored[:, :16] == round(0.45 * 128)).all()


def test_sheet_has_the_image_all_heads_and_every_head(halves, tmp_path):
    picture, attention, _ = halves
    path = draw_attention_masks([picture, picture], [attention, attention], tmp_path / "heads.png", 1.0)
    with Image.open(path) as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    assert drawn.shape[1] == 4 * 190
    colors = (0.4 * 128 + 0.6 * head_colors(2)).round()
    counts = [
        [(np.abs(part - color).max(axis=2) < 3).sum() for color in colors]
        for part in np.array_split(drawn[: len(drawn) // 2], 4, axis=1)
    ]
    assert counts[0] == [0, 0] and min(counts[1]) > 1000
    assert counts[2][0] > 1000 and counts[2][1] == 0 and counts[3][1] > 1000 and counts[3][0] == 0


def test_colours_of_heads_differ():
    for count in (2, 6, 16):
        colors = head_colors(count).astype(int)
        distances = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(count)
        assert distances.min() > 60
