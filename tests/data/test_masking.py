import numpy as np
import pytest
import torch

from dinov2_hf.data.masking import draw_batch_masks, draw_block_mask
from dinov2_hf.ssl.batch import SSLBatch

GRIDS = [(16, 16), (7, 7), (4, 4), (6, 14), (14, 6), (2, 9), (3, 2), (1, 8), (1, 1)]


@pytest.mark.parametrize("grid", GRIDS)
def test_never_more_patches_are_masked_than_asked(grid):
    rng = np.random.default_rng(0)
    for asked in range(grid[0] * grid[1] + 1):
        for _ in range(10):
            mask = draw_block_mask(rng, grid, asked)
            assert mask.shape == grid and mask.dtype == bool
            assert mask.sum() <= asked


@pytest.mark.parametrize("grid", [(16, 16), (7, 7), (6, 14), (14, 6)])
def test_masks_of_up_to_half_the_grid_miss_a_patch_at_most_rarely(grid):
    rng = np.random.default_rng(0)
    patches = grid[0] * grid[1]
    asked = rng.integers(0, patches // 2 + 1, size=500)
    missing = np.array([number - draw_block_mask(rng, grid, number).sum() for number in asked])
    assert missing.max() <= 1
    assert (missing > 0).mean() < 0.02


@pytest.mark.parametrize("grid", [(16, 16), (6, 14)])
def test_large_masks_are_nearly_filled(grid):
    rng = np.random.default_rng(0)
    asked = int(0.8 * grid[0] * grid[1])
    covered = [draw_block_mask(rng, grid, asked).sum() for _ in range(200)]
    assert np.mean(covered) > 0.95 * asked


def test_masks_are_made_of_blocks():
    rng = np.random.default_rng(0)
    neighbours = []
    for _ in range(100):
        mask = draw_block_mask(rng, (16, 16), 77)
        neighbours.append((mask[1:] & mask[:-1]).sum() / mask.sum())
    # 77 of 256 patches drawn one by one would have 0.28 such neighbours each
    assert np.mean(neighbours) > 0.6


def test_every_patch_is_masked_by_some_mask():
    rng = np.random.default_rng(0)
    share = np.mean([draw_block_mask(rng, (8, 8), 16) for _ in range(2000)], axis=0)
    assert share.min() > 0.05 and share.max() < 0.5
    np.testing.assert_allclose(share, share[::-1, ::-1], atol=0.06)  # no side is preferred
    np.testing.assert_allclose(share, share.T, atol=0.06)


@pytest.mark.parametrize("grid", [(1, 1), (1, 8), (8, 1)])
def test_grid_too_small_for_any_block_stays_unmasked(grid):
    rng = np.random.default_rng(0)
    for asked in range(grid[0] * grid[1] + 1):
        assert not draw_block_mask(rng, grid, asked).any()
    masks = draw_batch_masks(rng, 6, grid, 0.5, (0.1, 0.5))
    assert masks.shape == (6, grid[0] * grid[1]) and not masks.any()


@pytest.mark.parametrize(
    "crops, probability, masked", [(8, 0.5, 4), (7, 0.5, 3), (10, 0.25, 2), (3, 1.0, 3), (2, 0.4, 0)]
)
def test_masked_crops_are_exactly_their_share_rounded_down(crops, probability, masked):
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = draw_batch_masks(rng, crops, (8, 8), probability, (0.1, 0.5))
        assert masks.shape == (crops, 64)
        assert masks.any(axis=1).sum() == masked


@pytest.mark.parametrize("grid", [(16, 16), (6, 14)])
def test_ratios_cover_the_range_one_in_each_bin(grid):
    rng = np.random.default_rng(0)
    patches = grid[0] * grid[1]
    for low, high in ((0.1, 0.5), (0.3, 0.4), (0.2, 0.2)):
        masks = draw_batch_masks(rng, 16, grid, 0.5, (low, high))
        counts = np.sort(masks.sum(axis=1))[-8:]
        edges = np.linspace(low, high, 9)
        for count, smallest, largest in zip(counts, edges, edges[1:], strict=False):
            assert int(smallest * patches) - 1 <= count <= largest * patches


def test_rectangular_grid_is_flattened_by_rows():
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    masks = draw_batch_masks(rng, 1, (3, 11), 1.0, (0.4, 0.4))
    again.permutation(1), again.uniform(0.4, 0.4)
    np.testing.assert_array_equal(masks[0].reshape(3, 11), draw_block_mask(again, (3, 11), int(33 * 0.4)))


def test_probability_of_zero_masks_nothing():
    masks = draw_batch_masks(np.random.default_rng(0), 8, (16, 16), 0.0, (0.1, 0.5))
    assert masks.shape == (8, 256) and masks.dtype == bool and not masks.any()


def test_ratio_of_zero_masks_nothing():
    assert not draw_batch_masks(np.random.default_rng(0), 8, (16, 16), 1.0, (0.0, 0.0)).any()


def test_every_crop_is_masked_as_often_as_another():
    rng = np.random.default_rng(0)
    share = np.mean([draw_batch_masks(rng, 6, (4, 4), 0.5, (0.3, 0.5)).any(axis=1) for _ in range(1000)], axis=0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(1000)


def test_masks_depend_on_the_generator_alone():
    draw = lambda seed: draw_batch_masks(np.random.default_rng(seed), 8, (8, 8), 0.5, (0.1, 0.5))  # noqa: E731
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


def test_flat_indices_and_weights_describe_the_masks():
    masks = torch.from_numpy(draw_batch_masks(np.random.default_rng(0), 6, (8, 8), 0.5, (0.1, 0.5)))
    indices, weights = SSLBatch.flatten_masks(masks)
    rebuilt = torch.zeros_like(masks.flatten())
    rebuilt[indices] = True
    assert torch.equal(rebuilt.view_as(masks), masks)
    totals = torch.zeros(6).scatter_add_(0, indices // 64, weights)
    torch.testing.assert_close(
        totals, masks.any(dim=1).float()
    )  # every masked crop weighs the same, the others nothing


def test_no_mask_at_all_gives_no_indices():
    indices, weights = SSLBatch.flatten_masks(torch.zeros(4, 9, dtype=torch.bool))
    assert indices.shape == weights.shape == (0,)
    assert indices.dtype == torch.int64
