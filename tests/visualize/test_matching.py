"""Patches of two images that match."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.visualize import Matches, Picture, draw_matches, match_patches, mutual_neighbours


@pytest.fixture
def texture():
    """Features `[12, 14, 32]` of which no two patches are alike."""
    return torch.randn(12, 14, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shift", [(0, 0), (3, 2), (5, 0)])
def test_matches_follow_a_known_shift(texture, shift):
    down, right = shift
    first, second = texture[down:, right:], texture[: 12 - down, : 14 - right]
    noise = 0.1 * torch.randn(second.shape, generator=torch.Generator().manual_seed(1))
    matches = match_patches(first, second + noise, count=1000, spacing=1)
    inside = (matches.first[:, 0] + down < second.shape[0]) & (matches.first[:, 1] + right < second.shape[1])
    assert inside.sum() == (12 - 2 * down) * (14 - 2 * right)  # every patch that both images have
    assert torch.equal(
        matches.second[inside] - matches.first[inside], torch.tensor([shift]).expand(int(inside.sum()), 2)
    )
    assert (matches.cosine[inside] > 0.95).all()


def test_mutual_neighbours_are_those_of_a_loop(texture):
    first, second = texture[:3].flatten(0, 1), texture[2:7].flatten(0, 1) + 0.7 * texture[:5].flatten(0, 1)
    similarity = torch.nn.functional.cosine_similarity(first[:, None], second[None], dim=2)
    expected = {
        (one, int(similarity[one].argmax()))
        for one in range(len(first))
        if int(similarity[:, int(similarity[one].argmax())].argmax()) == one
    }
    index, other, cosine = mutual_neighbours(first, second)
    assert set(zip(index.tolist(), other.tolist())) == expected and 0 < len(expected) < len(first)
    torch.testing.assert_close(cosine, similarity[index, other])


def test_each_patch_is_in_one_pair_at_most(texture):
    matches = match_patches(texture[:6], texture[6:], count=1000, spacing=1)
    for places in (matches.first, matches.second):
        assert len({tuple(place) for place in places.tolist()}) == len(matches)


def test_pairs_are_apart_and_the_most_similar_come_first(texture):
    noise = torch.randn(12, 14, 32, generator=torch.Generator().manual_seed(1))
    whole = match_patches(texture, texture + noise, count=1000, spacing=1)
    kept = match_patches(texture, texture + noise, count=1000, spacing=4)
    assert 1 < len(kept) < len(whole)
    assert (whole.cosine.diff() <= 0).all() and (kept.cosine.diff() <= 0).all()
    assert kept.cosine[0] == whole.cosine[0]
    for places in (kept.first, kept.second):
        distance = (places[:, None] - places[None]).abs().amax(dim=2) + 100 * torch.eye(len(places), dtype=torch.long)
        assert distance.min() >= 4


def test_no_more_pairs_than_asked_for(texture):
    assert len(match_patches(texture, texture, count=7)) == 7


def test_patches_outside_of_the_masks_take_no_part(texture):
    masks = (torch.zeros(12, 14, dtype=torch.bool), torch.zeros(12, 14, dtype=torch.bool))
    masks[0][2:6, 3:8], masks[1][4:9, 1:6] = True, True
    matches = match_patches(texture, texture, masks, count=1000, spacing=1)
    assert len(matches)
    assert masks[0][tuple(matches.first.T)].all() and masks[1][tuple(matches.second.T)].all()
    both = masks[0] & masks[1]
    same = (matches.first == matches.second).all(dim=1)
    assert same.sum() == both.sum()  # what both have is found at its place


def test_no_foreground_gives_no_match(texture):
    nothing = torch.zeros(12, 14, dtype=torch.bool)
    assert len(match_patches(texture, texture, (nothing, ~nothing))) == 0


def test_lines_go_from_patch_to_patch_in_colours_of_their_own(tmp_path):
    pictures = tuple(Picture(name, np.full((3, 64, 64), 255, np.uint8)) for name in ("a", "b"))
    places = torch.tensor([[0, 0], [4, 4], [7, 7]])
    matches = Matches(places, places.flip(0), torch.ones(3))
    with Image.open(draw_matches(pictures, ((8, 8), (8, 8)), matches, tmp_path / "m.png")) as image:
        drawn = np.asarray(image.convert("HSV")).astype(int)
    hue, colored = drawn[..., 0], (drawn[..., 1] > 200) & (drawn[..., 2] > 150)
    hues = np.bincount(hue[colored], minlength=256)
    assert (np.sort(hues)[-3:] > 300).all()  # three lines across the page
    red = np.argwhere(colored & ((hue < 12) | (hue > 244)))  # the pair that is highest in the first image
    left, right = red[red[:, 1].argmin()], red[red[:, 1].argmax()]
    assert left[0] < right[0] - 200  # and lowest in the second
