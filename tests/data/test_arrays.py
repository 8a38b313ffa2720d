"""Numbers as images: `.npy` of every type, and TIFF files of every layout."""

import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dinov2_hf.data.decode import BrokenImage, Decoding, open_image

LARGEST = {"|u1": 255, "|i1": 127, "<u2": 65535, ">u2": 65535, "<i2": 32767, ">i2": 32767}
PIXELS = np.random.default_rng(0).integers(0, 100, (6, 7, 5))


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="minisblack", **options)
    return buffer.getvalue()


def paged(values, **options):
    """A TIFF file of a page for each of `values` `[C, h, w]`."""
    pages = [Image.fromarray(page) for page in values]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], **options)
    return buffer.getvalue()


def pixels_of(data, num_channels, **decoding):
    return open_image(data, num_channels, Decoding(**decoding)).decode()[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [*LARGEST, "|b1", "<f2", ">f4", "<f8", ">f8"])
def test_npy_of_every_type_that_has_a_range_is_read(dtype, order):
    kind = np.dtype(dtype).kind
    values = (PIXELS / 100 if kind == "f" else PIXELS > 50 if kind == "b" else PIXELS).astype(dtype, order=order)
    found = pixels_of(npy(values), 5)
    if dtype in ("|u1", "|b1"):
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, values * (255 if kind == "b" else np.uint8(1)))
    else:
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values.astype(np.float64) / LARGEST.get(dtype, 1), atol=1e-7)


@pytest.mark.parametrize("dtype", ["<i4", "<u4", "<i8", "<c8", "<M8[s]"])
def test_types_without_a_range_are_refused_with_what_to_do(dtype):
    with pytest.raises(BrokenImage, match="have no known range; save them as uint8, uint16 or floats"):
        open_image(npy(PIXELS.astype(dtype)), 5)


@pytest.mark.parametrize("encode", [npy, tiff])
def test_negative_integers_are_refused_with_what_to_do(encode):
    with pytest.raises(BrokenImage, match="values from -3 to 96; negative .* save them as uint16"):
        open_image(encode((PIXELS - 3).astype(np.int16)), 5).decode()


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("encode", [npy, tiff])
def test_grey_arrays_are_read_for_one_and_three_channels(encode, num_channels):
    values = PIXELS[:, :, 0].astype(np.int16)
    expected = np.repeat(values[:, :, None] / 32767, num_channels, axis=2)
    np.testing.assert_allclose(pixels_of(encode(values), num_channels), expected, atol=1e-7)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_pages_of_a_tiff_are_channels(dtype, count, compression):
    values = PIXELS.transpose(2, 0, 1)[:count]
    values = (values / 100).astype(dtype) if dtype == np.float32 else values.astype(dtype)
    found = pixels_of(paged(values, compression=compression), count)
    scale = {np.uint8: 1, np.uint16: 65535, np.float32: 1}[dtype]
    np.testing.assert_allclose(found, (values / np.float32(scale)).transpose(1, 2, 0), atol=1e-7)


