import io

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dinov2_hf.config.evaluations.robustness import CORRUPTIONS, EXTRA_CORRUPTIONS
from dinov2_hf.evaluation.corruptions import corrupt
from dinov2_hf.evaluation.corruptions.filters import clouds, correlate, motion_blur, resize

ALL = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)


def photograph(height=112, width=112, channels=3, seed=0):
    """Smooth patches of colour with edges and some texture, like a photograph's spectrum."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, channels))
    for cells in (3, 7, 17, 40):
        coarse = rng.integers(0, 256, (cells, cells, channels), dtype=np.uint8)
        planes = [
            Image.fromarray(coarse[:, :, c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
        ]
        total += np.stack([np.asarray(plane) for plane in planes], axis=2) / cells**0.7
    total = (total - total.min()) / np.ptp(total)
    return (40 + 160 * total).round().astype(np.uint8).transpose(2, 0, 1)


def distance(first, second):
    return np.sqrt(np.square(first.astype(float) - second).mean())


def likeness(first, second):
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


# elastic_transform trades a large affine map (1, 2) for local waves (3 to 5); saturate first takes, then adds
MONOTONE = sorted(set(ALL) - {"elastic_transform", "saturate", "glass_blur", "frost", "fog", "snow", "motion_blur"})


@pytest.mark.parametrize("name", MONOTONE)
def test_every_severity_is_farther_from_the_original(name):
    image = photograph()
    distances = [distance(corrupt(image, name, severity, image=3), image) for severity in (1, 2, 3, 4, 5)]
    assert distances[0] > 0.3 and (np.diff(distances) > 0).all(), distances


@pytest.mark.parametrize("name", ["frost", "fog", "snow", "motion_blur"])
def test_weather_and_movement_leave_less_of_the_image(name):
    image = photograph(64, 64)
    mild, strong = (
        np.mean([likeness(corrupt(image, name, severity, image=number), image) for number in range(24)])
        for severity in (1, 5)
    )
    assert 1 > mild > strong


def test_glass_blur_is_stronger_with_what_was_published_for_224_pixels():
    """Severity 2 has a longer reach than 1, but one round of swaps instead of two."""
    image = photograph(224, 224)
    distances = [distance(corrupt(image, "glass_blur", severity), image) for severity in (1, 3, 4, 5)]
    assert (np.diff(distances) > 0).all(), distances


def test_elastic_transform_moves_pixels_ever_more_within_each_of_its_kinds():
    image = photograph()

    def mean(severity):
        return np.mean([distance(corrupt(image, "elastic_transform", severity, image=n), image) for n in range(12)])

    assert mean(1) < mean(2) and mean(3) < mean(4) < mean(5) < mean(1)


@pytest.mark.parametrize("name", ALL)
def test_same_arguments_give_the_same_pixels_and_type_and_shape_stay(name):
    for image in (photograph(40, 56), photograph(40, 56, 1), photograph(40, 56, 3).astype(np.float32) / 255):
        before = image.copy()
        first, second = (corrupt(image, name, 3, seed=5, image=2**60) for _ in range(2))
        assert np.array_equal(first, second) and first.shape == image.shape and first.dtype == image.dtype
        assert np.array_equal(image, before)
        if image.dtype == np.float32:
            assert first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("name", ["gaussian_noise", "glass_blur", "snow", "frost", "fog", "elastic_transform"])
def test_chance_depends_on_seed_and_image(name):
    image = photograph(48, 48)
    results = [corrupt(image, name, 2, seed=seed, image=number) for seed, number in ((0, 0), (1, 0), (0, 1))]
    assert not np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])


class Corrupted(Dataset):
    def __len__(self):
        return len(ALL)

    def __getitem__(self, number):
        return corrupt(photograph(32, 32), ALL[number], 4, 7, 9)


def test_workers_make_the_same_pixels():
    for there, here in zip(DataLoader(Corrupted(), batch_size=None, num_workers=2), Corrupted(), strict=True):
        assert np.array_equal(there, here)


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 3), (1, 5, 4), (4, 8, 20), (3, 250, 230)])
@pytest.mark.parametrize("name", ALL)
def test_images_of_any_size_and_number_of_channels_are_taken(name, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for severity in (1, 5):
        assert corrupt(image, name, severity).shape == shape


@pytest.mark.parametrize("name", sorted(set(ALL) - {"jpeg_compression"}))
def test_black_images_do_not_divide_by_zero(name):
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(corrupt(np.zeros((3, 24, 24), np.float32), name, 5)).all()


def test_unknown_names_and_severities_are_refused():
    image = photograph(16, 16)
    with pytest.raises(ValueError, match="'rain' is none of gaussian_noise"):
        corrupt(image, "rain", 1)
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"severity={severity}"):
            corrupt(image, "fog", severity)


# ---- by hand


def test_gaussian_noise_has_the_published_deviation():
    grey = np.full((3, 100, 100), 0.5)
    for severity, deviation in ((1, 0.08), (2, 0.12)):  # the others are cut at 0 and 1
        assert corrupt(grey, "gaussian_noise", severity).std() == pytest.approx(deviation, rel=0.03)


def test_shot_noise_has_the_variance_of_counting():
    grey = np.full((3, 100, 100), 0.25)
    assert corrupt(grey, "shot_noise", 1).var() == pytest.approx(0.25 / 60, rel=0.05)


@pytest.mark.parametrize("severity, share", [(1, 0.03), (3, 0.09), (5, 0.27)])
def test_impulse_noise_hits_its_share_half_white_and_half_black(severity, share):
    image = np.full((3, 100, 100), 100, np.uint8)
    changed = corrupt(image, "impulse_noise", severity)
    assert set(np.unique(changed)) == {0, 100, 255}
    for value in (0, 255):
        assert (changed == value).mean() == pytest.approx(share / 2, abs=0.006)


def test_brightness_adds_to_the_value_and_keeps_hue_and_saturation():
    image = np.array([100, 50, 0], np.uint8).reshape(3, 1, 1)
    # value 100 / 255 + 0.2 = 151 / 255; the other channels stay in proportion: 75.5 and 0
    assert corrupt(image, "brightness", 2).ravel().tolist() == [151, 76, 0]
    assert corrupt(np.zeros((3, 1, 1), np.uint8), "brightness", 2).ravel().tolist() == [51, 51, 51]
    assert corrupt(np.full((3, 1, 1), 250, np.uint8), "brightness", 5).ravel().tolist() == [255] * 3


def test_contrast_draws_to_the_mean_of_each_channel():
    image = np.array([[0, 200], [10, 20], [255, 255]], np.uint8).reshape(3, 1, 2)
    # means 100, 15, 255, factor 0.1
    assert corrupt(image, "contrast", 4).reshape(3, 2).tolist() == [[90, 110], [14, 16], [255, 255]]


def test_pixelate_at_half_size_has_the_means_of_blocks():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) * 10
    blocks = image.reshape(1, 2, 2, 2, 2).mean(axis=(2, 4))
    expected = blocks.repeat(2, axis=1).repeat(2, axis=2)
    assert np.array_equal(corrupt(image, "pixelate", 2), expected)


def test_jpeg_is_pillows_at_the_published_quality():
    image = photograph(48, 40)
    for severity, quality in ((1, 25), (5, 7)):
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "JPEG", quality=quality)
        assert np.array_equal(
            corrupt(image, "jpeg_compression", severity), np.asarray(Image.open(buffer)).transpose(2, 0, 1)
        )


def test_saturate_is_that_of_hsv():
    image = np.array([200, 100, 150], np.uint8).reshape(3, 1, 1)
    # saturation 0.5 becomes 0.15 (x 0.3) and 1 (x 2): the smallest channel is value * (1 - saturation)
    assert corrupt(image, "saturate", 1).ravel().tolist() == [200, 170, 185]
    assert corrupt(image, "saturate", 3).ravel().tolist() == [200, 0, 100]


def test_glass_blur_only_moves_what_is_there():
    """Pixels change places between two blurs: the mean of the image stays, but for its border."""
    image = photograph(96, 96)
    for severity in (1, 5):
        assert corrupt(image, "glass_blur", severity).mean() == pytest.approx(image.mean(), abs=1)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "gaussian_blur", "pixelate"]
)
def test_plain_images_stay_plain_under_blur(name):
    image = np.full((3, 30, 40), 117, np.uint8)
    for severity in (1, 3, 5):
        assert np.array_equal(corrupt(image, name, severity), image)


def test_blur_looks_the_same_at_twice_the_size():
    small = photograph(112, 112)
    large = np.stack(
        [np.asarray(Image.fromarray(plane).resize((224, 224), Image.Resampling.BICUBIC)) for plane in small]
    )
    for name in ("defocus_blur", "gaussian_blur", "zoom_blur"):
        halved = np.stack([np.asarray(Image.fromarray(plane).reduce(2)) for plane in corrupt(large, name, 4)])
        assert distance(halved, corrupt(small, name, 4)) < 0.2 * distance(small, corrupt(small, name, 4))


# ---- filters


def test_correlation_equals_the_naive_sum():
    rng = np.random.default_rng(0)
    image, kernel = rng.random((2, 7, 9)), rng.random((5, 5))
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), "reflect")
    expected = sum(
        kernel[row, column] * padded[:, row : row + 7, column : column + 9] for row in range(5) for column in range(5)
    )
    np.testing.assert_allclose(correlate(image, kernel, "reflect"), expected)


def test_movement_along_a_row_is_half_a_gaussian():
    image = np.zeros((1, 9, 31))
    image[0, 4, 20] = 1
    blurred = motion_blur(image, 3, 2, 0)[0]
    weights = np.exp(-(np.arange(7) ** 2) / 8)
    np.testing.assert_allclose(blurred[4, 20:13:-1], weights / weights.sum(), atol=1e-12)
    assert blurred.sum() == pytest.approx(1) and np.abs(np.delete(blurred, 4, 0)).max() < 1e-12


def test_resizing_is_linear_and_zooms_about_the_centre():
    ramp = np.arange(5.0).reshape(1, 1, 5)
    np.testing.assert_allclose(resize(ramp, 1, 9)[0, 0], np.arange(9) / 2)
    np.testing.assert_allclose(resize(ramp, 1, 5, 2)[0, 0], [1, 1.5, 2, 2.5, 3])


def test_clouds_fill_the_range_and_are_finer_with_a_smaller_decay():
    rough, smooth = (clouds(np.random.default_rng(0), 224, 224, decay) for decay in (1.4, 2.5))
    for cloud in (rough, smooth):
        assert cloud.shape == (224, 224) and cloud.min() >= 0 and cloud.max() <= 1 and np.ptp(cloud) > 0.7
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(smooth)).mean()
