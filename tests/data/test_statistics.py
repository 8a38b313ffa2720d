"""Crops, flips and masks against the laws that follow from their rules.

Samples are drawn from fixed seeds. A bound is four standard errors of what is measured, or the Kolmogorov-Smirnov
distance that is as improbable.
"""

import math

import numpy as np
import pytest

from dinov2_hf.config import Masks, load_config
from dinov2_hf.data.crops import draw_box
from dinov2_hf.data.loader import TrainingBatches
from dinov2_hf.data.masking import draw_batch_masks, draw_block_mask
from dinov2_hf.data.sources.training import Sample

SIGMAS = 4
LOCAL, GLOBAL = (0.05, 0.32), (0.32, 1.0)
LOG_RATIO = math.log(4 / 3)
# width, height, area shares: every box fits, some do not, most do not; rounding to a pixel is too small to be seen
CROPS = [(4000, 4000, LOCAL), (4000, 4000, GLOBAL), (3000, 4000, GLOBAL), (6000, 2000, GLOBAL)]
BOXES = 8000
GRID, MASK_RATIO, SLOTS, BATCHES = (16, 16), (0.1, 0.5), 32, 250
PATCHES, MASKED = GRID[0] * GRID[1], SLOTS // 2


def assert_mean(sample, mean, deviation=None):
    """The mean of `sample` over its first axis is `mean`, given the deviation of one of it; measured by default."""
    error = (np.std(sample, axis=0) if deviation is None else deviation) / math.sqrt(len(sample))
    assert (np.abs(np.mean(sample, axis=0) - mean) <= SIGMAS * error + 1e-12).all()


def assert_law(sample, values, weights):
    """`sample` has mean, variance and distribution of the law that has `weights` at the midpoints `values`."""
    weights = weights / weights.sum()
    mean = (weights * values).sum()
    variance = (weights * (values - mean) ** 2).sum()
    assert_mean(sample, mean, math.sqrt(variance))
    assert_mean((sample - mean) ** 2, variance, math.sqrt((weights * (values - mean) ** 4).sum() - variance**2))
    edges = np.append(values - (values[1] - values[0]) / 2, values[-1] + (values[1] - values[0]) / 2)
    assert_distance(np.interp(sample, edges, np.append(0, weights.cumsum())))


def assert_distance(levels):
    """`levels`, a sample carried through its cumulative law, is uniform from 0 to 1."""
    levels, steps = np.sort(levels), np.arange(len(levels) + 1) / len(levels)
    distance = max(np.abs(levels - steps[1:]).max(), np.abs(levels - steps[:-1]).max())
    assert distance < math.sqrt(math.log(2 / math.erfc(SIGMAS / math.sqrt(2))) / 2 / len(levels))


def midpoints(low, high, count=1500):
    return low + (high - low) * (np.arange(count) + 0.5) / count


def fitting(width, height, scale):
    """Area shares, logarithms of aspect ratios, and which pairs of them fit into an image."""
    share, logarithm = midpoints(*scale), midpoints(-LOG_RATIO, LOG_RATIO)
    ratio = np.exp(logarithm)
    return share, logarithm, (share[:, None] * ratio <= width / height) & (share[:, None] / ratio <= height / width)


@pytest.fixture(scope="module", params=CROPS, ids=str)
def boxes(request):
    """An image's width, height and area shares; boxes `[n, 4]` drawn in it; which of them are not the fallback."""
    width, height, scale = request.param
    rng = np.random.default_rng(0)
    boxes = np.array([draw_box(rng, width, height, scale) for _ in range(BOXES)])
    wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - wide) // 2, (height - high) // 2
    drawn = (boxes != (left, top, left + wide, top + high)).any(axis=1)
    return width, height, scale, boxes, drawn


def test_area_share_is_uniform_among_the_boxes_that_fit(boxes):
    width, height, scale, boxes, drawn = boxes
    share, _, fits = fitting(width, height, scale)
    left, top, right, bottom = boxes[drawn].T
    assert_law((right - left) * (bottom - top) / (width * height), share, fits.sum(axis=1))


def test_aspect_ratio_is_uniform_in_its_logarithm_among_the_boxes_that_fit(boxes):
    width, height, scale, boxes, drawn = boxes
    _, logarithm, fits = fitting(width, height, scale)
    left, top, right, bottom = boxes[drawn].T
    assert_law(np.log((right - left) / (bottom - top)), logarithm, fits.sum(axis=0))


