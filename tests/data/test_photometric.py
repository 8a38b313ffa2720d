import colorsys
import math

import numpy as np
import pytest
import torch

from dinov2_hf.config import ColorsConfig
from dinov2_hf.data.batch import SSLBatch
from dinov2_hf.data.photometric import (
    Parameter,
    PhotometricAugmentation,
    _color_batch,
    as_unit,
    draw_view_parameters,
    normalize,
)
from dinov2_hf.data.photometric import apply_parameters as apply_and_normalize

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = np.array([0.299, 0.587, 0.114])


def row(order=(), *, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, grayscale=0, sigma=0.0, solarize=0):
    """A row of parameters that jitters in `order`."""
    slots = [*order, -1, -1, -1, -1][:4]
    return [*slots, brightness, contrast, saturation, hue, grayscale, sigma, solarize]


OFF = row()


def apply_parameters(crops, parameters):
    """Colours without normalisation."""
    return apply_and_normalize(crops, parameters, [0.0] * crops.shape[1], [1.0] * crops.shape[1])


def table(*rows):
    return torch.tensor(rows, dtype=torch.float32)


@pytest.fixture
def crops():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 12, 14), dtype=torch.uint8, generator=generator)


def naive(crop, values):
    """The naive twin: one crop `[3, H, W]`, one operation after the other, in float64."""
    image = crop.numpy().transpose(1, 2, 0) / 255
    luma = lambda image: (image @ LUMA)[:, :, None]  # noqa: E731
    for code in values[:4]:
        if code == BRIGHTNESS:
            image = image * values[Parameter.BRIGHTNESS]
        elif code == CONTRAST:
            factor = values[Parameter.CONTRAST]
            image = factor * image + (1 - factor) * luma(image).mean()
        elif code == SATURATION:
            factor = values[Parameter.SATURATION]
            image = factor * image + (1 - factor) * luma(image)
        elif code == HUE:
            turned = []
            for pixel in image.reshape(-1, 3):
                hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
                turned.append(colorsys.hsv_to_rgb((hue + values[Parameter.HUE]) % 1, saturation, value))
            image = np.array(turned).reshape(image.shape)
        image = image.clip(0, 1)
    if values[Parameter.GRAYSCALE]:
        image = np.repeat(luma(image), 3, axis=2)
    if values[Parameter.BLUR_SIGMA]:
        offsets = np.arange(-4, 5)
        weights = np.exp(-0.5 * (offsets / values[Parameter.BLUR_SIGMA]) ** 2)
        kernel = np.outer(weights, weights) / weights.sum() ** 2
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        height, width = image.shape[:2]
        image = sum(kernel[dy, dx] * padded[dy : dy + height, dx : dx + width] for dy in range(9) for dx in range(9))
    if values[Parameter.SOLARIZE]:
        image = np.where(image >= 127.5 / 255, 1 - image, image)
    return image.transpose(2, 0, 1)


def assert_equals_naive(crops, parameters):
    result = apply_parameters(crops, parameters)
    expected = np.stack([naive(*pair) for pair in zip(crops, parameters.double().numpy(), strict=True)])
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=3e-6)


MIXED = [
    row([3, 1, 0, 2], brightness=1.3, contrast=0.7, saturation=1.2, hue=0.08, sigma=1.5),
    OFF,
    row([0, 1, 2, 3], brightness=0.6, contrast=1.4, saturation=0.8, hue=-0.1, grayscale=1, solarize=1),
    row(sigma=0.3, solarize=1),
    row([2, 0, 3, 1], brightness=1.1, contrast=1.2, saturation=1.2, hue=0.1),
    row(grayscale=1, sigma=2.0),
]


def test_batched_application_equals_one_crop_after_the_other(crops):
    """The first is for devices, the second for CPUs."""
    parameters = table(*MIXED)
    together = _color_batch(as_unit(crops), parameters)
    torch.testing.assert_close(together, apply_parameters(crops, parameters), rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_channels", [1, 5])
def test_other_numbers_of_channels_keep_what_needs_no_colours(num_channels):
    crops = torch.rand(6, num_channels, 12, 14)
    parameters = table(*MIXED)
    result = apply_parameters(crops, parameters)
    torch.testing.assert_close(result, _color_batch(as_unit(crops), parameters), rtol=0, atol=1e-6)
    torch.testing.assert_close(result[1], crops[1])
    expected = crops[0]  # contrast and brightness of the first row, then its blur
    expected = (0.7 * expected + 0.3 * expected.mean()).clamp(0, 1)
    expected = (1.3 * expected).clamp(0, 1)
    weights = torch.exp(-0.5 * (torch.arange(-4.0, 5) / 1.5) ** 2)
    kernel = (weights[:, None] * weights / weights.sum() ** 2).expand(num_channels, 1, 9, 9)
    padded = torch.nn.functional.pad(expected[None], [4] * 4, mode="reflect")
    torch.testing.assert_close(result[:1], torch.nn.functional.conv2d(padded, kernel, groups=num_channels))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_blur_of_images_smaller_than_its_kernel_reflects_again_and_again(size):
    image = torch.rand(1, 3, size, size)
    found = apply_parameters(image, table(row(sigma=2.0)))
    wide = np.pad(image[0].numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 2.0) ** 2)
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    expected = sum(kernel[y, x] * wide[:, y : y + size, x : x + size] for y in range(9) for x in range(9))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_batched_application_equals_the_naive_one(crops):
    assert_equals_naive(crops, table(*MIXED))


