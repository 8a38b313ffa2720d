"""JPEG files that lack their last bytes."""

import io

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.data.decode import BrokenImage, Decoding, open_image

READ = Decoding(truncated_jpegs=True)


def rows_alike(found, whole):
    """How many rows at the top are equal."""
    differ = (found != whole).any(axis=(1, 2))
    return int(differ.argmax()) if differ.any() else len(differ)


def pixels_of(data, decoding=READ, reduction=1.0):
    image = open_image(data, 3, decoding)
    return image.decode(reduction)[0].permute(1, 2, 0).numpy(), image


@pytest.fixture(
    params=[{}, {"progressive": True}, {"restart_marker_blocks": 2}], ids=["baseline", "progressive", "rst"]
)
def jpeg(request, encode, photograph):
    noise = np.random.default_rng(0).integers(0, 40, (160, 240, 3), dtype=np.uint8)
    return encode(Image.fromarray(np.asarray(photograph(160, 240)) // 2 + noise), "JPEG", quality=90, **request.param)


@pytest.mark.parametrize("missing", [2, 3, 40])
def test_switch_reads_what_lacks_its_last_bytes_and_nothing_else_changes(jpeg, missing):
    whole, image = pixels_of(jpeg)
    assert not image.truncated
    np.testing.assert_array_equal(whole, pixels_of(jpeg, Decoding())[0])
    with pytest.raises(BrokenImage, match="truncated"):
        pixels_of(jpeg[:-missing], Decoding())
    found, image = pixels_of(jpeg[:-missing])
    assert image.truncated
    assert rows_alike(found, whole) >= 7 / 8 * 160 - 1


def test_more_than_an_eighth_of_the_rows_missing_is_broken(encode, photograph):
    noise = np.random.default_rng(0).integers(0, 256, (160, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", quality=80)
    whole = pixels_of(data)[0]
    outcomes = []
    for share in np.arange(0.5, 1, 0.02):
        part = data[: int(len(data) * share)]
        complete = rows_alike(np.asarray(Image.open(io.BytesIO(part + b"\xff\xd9"))), whole) / 160
        try:
            pixels_of(part)
            outcomes.append(True)
            assert complete >= 7 / 8 - 1 / 160
        except BrokenImage as error:
            outcomes.append(False)
            assert complete < 7 / 8 + 1 / 160
            assert "of its rows are complete" in str(error)
    assert outcomes == sorted(outcomes) and set(outcomes) == {False, True}


def test_progressive_file_that_lacks_a_scan_is_broken(encode, photograph):
    data = encode(photograph(64, 96), "JPEG", progressive=True)
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    for place in scans[1:]:
        with pytest.raises(BrokenImage, match="lacks scans"):
            pixels_of(data[:place])


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_same_files_are_broken_at_every_scale(jpeg, reduction):
    for missing in (40, len(jpeg) // 2):
        outcomes = []
        for scale in (1, reduction):
            try:
                outcomes.append(pixels_of(jpeg[:-missing], reduction=scale)[0].shape[0] * scale)
            except BrokenImage:
                outcomes.append(None)
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_truncated_files_stay_broken(kind, encode, photograph):
    data = encode(photograph(60, 80), kind)
    with pytest.raises(BrokenImage):
        pixels_of(data[: int(len(data) * 0.95)])
