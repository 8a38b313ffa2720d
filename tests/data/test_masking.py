import numpy as np
import pytest
import torch

from dinov2_hf.config import Masks
from dinov2_hf.data import TrainingBatches, open_training_source
from dinov2_hf.data.batch import SSLBatch
from dinov2_hf.data.masking import draw_batch_masks, draw_block_mask, draw_random_mask

GRIDS = [(16, 16), (7, 7), (4, 4), (6, 14), (14, 6), (2, 9), (3, 2), (1, 8), (8, 1), (1, 2), (1, 1)]


def published_mask(rng, grid, asked, smallest=4, largest=0.5):
    """The naive twin: the published rule, which stops where ten blocks in a row do not fit; patch by patch."""
    rows, columns = grid
    masked = set()
    while len(masked) < asked:
        room = min(asked - len(masked), rows * columns * largest)
        for size, shape, vertical, horizontal in rng.random((10, 4)):
            area, ratio = smallest + size * (room - smallest), 0.3 ** (1 - 2 * shape)
            height, width = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if height < rows and width < columns:
                top, left = int(vertical * (rows - height + 1)), int(horizontal * (columns - width + 1))
                block = {(top + row, left + column) for row in range(height) for column in range(width)}
                if 0 < len(block - masked) <= room:
                    masked |= block
                    break
        else:
            break
    mask = np.zeros(grid, dtype=bool)
    for patch in masked:
        mask[patch] = True
    return mask


def grown(mask):
    """The patches of `mask` and those above, below and beside them."""
    wide = np.pad(mask, 1)
    return mask | wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2]


def outline(masks):
    """How many pairs of neighbours differ in each of `masks`."""
    return sum(np.count_nonzero(np.diff(masks, axis=axis), axis=(1, 2)) for axis in (1, 2))


def pairs(grid, count, shares=(0.1, 0.5)):
    """Masks and their naive twins of the same random numbers, `[count, rows, columns]` each, and what was asked for."""
    asked = (np.random.default_rng(0).uniform(*shares, count) * grid[0] * grid[1]).astype(int)
    masks, twins = (
        np.stack([draw(np.random.default_rng(seed), grid, number) for seed, number in enumerate(asked.tolist())])
        for draw in (draw_block_mask, published_mask)
    )
    return masks, twins, asked


@pytest.mark.parametrize("grid", GRIDS)
def test_exactly_as_many_patches_are_masked_as_asked(grid):
    rng = np.random.default_rng(0)
    for asked in range(grid[0] * grid[1] + 1):
        for _ in range(5):
            mask = draw_block_mask(rng, grid, asked)
            assert mask.shape == grid and mask.dtype == bool
            assert mask.sum() == asked


@pytest.mark.parametrize("grid", [(16, 16), (7, 7), (6, 14), (14, 6), (2, 9), (1, 8)])
def test_mask_is_the_published_one_and_what_it_lacks_adjoins_it(grid):
    masks, twins, asked = pairs(grid, 300, (0.1, 0.9))
    missing = asked - twins.sum(axis=(1, 2))
    np.testing.assert_array_equal(masks[missing == 0], twins[missing == 0])
    assert (masks | ~twins).all()
    for mask, reached in zip(masks[missing > 0], twins[missing > 0]):
        if not reached.any():  # not one block: it grows from any patch
            reached[tuple(np.argwhere(mask)[0])] = True
        for _ in range(mask.size):
            reached = grown(reached) & mask
        np.testing.assert_array_equal(reached, mask)


@pytest.mark.parametrize("grid", [(16, 16), (7, 7), (6, 14)])
def test_usual_masks_have_a_tenth_of_a_patch_more_than_published_ones_and_their_outline(grid):
    masks, twins, _ = pairs(grid, 1000)
    added = (masks & ~twins).sum(axis=(1, 2))
    assert 0.02 < (added > 0).mean() < 0.12 and added.mean() < 0.12
    assert outline(masks).mean() == pytest.approx(outline(twins).mean(), rel=0.01)


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


@pytest.mark.parametrize("grid", [(1, 8), (8, 1), (1, 40)])
def test_mask_of_a_single_row_is_one_run(grid):
    rng = np.random.default_rng(0)
    for asked in range(1, grid[0] * grid[1]):
        for _ in range(20):
            mask = draw_block_mask(rng, grid, asked).ravel()
            assert np.count_nonzero(mask[1:] != mask[:-1]) <= 2 and mask.sum() == asked


@pytest.mark.parametrize("grid", [(16, 16), (3, 2), (1, 8), (1, 1)])
def test_crop_is_never_masked_as_a_whole_unless_asked(grid):
    rng = np.random.default_rng(0)
    assert not draw_batch_masks(rng, 50, grid, Masks(1.0, (0.9, 0.999))).all(axis=1).any()
    assert draw_batch_masks(rng, 4, grid, Masks(1.0, (1.0, 1.0))).all()


@pytest.mark.parametrize(
    "crops, probability, masked", [(8, 0.5, 4), (7, 0.5, 3), (10, 0.25, 2), (3, 1.0, 3), (2, 0.4, 0)]
)
def test_masked_crops_are_exactly_their_share_rounded_down(crops, probability, masked):
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = draw_batch_masks(rng, crops, (8, 8), Masks(probability, (0.1, 0.5)))
        assert masks.shape == (crops, 64)
        assert masks.any(axis=1).sum() == masked