def test_fallback_is_as_frequent_as_ten_boxes_that_do_not_fit(boxes):
    width, height, scale, boxes, drawn = boxes
    expected = (1 - fitting(width, height, scale)[2].mean()) ** 10
    assert_mean(~drawn, expected, math.sqrt(expected * (1 - expected)))


def test_some_shape_of_the_tests_above_needs_the_fallback_and_some_does_not():
    shares = [(1 - fitting(*crop)[2].mean()) ** 10 for crop in CROPS]
    assert min(shares) == 0 and max(shares) > 0.2


@pytest.mark.parametrize("width, height, scale", [(4000, 4000, LOCAL), (12, 9, LOCAL), (9, 12, GLOBAL), (5, 5, LOCAL)])
def test_position_is_uniform_among_those_that_fit(width, height, scale):
    rng, jitter = np.random.default_rng(0), np.random.default_rng(1)
    left, top, right, bottom = np.array([draw_box(rng, width, height, scale) for _ in range(BOXES)]).T
    # whole pixels become a continuous law: uniform within each
    levels = np.stack([left / (width - right + left + 1), top / (height - bottom + top + 1)])
    levels += jitter.random((2, BOXES)) / np.stack([width - right + left + 1, height - bottom + top + 1])
    for level in levels:
        assert_distance(level)
    assert_mean(12 * (levels[0] - 0.5) * (levels[1] - 0.5), 0, 1)  # each direction for itself


class Gradient:
    """A source of one image that gets brighter to the right, again and again."""

    def __init__(self, encode):
        pixels = np.broadcast_to(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (30, 40, 3))
        self.data = encode(pixels.copy())

    def read(self, number):
        return Sample(self.data, "gradient", 0, number)


@pytest.fixture(scope="module")
def batches(encode):
    """Batches as the data workers make them, of the default flips, shares and ratios."""
    overrides = ["model.patch_size=2", "crops.global_size=16", "crops.local_size=8", "crops.num_local=2"]
    config = load_config(None, ["data.train.path=gradient", "train.batch_size=16", *overrides])
    assert (config.crops.flip_probability, config.ibot.mask_probability) == (0.5, 0.5)
    assert config.ibot.mask_ratio == list(MASK_RATIO)
    batches = TrainingBatches(Gradient(encode), config, 0, 60)
    return [batches.batch(number) for number in range(len(batches))]


def test_half_of_the_crops_of_every_view_are_flipped_in_batches(batches):
    flips = []
    for batch in batches:
        views = [*batch.global_crops.view(2, 16, *batch.global_crops.shape[1:])]
        views += [*batch.local_crops.view(2, 16, *batch.local_crops.shape[1:])]
        flips.append([(view[:, 0, 0, 0] > view[:, 0, 0, -1]).numpy() for view in views])
    flips = np.concatenate(flips, axis=1).T
    assert flips.shape == (60 * 16, 4)
    assert_mean(flips, 0.5, 0.5)
    assert_mean(flips.ravel(), 0.5, 0.5)
    for first, second in ((0, 1), (0, 2), (2, 3)):  # each view for itself
        assert_mean(flips[:, first] ^ flips[:, second], 0.5, 0.5)


def test_half_of_the_global_crops_of_batches_are_masked_three_tenths_of_each_on_average(batches):
    masks = np.stack([batch.masks.numpy() for batch in batches])
    assert masks.shape == (60, 32, 64)
    assert (masks.any(axis=2).sum(axis=1) == 16).all()
    # 0.3 of a masked crop, less half a patch that is rounded off
    assert counts_of(*MASK_RATIO, 64).mean() == pytest.approx(64 * 0.3 - 0.5, abs=0.01)
    assert_mean(masks.sum(axis=(1, 2)), 16 * counts_of(*MASK_RATIO, 64).mean())
    assert_mean(masks.any(axis=2), 0.5, 0.5)


@pytest.fixture(scope="module")
def masks():
    """Masks `[batches, slots, rows, columns]`."""
    rng = np.random.default_rng(0)
    return np.stack([draw_batch_masks(rng, SLOTS, GRID, Masks(0.5, MASK_RATIO)) for _ in range(BATCHES)]).reshape(
        BATCHES, SLOTS, *GRID
    )


def counts_of(low, high, patches=PATCHES):
    """The law of the number of masked patches whose ratio is uniform from `low` to `high`: equally likely values."""
    return (midpoints(low, high, 20_000) * patches).astype(int)


