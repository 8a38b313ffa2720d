import io
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from dinov2_hf.data.decode import BrokenImage, open_image

ORIENTATION = 0x0112
# what to do to the stored pixels [H, W, 3] to see them upright, by EXIF orientation
UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, k=-1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, k=1),
}


def decode(data, reduction=1.0):
    """Pixels `[h, w, C]`."""
    return open_image(data).decode(reduction)[0].permute(1, 2, 0).numpy()


def size_of(data):
    image = open_image(data)
    return image.width, image.height


def oriented(encode, image, orientation, kind, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(image, kind, exif=exif, **options)


@pytest.fixture
def image(photograph):
    return photograph(20, 30)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_come_upright(orientation, kind, encode, image):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = oriented(encode, image, orientation, kind, **options)
    expected = UPRIGHT[orientation](np.asarray(image))
    assert size_of(data) == (expected.shape[1], expected.shape[0])
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_jpeg_comes_upright_at_full_and_reduced_scale(orientation, encode, photograph):
    image = photograph(64, 96)
    plain = encode(image, "JPEG", quality=95)
    data = oriented(encode, image, orientation, "JPEG", quality=95)
    for reduction in (1, 4.2):
        expected = UPRIGHT[orientation](decode(plain, reduction))
        np.testing.assert_array_equal(decode(data, reduction), expected)
    assert min(expected.shape[:2]) == 16
    assert size_of(data) == (expected.shape[1] * 4, expected.shape[0] * 4)


@pytest.mark.parametrize("orientation", [0, 9])
def test_unknown_orientation_is_taken_as_upright(orientation, encode, image):
    data = oriented(encode, image, orientation, "PNG")
    assert size_of(data) == image.size
    np.testing.assert_array_equal(decode(data), np.asarray(image))


@pytest.mark.parametrize("exif", [b"Exif\0\0no tags", b"Exif\0\0II*\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_malformed_exif_is_taken_as_upright(exif, encode, image):
    data = encode(image, "JPEG", exif=exif)
    assert size_of(data) == image.size
    np.testing.assert_array_equal(decode(data), decode(encode(image, "JPEG")))


def test_grey_becomes_three_equal_channels(encode, image):
    grey = image.convert("L")
    pixels = decode(encode(grey))
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(grey)[:, :, None], 3, axis=2))


def test_black_and_white_becomes_0_and_255(encode, image):
    pixels = decode(encode(image.convert("1")))
    assert pixels.shape == (20, 30, 3)
    assert set(np.unique(pixels)) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_becomes_its_colours(kind, encode, image):
    palette = image.quantize(16)
    np.testing.assert_array_equal(decode(encode(palette, kind)), np.asarray(palette.convert("RGB")))


def test_transparency_is_left_out(encode, image):
    transparent = image.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    np.testing.assert_array_equal(decode(encode(transparent)), np.asarray(image))


def test_grey_with_transparency_becomes_three_equal_channels(encode, image):
    pixels = decode(encode(image.convert("LA")))
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(image.convert("L"))[:, :, None], 3, axis=2))