def test_drawn_parameters_equal_the_naive_application(crops):
    rng = np.random.default_rng(0)
    config = ColorsConfig()
    rows = np.concatenate([draw_view_parameters(rng, config, 4) for _ in range(5)])
    assert_equals_naive(crops.repeat(5, 1, 1, 1), torch.from_numpy(rows))


@pytest.mark.parametrize(
    "values",
    [
        row([0], brightness=0.5),
        row([0], brightness=1.9),
        row([1], contrast=0.3),
        row([1], contrast=1.8),
        row([2], saturation=0.2),
        row([2], saturation=1.9),
        row([3], hue=0.5),
        row([3], hue=-0.4),
        row(grayscale=1),
        row(sigma=0.1),
        row(sigma=2.0),
        row(solarize=1),
    ],
)
def test_each_operation_equals_its_naive_twin(values, crops):
    assert_equals_naive(crops, table(values).expand(len(crops), -1))


def test_all_off_is_the_identity(crops):
    assert torch.equal(apply_parameters(crops, table(OFF).expand(6, -1)), crops.float() / 255)


def test_neutral_factors_change_nothing(crops):
    result = apply_parameters(crops, table(row([3, 2, 1, 0])).expand(6, -1))
    torch.testing.assert_close(result, crops.float() / 255, rtol=0, atol=1e-6)


def test_given_crops_and_parameters_are_left_as_they_were(crops):
    before, parameters = crops.clone(), table(*MIXED)
    apply_parameters(crops, parameters)
    assert torch.equal(crops, before) and torch.equal(parameters, table(*MIXED))


def test_parameters_of_one_crop_do_not_touch_another(crops):
    parameters = table(OFF).repeat(6, 1)
    expected = apply_parameters(crops, parameters)
    for values in MIXED[:1] + MIXED[2:]:
        changed = parameters.clone()
        changed[3] = table(values)[0]
        difference = (apply_parameters(crops, changed) - expected).abs().amax(dim=(1, 2, 3))
        assert difference[3] > 0.01
        assert difference[[0, 1, 2, 4, 5]].max() == 0


def test_jitter_follows_the_order_in_the_parameters(crops):
    values = dict(brightness=1.8, contrast=0.5, saturation=0.3, hue=0.3)
    orders = [(0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]
    results = []
    for order in orders:
        parameters = table(row(order, **values)).expand(6, -1)
        assert_equals_naive(crops, parameters)
        results.append(apply_parameters(crops, parameters))
    for first in range(len(orders)):
        for second in range(first):
            assert (results[first] - results[second]).abs().max() > 0.05


def test_jitter_in_a_row_equals_its_steps_in_that_order():
    """Brightness before contrast and after it, on two pixels, by hand."""
    pixels = torch.tensor([51, 153], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 8, 2)  # 0.2 and 0.6
    brighter_first = apply_parameters(pixels, table(row([0, 1], brightness=2.0, contrast=0.5)))
    contrast_first = apply_parameters(pixels, table(row([1, 0], brightness=2.0, contrast=0.5)))
    # 2 * (0.2, 0.6) = (0.4, 1.0 clamped), halfway to their mean 0.7
    torch.testing.assert_close(brighter_first[0, 0, 0], torch.tensor([0.55, 0.85]))
    # (0.2, 0.6) halfway to their mean 0.4 is (0.3, 0.5), times 2
    torch.testing.assert_close(contrast_first[0, 0, 0], torch.tensor([0.6, 1.0]))


def test_grey_images_stay_as_they_are_under_hue_and_saturation(crops):
    grey = crops[:, :1].expand(-1, 3, -1, -1)
    for values in (row([3], hue=0.1), row([3], hue=-0.5), row([2], saturation=0.1), row([2, 3], saturation=2, hue=0.3)):
        result = apply_parameters(grey, table(values).expand(6, -1))
        torch.testing.assert_close(result, grey.float() / 255, rtol=0, atol=1e-6)


def test_hue_turned_by_a_third_permutes_the_channels(crops):
    result = apply_parameters(crops, table(row([3], hue=1 / 3)).expand(6, -1))
    torch.testing.assert_close(result, crops[:, [2, 0, 1]].float() / 255, rtol=0, atol=1e-6)


def test_hue_turned_there_and_back_is_the_identity(crops):
    there = apply_parameters(crops, table(row([3], hue=0.5)).expand(6, -1))
    back = apply_parameters((there * 255).round().to(torch.uint8), table(row([3], hue=-0.5)).expand(6, -1))
    assert (back - crops / 255).abs().max() < 1.01 / 255


def test_grayscale_makes_the_channels_equal(crops):
    result = apply_parameters(crops, table(row(grayscale=1)).expand(6, -1))
    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 1], result[:, 2])


