import math

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.config import CropsConfig
from dinov2_hf.data.crops import MultiCrop, draw_box
from dinov2_hf.data.decode import open_image

LOCAL, GLOBAL = (0.05, 0.32), (0.32, 1.0)
RATIO = math.log(4 / 3)
SIDE = 4000


def distance(sample, cumulative):
    """Kolmogorov-Smirnov distance of a sample from a cumulative distribution."""
    sample = np.sort(sample)
    expected = cumulative(sample)
    steps = np.arange(len(sample) + 1) / len(sample)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())


def bound(count):
    """The distance that one sample in a thousand exceeds."""
    return 1.95 / math.sqrt(count)


def draw_boxes(count, width, height, scale, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([draw_box(rng, width, height, scale) for _ in range(count)])


def sides(boxes):
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def test_area_share_of_local_boxes_is_uniform_in_its_range():
    width, height = sides(draw_boxes(10_000, SIDE, SIDE, LOCAL))
    share = width * height / SIDE**2
    assert LOCAL[0] * 0.999 < share.min() and share.max() < LOCAL[1] * 1.001
    low, high = LOCAL  # every such box fits into a square image
    assert distance(share, lambda x: ((x - low) / (high - low)).clip(0, 1)) < bound(10_000)


def test_aspect_ratio_is_uniform_in_its_logarithm():
    width, height = sides(draw_boxes(10_000, SIDE, SIDE, LOCAL))
    logarithm = np.log(width / height)
    assert np.abs(logarithm).max() < RATIO + 0.002
    assert distance(logarithm, lambda x: ((x + RATIO) / (2 * RATIO)).clip(0, 1)) < bound(10_000)


def test_area_share_of_global_boxes_is_uniform_among_those_that_fit():
    width, height = sides(draw_boxes(10_000, SIDE, SIDE, GLOBAL))
    # a share s fits into a square image if the logarithm of its aspect ratio is within -log(s)
    grid = np.linspace(*GLOBAL, 20_001)
    density = np.minimum(1, -np.log(grid) / RATIO)
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cumulative /= cumulative[-1]
    share = width * height / SIDE**2
    assert distance(share, lambda x: np.interp(x, grid, cumulative)) < bound(10_000)


def test_position_is_uniform_over_the_room_that_is_left():
    boxes = draw_boxes(10_000, SIDE, SIDE, LOCAL)
    width, height = sides(boxes)
    for offset, room in ((boxes[:, 0], SIDE - width), (boxes[:, 1], SIDE - height)):
        assert distance(offset / room, lambda x: x.clip(0, 1)) < bound(10_000)


def test_boxes_of_small_images_reach_every_border():
    boxes = draw_boxes(2_000, 12, 9, LOCAL)
    np.testing.assert_array_equal(boxes.min(axis=0)[:2], [0, 0])
    np.testing.assert_array_equal(boxes.max(axis=0)[2:], [12, 9])


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (7, 5), (640, 480), (3000, 10), (10, 3000)])
@pytest.mark.parametrize("scale", [LOCAL, GLOBAL, (0.0, 1.0), (1.0, 1.0)])
def test_boxes_are_not_empty_and_stay_inside_the_image(size, scale):
    width, height = size
    boxes = draw_boxes(500, width, height, scale)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (boxes[:, 2] > boxes[:, 0]).all() and (boxes[:, 3] > boxes[:, 1]).all()


@pytest.mark.parametrize(
    "size, box",
    [
        ((1000, 10), (493, 0, 506, 10)),  # 10 * 4/3 = 13 wide, in the middle
        ((10, 1000), (0, 493, 10, 506)),
        ((1, 50), (0, 24, 1, 25)),
    ],
)
def test_box_that_never_fits_is_the_largest_centred_one_of_an_allowed_ratio(size, box):
    assert draw_box(np.random.default_rng(0), *size, (0.9, 1.0)) == box


