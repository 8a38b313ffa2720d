import io
import json

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from transformers import AutoImageProcessor
from transformers.image_utils import load_image

from dinov2_hf.data import EvalTransform, preprocessor_config
from dinov2_hf.data.decode import BrokenImage

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES = {
    "landscape": (100, 75),
    "portrait": (75, 100),
    "square": (64, 64),
    "odd": (131, 97),
    "narrow": (9, 120),
    "wide": (200, 31),
    "smaller than the crop": (30, 40),
    "of one pixel": (1, 1),
}
TRANSFORMS = {"crop within": (64, 56), "crop of all": (56, 56), "crop beyond": (40, 56), "crop beyond, odd": (41, 56)}


def draw(width, height, seed=0, cell=16):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
    return Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def compare(folder, data, resize_size=64, crop_size=56):
    """Absolute differences between our transform and the stock image processor, after normalisation."""
    transform = EvalTransform(resize_size, crop_size, MEAN, STD)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(transform)))
    (folder / "image").write_bytes(data)
    processor = AutoImageProcessor.from_pretrained(folder)
    expected = processor(load_image(str(folder / "image")), return_tensors="pt")["pixel_values"]
    result = transform.normalize(torch.from_numpy(transform.pixels(data).copy())[None])
    assert result.shape == expected.shape == (1, 3, crop_size, crop_size)
    return (result - expected).abs()


@pytest.mark.parametrize("sizes", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_transform_equals_the_stock_image_processor(size, sizes, tmp_path):
    assert compare(tmp_path, encode(draw(*size)), *sizes).max() <= 1e-6


@pytest.mark.parametrize("size", [(100, 75), (131, 97), (30, 40)])
def test_transform_of_a_jpeg_at_full_scale_equals_the_stock_image_processor(size, tmp_path):
    data = encode(draw(*size), "JPEG", quality=90)
    assert compare(tmp_path, data).max() <= 1e-6


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_transform_of_any_colour_mode_equals_the_stock_image_processor(mode, tmp_path):
    data = encode(draw(100, 75).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert compare(tmp_path, data).max() <= 1e-6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_transform_of_a_turned_photograph_equals_the_stock_image_processor(orientation, tmp_path):
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    assert compare(tmp_path, encode(draw(100, 75), "JPEG", exif=exif)).max() <= 1e-6


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (641, 479), (799, 603), (1201, 905)])
def test_transform_of_a_jpeg_at_reduced_scale_is_near_the_stock_image_processor(size, tmp_path):
    difference = compare(tmp_path, encode(draw(*size, cell=64), "JPEG", quality=95))
    # in steps of 1/255: 0.25 on average and 1 at most are measured; shifts of less than a pixel give up to 3 and 17
    step = 1 / 255 / min(STD)
    assert difference.mean() < 0.5 * step
    assert difference.max() < 2.5 * step


def test_padding_around_small_images_is_black():
    pixels = EvalTransform(4, 8, MEAN, STD).pixels(encode(Pillow.new("RGB", (10, 10), (9, 8, 7))))
    assert pixels.dtype == np.uint8
    expected = np.zeros((3, 8, 8), dtype=np.uint8)
    expected[:, 2:6, 2:6] = np.array([9, 8, 7])[:, None, None]
    np.testing.assert_array_equal(pixels, expected)


def test_centre_is_cut_out():
    columns = np.arange(100, dtype=np.uint8)[None, :, None].repeat(60, axis=0).repeat(3, axis=2)
    pixels = EvalTransform(60, 40, MEAN, STD).pixels(encode(Pillow.fromarray(columns)))
    np.testing.assert_array_equal(pixels, np.broadcast_to(np.arange(30, 70), (3, 40, 40)))


def test_normalisation_is_that_of_training():
    values = EvalTransform(8, 8, MEAN, STD).normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    for channel in range(3):
        expected = torch.full((2, 2), (1 - MEAN[channel]) / STD[channel])
        torch.testing.assert_close(values[0, channel], expected)


def test_broken_bytes_are_refused_by_the_transform():
    with pytest.raises(BrokenImage):
        EvalTransform(8, 8, MEAN, STD).pixels(b"a text")


def test_enlarged_transform_keeps_its_shape_at_a_whole_multiple():
    transform = EvalTransform(40, 32, [0.5], [0.2])
    sizes = {side: transform.enlarged(side) for side in (1, 32, 33, 96, 97)}
    assert {side: (found.resize_size, found.crop_size) for side, found in sizes.items()} == {
        1: (40, 32),
        32: (40, 32),
        33: (80, 64),
        96: (120, 96),
        97: (160, 128),
    }
    assert all((found.mean, found.std) == ((0.5,), (0.2,)) for found in sizes.values())