def test_blur_keeps_constants_and_lowers_the_contrast_with_sigma(crops):
    constant = torch.full((1, 3, 10, 10), 100, dtype=torch.uint8)
    result = apply_parameters(constant, table(row(sigma=1.5)))
    torch.testing.assert_close(result, constant / 255, rtol=0, atol=1e-6)
    deviations = [apply_parameters(crops[:1], table(row(sigma=sigma))).std().item() for sigma in (0, 0.5, 1, 2)]
    assert deviations == sorted(deviations, reverse=True)


def test_solarisation_inverts_128_and_more():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    result = (apply_parameters(values, table(row(solarize=1))) * 255).round()
    expected = torch.cat([torch.arange(128), torch.arange(127, -1, -1)]).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(result, expected.float())


def test_values_stay_in_range(crops):
    extreme = row([0, 1, 2, 3], brightness=2.0, contrast=2.0, saturation=2.0, hue=0.5, sigma=2.0, solarize=1)
    result = apply_parameters(crops, table(extreme).expand(6, -1))
    assert result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1


# ---- what is drawn


def assert_rate(hits, probability):
    """The share of hits is within five deviations of the binomial distribution."""
    hits = np.asarray(hits)
    bound = 5 * math.sqrt(probability * (1 - probability) / len(hits))
    assert abs(hits.mean() - probability) <= bound


def assert_uniform(values, low, high):
    values = np.sort((np.asarray(values, dtype=float) - low) / (high - low))
    assert -1e-6 <= values[0] and values[-1] <= 1 + 1e-6
    assert np.abs(values - (np.arange(len(values)) + 0.5) / len(values)).max() < 1.95 / math.sqrt(len(values))


@pytest.fixture(scope="module")
def drawn():
    config = ColorsConfig(
        jitter_probability=0.7,
        brightness=0.4,
        contrast=0.3,
        saturation=0.2,
        hue=0.1,
        grayscale_probability=0.15,
        blur_sigma=[0.5, 2.0],
        blur_probability=[0.0, 0.6, 0.0],
        solarize_probability=0.25,
    )
    rng = np.random.default_rng(0)
    return np.stack([draw_view_parameters(rng, config, 0)[1] for _ in range(10_000)])


def test_operations_are_as_frequent_as_configured(drawn):
    assert_rate(drawn[:, Parameter.FIRST] >= 0, 0.7)
    assert_rate(drawn[:, Parameter.GRAYSCALE] > 0, 0.15)
    assert_rate(drawn[:, Parameter.BLUR_SIGMA] > 0, 0.6)
    assert_rate(drawn[:, Parameter.SOLARIZE] > 0, 0.25)
    assert set(np.unique(drawn[:, [Parameter.GRAYSCALE, Parameter.SOLARIZE]])) == {0, 1}


def test_operations_are_drawn_independently(drawn):
    columns = [Parameter.FIRST, Parameter.GRAYSCALE, Parameter.BLUR_SIGMA, Parameter.SOLARIZE]
    hits = np.stack([drawn[:, columns[0]] >= 0, *(drawn[:, column] > 0 for column in columns[1:])])
    assert np.abs(np.corrcoef(hits)[~np.eye(4, dtype=bool)]).max() < 4 / math.sqrt(len(drawn))


def test_jitter_is_whole_or_absent_and_every_order_equally_likely(drawn):
    slots = drawn[:, :4].astype(int)
    jittered = slots[slots[:, 0] >= 0]
    assert (slots[slots[:, 0] < 0] == -1).all()
    assert (np.sort(jittered, axis=1) == np.arange(4)).all()
    _, counts = np.unique(jittered, axis=0, return_counts=True)
    assert len(counts) == 24
    expected = len(jittered) / 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # one in a thousand for 23 degrees of freedom