def test_whole_image_is_drawn_where_it_is_all_that_fits():
    for seed in range(20):
        assert draw_box(np.random.default_rng(seed), 400, 300, (1.0, 1.0)) == (0, 0, 400, 300)


@pytest.fixture
def config():
    return CropsConfig(
        global_size=56,
        local_size=28,
        num_local=3,
        global_scale=[0.5, 1.0],
        local_scale=[0.2, 0.5],
    )


def plain_crops(config, data, seed, factor=1):
    """The naive twin: the same boxes, on a grid of `factor` pixels, each cut from the fully decoded image by Pillow."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(open_image(data).decode()[0].permute(1, 2, 0).numpy())
    plan = [(config.global_size, config.global_scale)] * 2 + [
        (config.local_size, config.local_scale)
    ] * config.num_local
    boxes = [draw_box(rng, *image.size, tuple(scale)) for _, scale in plan]
    flips = rng.random(len(plan)) < config.flip_probability
    crops = []
    for box, (size, _), flip in zip(boxes, plan, flips, strict=True):
        box = [min(round(side / factor) * factor, end) for side, end in zip(box, 2 * image.size, strict=True)]
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1)
        crops.append(pixels[:, :, ::-1] if flip else pixels)
    return crops, boxes


def test_crops_are_uint8_global_ones_first(config, encode, photograph):
    crops = MultiCrop(config)(encode(photograph(60, 80)), np.random.default_rng(0))
    assert [crop.shape for crop in crops] == [(3, 56, 56)] * 2 + [(3, 28, 28)] * 3
    assert {crop.dtype for crop in crops} == {np.dtype(np.uint8)}


def test_no_local_crops_where_none_are_asked_for(config, encode, photograph):
    config.num_local = 0
    assert len(MultiCrop(config)(encode(photograph(60, 80)), np.random.default_rng(0))) == 2


def test_crops_of_small_images_are_cut_exactly(config, encode, photograph):
    for seed, size in enumerate([(60, 80), (80, 60), (45, 37), (30, 200)]):
        data = encode(photograph(*size))
        crops = MultiCrop(config)(data, np.random.default_rng(seed))
        for crop, expected in zip(crops, plain_crops(config, data, seed)[0], strict=True):
            # Pillow's weights have more bits
            difference = np.abs(crop.astype(int) - expected)
            assert difference.max() <= 4 and difference.mean() < 0.6


def test_crops_depend_on_the_generator_alone(config, encode, photograph):
    data, crop = encode(photograph(60, 80)), MultiCrop(config)
    first, again = crop(data, np.random.default_rng(1)), crop(data, np.random.default_rng(1))
    other = crop(data, np.random.default_rng(2))
    for index in range(5):
        np.testing.assert_array_equal(first[index], again[index])
        assert (first[index] != other[index]).any()


def test_crops_of_one_colour_have_that_colour(config, encode):
    color = np.array([10, 200, 90], dtype=np.uint8)
    for kind in ("PNG", "BMP"):
        data = encode(np.broadcast_to(color, (300, 400, 3)).copy(), kind)
        for crop in MultiCrop(config)(data, np.random.default_rng(0)):
            assert (crop == color[:, None, None]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3), (3000, 4)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_smallest_and_narrowest_images_give_crops(size, kind, config, encode):
    width, height = size
    data = encode(np.full((height, width, 3), 77, dtype=np.uint8), kind)
    for seed in range(20):
        for crop in MultiCrop(config)(data, np.random.default_rng(seed)):
            assert (crop == 77).all()


@pytest.mark.parametrize("size", [(400, 304), (304, 400), (401, 303), (641, 479), (803, 603)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_crops_from_reduced_scale_are_nearly_those_from_full_scale(size, orientation, config, encode, photograph):
    width, height = size
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(height, width, cell=32), "JPEG", quality=95, exif=exif)
    for seed in range(2):
        crops = MultiCrop(config)(data, np.random.default_rng(seed))
        _, boxes = plain_crops(config, data, seed)
        # some crop of this seed allows a reduction of two or more, or the comparison would say nothing
        smallest = min(
            min(right - left, bottom - top) / crop.shape[2]
            for (left, top, right, bottom), crop in zip(boxes, crops, strict=True)
        )
        assert smallest > 2
        turned = orientation != 1 and (width % 8 or height % 8)
        expected, _ = plain_crops(config, data, seed, factor=1 if turned else 2 ** int(math.log2(smallest)))
        # of 255, 1 on average and 6 at most are measured; shifts of less than a pixel of the crop give 6 and 30
        differences = [np.abs(a.astype(float) - b) for a, b in zip(crops, expected, strict=True)]
        assert max(difference.mean() for difference in differences) < 1.5
        assert max(difference.max() for difference in differences) <= 12


def test_reduced_scale_is_never_below_what_the_smallest_crop_needs(config, encode, photograph):
    data = encode(photograph(448, 448), "JPEG", quality=95)
    for seed in range(40):
        _, boxes = plain_crops(config, data, seed)
        sizes = [config.global_size] * 2 + [config.local_size] * config.num_local
        ratios = [min(r - left, b - top) / size for (left, top, r, b), size in zip(boxes, sizes, strict=True)]
        pixels, _ = open_image(data).decode(min(ratios))
        for ratio, size in zip(ratios, sizes, strict=True):
            assert pixels.shape[2] / 448 * ratio * size >= min(size, ratio * size)


def test_crop_of_a_small_box_is_not_blurred_for_the_sake_of_a_large_one(encode, photograph):
    config = CropsConfig(
        global_size=16, local_size=48, num_local=2, global_scale=[0.9, 1.0], local_scale=[0.2, 0.25]
    )  # alone, the global crops would allow an eighth; the local ones need the full scale
    data = encode(photograph(240, 320, cell=4), "JPEG", quality=95)
    for seed in range(3):
        crops = MultiCrop(config)(data, np.random.default_rng(seed))
        for crop, expected in zip(crops[2:], plain_crops(config, data, seed)[0][2:], strict=True):
            assert crop.std() > 0.95 * expected.std()


def test_sideways_photograph_is_cut_as_the_upright_one(config, encode, photograph):
    image = photograph(60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    sideways = encode(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    opened = open_image(sideways)
    assert (opened.width, opened.height) == image.size
    crops = [MultiCrop(config)(data, np.random.default_rng(0)) for data in (sideways, encode(image))]
    for sideways_crop, crop in zip(*crops, strict=True):
        np.testing.assert_array_equal(sideways_crop, crop)


def test_flipped_crops_are_mirrored(config, encode, photograph):
    data = encode(photograph(60, 80))
    config.flip_probability = 0.0
    plain = MultiCrop(config)(data, np.random.default_rng(0))
    config.flip_probability = 1.0
    flipped = MultiCrop(config)(data, np.random.default_rng(0))
    for crop, mirrored in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(mirrored, crop[:, :, ::-1])


@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_flips_are_as_frequent_as_configured_in_every_view(probability, config, encode):
    config.flip_probability = probability
    config.global_size = config.local_size = 14
    data = encode(np.broadcast_to(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (30, 40, 3)).copy())
    count = 1000
    flips = np.zeros((count, 5), dtype=bool)
    crop = MultiCrop(config)
    for seed in range(count):
        for view, pixels in enumerate(crop(data, np.random.default_rng(seed))):
            flips[seed, view] = pixels[0, 0, 0].astype(int) > pixels[0, 0, -1]  # the image gets brighter to the right
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert np.abs(flips.mean(axis=0) - probability).max() < 4 * deviation
    # views are flipped independently of each other
    assert np.abs(np.corrcoef(flips.T)[~np.eye(5, dtype=bool)]).max() < 4 / math.sqrt(count)