def test_number_of_masked_patches_is_uniform_in_each_bin_and_the_bins_cover_the_range(masks):
    counts = np.sort(masks.sum(axis=(2, 3)), axis=1)
    assert (counts[:, : SLOTS - MASKED] == 0).all()
    edges = np.linspace(*MASK_RATIO, MASKED + 1)
    for numbers, low, high in zip(counts[:, SLOTS - MASKED :].T, edges, edges[1:]):
        law = counts_of(low, high)
        assert set(numbers) == set(law)
        assert_mean(numbers, law.mean(), law.std())
        assert_mean((numbers - law.mean()) ** 2, law.var(), ((law - law.mean()) ** 2).std())


def test_masked_share_of_a_batch_varies_less_than_that_of_independent_ratios(masks):
    edges = np.linspace(*MASK_RATIO, MASKED + 1)
    laws = [counts_of(low, high) for low, high in zip(edges, edges[1:])]
    total = masks.sum(axis=(1, 2, 3))
    deviation = math.sqrt(sum(law.var() for law in laws))
    assert_mean(total, sum(law.mean() for law in laws), deviation)
    assert_mean((total - total.mean()) ** 2, deviation**2, deviation**2 * math.sqrt(2))  # a sum of many is normal
    assert deviation < 0.1 * math.sqrt(MASKED * counts_of(*MASK_RATIO).var())


def test_every_slot_of_a_batch_gets_masks_of_every_size(masks):
    counts = masks.sum(axis=(2, 3))
    law = np.append(counts_of(*MASK_RATIO), np.zeros(20_000))
    assert_mean(counts, law.mean(), law.std())
    assert_mean(counts**2, (law**2).mean(), (law**2).std())


def test_views_of_an_image_are_masked_as_any_two_crops(masks):
    both = masks.any(axis=(2, 3)).reshape(BATCHES, 2, SLOTS // 2).all(axis=1)
    assert_mean(both.sum(axis=1), SLOTS / 2 * MASKED / SLOTS * (MASKED - 1) / (SLOTS - 1))


def test_patches_are_masked_as_often_as_their_mirror_images(masks):
    masks = masks.reshape(-1, *GRID).astype(int)
    for mirrored in (masks[:, ::-1], masks[:, :, ::-1], masks.transpose(0, 2, 1)):
        assert_mean(masks - mirrored, 0)


def test_patches_are_masked_the_more_often_the_nearer_to_the_centre(masks):
    masks = masks.reshape(-1, *GRID)
    for rows in (masks.mean(axis=2), masks.mean(axis=1)):
        folded = (rows + rows[:, ::-1])[:, : GRID[0] // 2]
        bands = folded.reshape(len(folded), 4, -1).mean(axis=2)
        rise = np.diff(bands, axis=1)
        assert (rise.mean(axis=0) > SIGMAS * rise.std(axis=0) / math.sqrt(len(rise))).all()


def smallest_masks(grid, count):
    """Masks of four patches. All but the last patch of them are the first block: 2 x 2, or 3 or 4 in a line."""
    rng = np.random.default_rng(0)
    masks = np.stack([draw_block_mask(rng, grid, 4) for _ in range(count)])
    lying = (masks[:, :, 2:] & masks[:, :, 1:-1] & masks[:, :, :-2]).any(axis=(1, 2))
    standing = (masks[:, 2:] & masks[:, 1:-1] & masks[:, :-2]).any(axis=(1, 2))
    return masks, lying, standing


def test_aspect_ratio_of_blocks_is_uniform_in_its_logarithm():
    _, lying, standing = smallest_masks((24, 24), 4000)
    assert not (lying & standing).any()
    ratio = np.exp(midpoints(math.log(0.3), math.log(1 / 0.3), 100_000))
    height, width = np.round(np.sqrt(4 * ratio)), np.round(np.sqrt(4 / ratio))
    fits = height * width <= 4
    for observed, shape in ((lying, width > height), (standing, height > width), (~lying & ~standing, width == height)):
        expected = shape[fits].mean()
        assert_mean(observed, expected, math.sqrt(expected * (1 - expected)))


@pytest.mark.parametrize("rows, columns", [(16, 16), (6, 14)])
def test_position_of_blocks_is_uniform_among_those_that_fit(rows, columns):
    masks, lying, standing = smallest_masks((rows, columns), 4000)
    squares = masks[~lying & ~standing]
    jitter = np.random.default_rng(1)
    for first, room in (
        (squares.any(axis=2).argmax(axis=1), rows - 1),
        (squares.any(axis=1).argmax(axis=1), columns - 1),
    ):
        assert_distance((first + jitter.random(len(first))) / room)