@pytest.mark.parametrize("reduction, side", [(1, 64), (4.2, 16)])
def test_cmyk_becomes_nearly_the_colours_it_was_made_from(reduction, side, encode, photograph):
    image = photograph(64, 96, cell=32)
    pixels = decode(encode(image.convert("CMYK"), "JPEG", quality=95), reduction)
    expected = np.asarray(image.resize((side * 3 // 2, side), Image.Resampling.BOX)).astype(float)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 3


def test_sixteen_bit_grey_keeps_its_contrast_or_is_refused(encode):
    ramp = np.linspace(0, 65535, 20 * 30).reshape(20, 30)
    try:
        pixels = decode(encode(ramp.astype(np.uint16)))
    except BrokenImage:
        return
    assert np.abs(pixels - ramp[:, :, None] / 65535 * 255).max() <= 1


def test_first_frame_of_an_animation_is_read(encode, photograph):
    frames = [photograph(20, 30, seed).quantize(32) for seed in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("data", [b"", b"not an image at all, but a text", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_other_bytes_are_broken(data):
    with pytest.raises(BrokenImage):
        open_image(data)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_file_is_broken(kind, share, encode, photograph):
    data = encode(photograph(60, 80), kind)
    with pytest.raises(BrokenImage) as caught:
        open_image(data[: int(len(data) * share)]).decode()
    assert str(caught.value)


def test_truncated_jpeg_is_broken_at_reduced_scale_too(encode, photograph):
    data = encode(photograph(64, 96), "JPEG")
    with pytest.raises(BrokenImage, match="truncated"):
        decode(data[: len(data) // 2], reduction=4)


def test_broken_image_is_a_value_error():
    assert issubclass(BrokenImage, ValueError)


@pytest.mark.parametrize("size", [(96, 64), (97, 63), (101, 33), (17, 250), (64, 64), (8, 8), (1, 40)])
def test_reduced_jpeg_is_never_smaller_than_asked(size, encode, photograph):
    width, height = size
    data = encode(photograph(height, width), "JPEG")
    for reduction in (0.3, 1, 1.9, 2, 2.1, 3.9, 4, 4.5, 7.99, 8, 8.01, 11, 40):
        pixels, scale = open_image(data).decode(reduction)
        factor = round(1 / scale)
        assert pixels.shape == (3, -(-height // factor), -(-width // factor))
        assert factor in (1, 2, 4, 8) and factor <= max(reduction, 1)


def test_reduced_jpeg_is_decoded_at_the_largest_reduction_allowed(encode, photograph):
    data = encode(photograph(160, 240), "JPEG")
    for reduction, width in ((1, 240), (1.9, 240), (2.1, 120), (3.9, 120), (4.2, 60), (7.9, 60), (8.5, 30), (20, 30)):
        assert decode(data, reduction).shape[1] == width


def test_reduced_jpeg_is_nearly_the_full_one_averaged(encode, photograph):
    data = encode(photograph(160, 240), "JPEG", quality=95)
    full = Image.fromarray(decode(data))
    for factor in (2, 4, 8):
        difference = decode(data, factor + 0.5) - np.asarray(full.reduce(factor)).astype(float)
        # 0.9 on average and 8 at most are measured, of 255
        assert np.abs(difference).mean() < 1.5
        assert np.abs(difference).max() <= 12


def test_only_jpeg_is_reduced(encode, image):
    np.testing.assert_array_equal(decode(encode(image), reduction=8), np.asarray(image))


def test_upright_pixels_equal_those_of_pillow(encode, image):
    for orientation in UPRIGHT:
        data = oriented(encode, image, orientation, "JPEG")
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        np.testing.assert_array_equal(decode(data), np.asarray(expected))


def test_jpeg_pixels_equal_those_of_pillow_at_every_scale(encode, photograph):
    """Ours come from libjpeg-turbo directly."""
    for mode in ("RGB", "L"):
        data = encode(photograph(61, 83).convert(mode), "JPEG", quality=90)
        for factor in (1, 2, 4, 8):
            image = Image.open(io.BytesIO(data))
            image.draft(None, (83 // factor, 61 // factor))
            np.testing.assert_array_equal(decode(data, factor), np.asarray(image.convert("RGB")))


def test_jpeg_with_stray_bytes_is_read_and_with_missing_ones_is_not(encode, photograph):
    data = encode(photograph(60, 80), "JPEG", quality=90)
    expected = decode(data)
    np.testing.assert_array_equal(decode(data[:-2] + b"\0\0\0" + data[-2:]), expected)
    with pytest.raises(BrokenImage, match="truncated"):
        decode(data[:-40])


def test_bomb_is_refused_before_it_is_decoded(encode):
    """A PNG of a few hundred bytes that says it has 15,000 x 15,000 pixels."""
    data = bytearray(encode(np.zeros((4, 4), dtype=np.uint8)))
    data[16:24] = (15_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(BrokenImage, match="15,000 x 15,000 pixels are more than data.max_pixels=178956970"):
        open_image(bytes(data))


def save_npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def save_tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("save", [save_npy, save_tiff])
@pytest.mark.parametrize("dtype, largest", [(np.uint8, None), (np.uint16, 65535), (np.float32, 1)])
def test_arrays_of_any_number_of_channels_keep_their_values(save, layout, dtype, largest):
    rng = np.random.default_rng(0)
    values = rng.random((6, 7, 5)) if dtype == np.float32 else rng.integers(0, np.iinfo(dtype).max, (6, 7, 5))
    values = values.astype(dtype)
    options = {"photometric": "minisblack"} if save is save_tiff else {}
    if save is save_tiff:
        options["planarconfig"] = "separate" if layout == "first" else "contig"
    data = save(values if layout == "last" else values.transpose(2, 0, 1), **options)
    image = open_image(data, num_channels=5)
    pixels, scale = image.decode(reduction=4)
    assert (image.width, image.height, scale) == (7, 6, 1.0)
    assert pixels.dtype == (torch.uint8 if largest is None else torch.float32)
    expected = values if largest is None else values.astype(np.float32) / largest
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_pictures_become_grey_for_one_channel(encode, photograph):
    image = photograph(20, 30)
    for kind in ("PNG", "JPEG"):
        data = encode(image, kind)
        pixels, _ = open_image(data, num_channels=1).decode()
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
        assert pixels.shape == (1, 20, 30)
        assert np.abs(pixels[0].numpy().astype(int) - expected).max() <= 2  # JPEG files hold the luma itself


def test_sixteen_bit_grey_keeps_all_its_bits_for_one_channel(encode):
    ramp = np.linspace(0, 65535, 20 * 30).reshape(20, 30).astype(np.uint16)
    for data in (encode(ramp), save_tiff(ramp), save_npy(ramp)):
        pixels, _ = open_image(data, num_channels=1).decode()
        np.testing.assert_allclose(pixels[0].numpy(), ramp / 65535, atol=1e-6)


def test_four_channels_are_those_of_the_picture_or_it_is_refused(encode, photograph):
    image = photograph(20, 30).convert("RGBA")
    image.putalpha(77)
    pixels, _ = open_image(encode(image), num_channels=4).decode()
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image))
    with pytest.raises(BrokenImage, match="3 channels, not model.num_channels=4"):
        open_image(encode(image.convert("RGB")), num_channels=4).decode()


@pytest.mark.parametrize(
    "values, message",
    [
        (np.zeros((4, 4, 5), dtype=np.int32), "int32"),
        (np.full((4, 4, 5), 1.5), "1.5"),
        (np.full((4, 4, 5), np.nan), "nan"),
        (np.full((4, 4, 5), -0.1), "-0.1"),
        (np.zeros((4, 4, 3), dtype=np.uint8), "num_channels=5"),
        (np.zeros((4, 4), dtype=np.uint8), "num_channels=5"),
        (np.zeros((0, 4, 5), dtype=np.uint8), "shape"),
        (np.zeros((2, 4, 4, 5), dtype=np.uint8), "shape"),
        (np.array([{"a": 1}]), "type object"),
    ],
)
def test_other_arrays_are_broken_and_say_why(values, message):
    with pytest.raises(BrokenImage, match=message):
        open_image(save_npy(values), num_channels=5).decode()


@pytest.mark.parametrize("save", [save_npy, save_tiff])
def test_truncated_array_is_broken(save):
    data = save(np.zeros((64, 64, 5), dtype=np.uint8))
    with pytest.raises(BrokenImage):
        open_image(data[: len(data) // 2], num_channels=5).decode()


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", ["exif", "profile", "xmp"])
def test_png_is_turned_wherever_its_orientation_stands_and_opened_without_its_pixels(kind, place, encode, image):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><x tiff:Orientation="6"/></x:xmpmeta>'
    text = exif.tobytes().hex().encode()
    content = {
        "exif": (b"eXIf", exif.tobytes()[6:]),
        "profile": (b"tEXt", b"Raw profile type exif\0\nexif\n%8d\n" % (len(text) // 2) + text),
        "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet),
    }[kind]
    chunk = len(content[1]).to_bytes(4, "big") + b"".join(content) + zlib.crc32(b"".join(content)).to_bytes(4, "big")
    data = encode(image)
    end = 33 if place == "before" else data.index(b"IEND") - 4
    turned = data[:end] + chunk + data[end:]
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
    assert size_of(turned) == expected.size == (20, 30)
    np.testing.assert_array_equal(decode(turned), np.asarray(expected))
    start = turned.index(b"IDAT") + 4
    assert size_of(turned[:start] + bytes(20) + turned[start + 20 :]) == (20, 30)