def test_other_numbers_of_pages_are_named_and_for_three_channels_the_first_is_read():
    data = paged(PIXELS.transpose(2, 0, 1).astype(np.uint8))
    with pytest.raises(BrokenImage, match=r"shape \(5, 6, 7\) is not .* of model.num_channels=1"):
        open_image(data, 1)
    with pytest.raises(BrokenImage, match=r"shape \(5, 6, 7\) is not .* of model.num_channels=6"):
        open_image(data, 6)
    np.testing.assert_array_equal(pixels_of(data, 3), np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_pages_that_were_written_one_by_one_are_channels():
    values = PIXELS.transpose(2, 0, 1).astype(np.int16)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in values:
            writer.write(page, photometric="minisblack", contiguous=False)
        writer.write(values[0, :3, :3], photometric="minisblack", contiguous=False)  # a thumbnail
    np.testing.assert_allclose(pixels_of(buffer.getvalue(), 5), PIXELS / 32767, atol=1e-7)
    with pytest.raises(BrokenImage, match="more than 4 pages of one channel each, not model.num_channels=4"):
        open_image(buffer.getvalue(), 4)
    with pytest.raises(BrokenImage, match="5 pages of one channel each, not model.num_channels=6"):
        open_image(buffer.getvalue(), 6)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 2}, {"planarconfig": "separate"}])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_layouts_of_a_tiff_give_the_same_pixels(dtype, byteorder, options):
    values = (PIXELS / 100 if dtype == np.float32 else PIXELS).astype(dtype)
    stored = values.transpose(2, 0, 1) if "planarconfig" in options else values
    found = pixels_of(tiff(stored, byteorder=byteorder, **({"planarconfig": "contig"} | options)), 5)
    scale = {np.uint16: 65535, np.int16: 32767, np.float32: 1}[dtype]
    np.testing.assert_allclose(found, values / np.float32(scale), atol=1e-7)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LAB"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_pictures_become_grey_or_rgb_as_pillow_does(mode, num_channels, compression, photograph):
    image = photograph(20, 30)
    image = image.quantize(16) if mode == "P" else image if mode in ("RGB", "LAB") else image.convert(mode)
    if mode == "LAB":
        image = Image.merge("LAB", image.split())
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression=compression)
    wanted = "L" if num_channels == 1 else "RGB"
    try:
        expected = Image.open(buffer).convert(wanted)
    except ValueError:
        with pytest.raises(BrokenImage):
            pixels_of(buffer.getvalue(), num_channels)
        return
    np.testing.assert_array_equal(pixels_of(buffer.getvalue(), num_channels).squeeze(), np.asarray(expected))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_four_channels_of_a_tiff_are_read_whatever_its_compression(compression, photograph):
    image = photograph(20, 30).convert("RGBA")
    image.putalpha(77)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression=compression)
    np.testing.assert_array_equal(pixels_of(buffer.getvalue(), 4), np.asarray(image))


def test_pixels_are_counted_before_an_array_is_read():
    header = npy(np.zeros((2, 2), np.uint8)).replace(b"(2, 2)", b"(200000, 1000)")
    for num_channels, count in ((1, "1,000 x 200,000 pixels"), (3, "1,000 x 200,000 pixels")):
        with pytest.raises(BrokenImage, match=count):
            open_image(header, num_channels)
    with pytest.raises(BrokenImage, match="7 x 6 x 5 pixels are more than data.max_pixels=69"):
        open_image(npy(PIXELS.astype(np.uint8)), 5, Decoding(max_pixels=69))
    assert open_image(npy(PIXELS.astype(np.uint8)), 5, Decoding(max_pixels=70)).decode()[0].shape == (5, 6, 7)
    with pytest.raises(BrokenImage, match="7 x 6 x 5 pixels"):
        open_image(tiff(PIXELS.astype(np.uint8), planarconfig="contig"), 5, Decoding(max_pixels=69))


def test_bits_scale_integers_of_sixteen_bits_only():
    values = np.array([[0, 100, 4095]])
    for dtype in (np.uint16, np.int16):
        found = pixels_of(npy(values.astype(dtype)), 1, bits=12)[:, :, 0]
        np.testing.assert_allclose(found, values / 4095, atol=1e-7)
        with pytest.raises(BrokenImage, match="the value 4096 has more bits than data.bits=12"):
            pixels_of(npy((values + 1).astype(dtype)), 1, bits=12)
    np.testing.assert_array_equal(pixels_of(npy(np.array([[9]], np.uint8)), 1, bits=12), [[[9]]])


def test_pixels_of_arrays_can_be_written_and_lie_channels_last():
    for data in (npy(PIXELS.astype(np.uint8)), npy(PIXELS.astype(np.uint8).transpose(2, 0, 1))):
        pixels, _ = open_image(data, 5).decode()
        pixels += 1
        assert pixels.unsqueeze(0).is_contiguous(memory_format=torch.channels_last)