def test_strengths_are_uniform_in_their_ranges(drawn):
    assert_uniform(drawn[:, Parameter.BRIGHTNESS], 0.6, 1.4)
    assert_uniform(drawn[:, Parameter.CONTRAST], 0.7, 1.3)
    assert_uniform(drawn[:, Parameter.SATURATION], 0.8, 1.2)
    assert_uniform(drawn[:, Parameter.HUE], -0.1, 0.1)
    sigma = drawn[:, Parameter.BLUR_SIGMA]
    assert_uniform(sigma[sigma > 0], 0.5, 2.0)


def test_views_are_blurred_and_solarised_by_their_own_probabilities():
    config = ColorsConfig(blur_probability=[0.1, 0.9, 0.5], solarize_probability=0.3)
    rng = np.random.default_rng(0)
    rows = np.stack([draw_view_parameters(rng, config, 3) for _ in range(2000)])
    assert rows.shape == (2000, 5, len(Parameter))
    for view, probability in enumerate([0.1, 0.9, 0.5, 0.5, 0.5]):
        assert_rate(rows[:, view, Parameter.BLUR_SIGMA] > 0, probability)
    assert_rate(rows[:, 1, Parameter.SOLARIZE], 0.3)
    assert rows[:, [0, 2, 3, 4], Parameter.SOLARIZE].max() == 0


def test_defaults_are_those_of_the_published_code():
    """The first global view is never blurred there; the paper says always."""
    rng = np.random.default_rng(0)
    rows = np.stack([draw_view_parameters(rng, ColorsConfig(), 1) for _ in range(2000)])
    assert rows[:, 0, Parameter.BLUR_SIGMA].max() == 0
    assert_rate(rows[:, 1, Parameter.BLUR_SIGMA] > 0, 0.9)
    assert_rate(rows[:, 2, Parameter.BLUR_SIGMA] > 0, 0.5)
    assert_rate((rows[:, :, Parameter.FIRST] >= 0).ravel(), 0.8)
    assert_rate(rows[:, :, Parameter.GRAYSCALE].ravel(), 0.2)


def test_probabilities_of_zero_and_one_are_certain():
    rng = np.random.default_rng(0)
    never, always = (
        ColorsConfig(jitter_probability=p, grayscale_probability=p, blur_probability=[p, p, p], solarize_probability=p)
        for p in (0, 1)
    )
    for _ in range(200):
        values = draw_view_parameters(rng, never, 2)
        assert (values[:, :4] == -1).all() and (values[:, [8, 9, 10]] == 0).all()
        values = draw_view_parameters(rng, always, 2)
        assert (values[:, :4] >= 0).all() and (values[:, [8, 9]] > 0).all() and values[1, 10] == 1


# ---- what the training step calls


def batch_of(crops, parameters, num_local):
    return SSLBatch(
        global_crops=crops[:2],
        local_crops=crops[2 : 2 + num_local, :, :10, :10],
        masks=torch.zeros(2, 4, dtype=torch.bool),
        mask_indices=torch.zeros(0, dtype=torch.long),
        mask_weights=torch.zeros(0),
        global_colors=parameters[:2],
        local_colors=parameters[2 : 2 + num_local],
        broken=["a"],
    )


@pytest.mark.parametrize("num_local", [0, 4])
def test_augmentation_colours_and_normalises_every_crop(num_local, crops):
    config = ColorsConfig(mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0])
    batch = batch_of(crops, table(*MIXED), num_local)
    result = PhotometricAugmentation(config)(batch)
    for name in ("global", "local"):
        colored = apply_parameters(getattr(batch, f"{name}_crops"), getattr(batch, f"{name}_colors"))
        values = getattr(result, f"{name}_crops")
        assert values.shape == colored.shape and values.dtype == torch.float32
        for channel in range(3):
            expected = (colored[:, channel] - config.mean[channel]) / config.std[channel]
            torch.testing.assert_close(values[:, channel], expected, rtol=1e-6, atol=1e-6)
    assert result.global_colors is None and result.local_colors is None
    assert result.broken == ["a"] and torch.equal(result.masks, batch.masks)
    assert batch.global_crops.dtype == torch.uint8  # the batch that was given stays as it was


def test_normalised_mean_is_zero_and_one_deviation_is_one():
    mean, std = [0.2, 0.4, 0.6], [0.1, 0.2, 0.3]
    images = torch.tensor(mean).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    torch.testing.assert_close(normalize(images, mean, std), torch.zeros(1, 3, 2, 2), rtol=0, atol=1e-6)
    images += torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(normalize(images, mean, std), torch.ones(1, 3, 2, 2), rtol=0, atol=1e-6)