@pytest.mark.parametrize("grid", [(16, 16), (6, 14), (1, 20)])
@pytest.mark.parametrize("low, high", [(0.1, 0.5), (0.3, 0.4), (0.2, 0.2), (0.0, 1.0)])
def test_ratios_cover_the_range_one_in_each_bin(low, high, grid):
    rng = np.random.default_rng(0)
    patches = grid[0] * grid[1]
    masks = draw_batch_masks(rng, 16, grid, Masks(0.5, (low, high)))
    counts = np.sort(masks.sum(axis=1))[-8:]
    edges = np.linspace(low, high, 9)
    for count, smallest, largest in zip(counts, edges, edges[1:]):
        assert int(smallest * patches) <= count <= largest * patches


def test_masks_are_those_of_their_ratios_on_a_rectangular_grid():
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    masks = draw_batch_masks(rng, 7, (3, 11), Masks(0.6, (0.1, 0.5)))
    for crop, smallest in zip(again.permutation(7)[:4], (0.1, 0.2, 0.3, 0.4)):
        asked = int(33 * again.uniform(smallest, smallest + 0.1))
        np.testing.assert_array_equal(masks[crop].reshape(3, 11), draw_block_mask(again, (3, 11), asked))


def test_probability_of_zero_masks_nothing():
    masks = draw_batch_masks(np.random.default_rng(0), 8, (16, 16), Masks(0.0, (0.1, 0.5)))
    assert masks.shape == (8, 256) and masks.dtype == bool and not masks.any()


def test_ratio_of_zero_masks_nothing():
    assert not draw_batch_masks(np.random.default_rng(0), 8, (16, 16), Masks(1.0, (0.0, 0.0))).any()


def test_every_crop_is_masked_as_often_as_another():
    rng = np.random.default_rng(0)
    share = np.mean([draw_batch_masks(rng, 6, (4, 4), Masks(0.5, (0.3, 0.5))).any(axis=1) for _ in range(1000)], axis=0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(1000)


def test_masks_depend_on_the_generator_alone():
    draw = lambda seed: draw_batch_masks(np.random.default_rng(seed), 8, (8, 8), Masks(0.5, (0.1, 0.5)))  # noqa: E731
    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


def test_flat_indices_and_weights_describe_the_masks():
    masks = torch.from_numpy(draw_batch_masks(np.random.default_rng(0), 6, (8, 8), Masks(0.5, (0.1, 0.5))))
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


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (6, 14), (4, 4)])
def test_masks_of_single_crops_are_those_of_the_published_code_of_ibot(grid):
    """A crop is masked or not, then gets a ratio, then blocks of at least a ninth of a square grid, to at most it."""
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    masks = draw_batch_masks(rng, 200, grid, Masks(0.5, (0.1, 0.5), each_crop=True)).reshape(200, *grid)
    for mask in masks:
        if again.random() < 0.5:
            asked = grid[0] * grid[1] * again.uniform(0.1, 0.5)
            np.testing.assert_array_equal(mask, published_mask(again, grid, asked, (min(grid) // 3) ** 2, 1.0))
            assert mask.sum() <= asked
        else:
            assert not mask.any()


def test_share_of_masked_crops_and_of_their_patches_is_that_of_ibot():
    """Published: the ratio is 0 or from 0.1 to 0.5, each for half of the crops; blocks leave some of it out."""
    masks = draw_batch_masks(np.random.default_rng(0), 3000, (14, 14), Masks(0.5, (0.1, 0.5), each_crop=True))
    shares = masks.mean(axis=1)
    assert (shares > 0).mean() == pytest.approx(0.5, abs=0.03)
    assert 0.26 < shares[shares > 0].mean() < 0.3 and shares.max() <= 0.5


@pytest.mark.parametrize("each_crop", [False, True])
def test_random_masks_are_single_patches_of_exactly_their_ratio(each_crop):
    config = Masks(1.0, (0.25, 0.25), "random", each_crop=each_crop)
    masks = draw_batch_masks(np.random.default_rng(0), 1000, (8, 8), config)
    assert (masks.sum(axis=1) == 16).all()
    # each patch as often as any other, and independent of its neighbour
    assert np.abs(masks.mean(axis=0) - 0.25).max() < 5 * (0.25 * 0.75 / 1000) ** 0.5
    grid = masks.reshape(-1, 8, 8)
    assert (grid[:, 1:] & grid[:, :-1]).mean() == pytest.approx(0.25 * 15 / 63, abs=0.01)
    assert not draw_random_mask(np.random.default_rng(0), (8, 8), 0).any()


def test_nothing_is_masked_before_the_start_epoch(tiny_config):
    """Epochs of two updates, each of two batches: the first batch with masks is number 4."""
    config = tiny_config("ibot.mask_start_epoch=1", "train.gradient_accumulation_steps=2")
    always = tiny_config("train.gradient_accumulation_steps=2")
    masks = [
        [TrainingBatches(open_training_source(each.data, 0), each, 0, 6).batch(number).masks for number in range(6)]
        for each in (config, always)
    ]
    for number, (late, early) in enumerate(zip(*masks)):
        assert early.any()
        assert torch.equal(late, early) if number >= 4 else not late.any()
