"""Pictures of 16 bits: what training sees, what it says of them, and the loader that agrees."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.config import DINOv2RunConfig, load_config
from dinov2_hf.data import EvalTransform, evaluation_transform, load_image, preprocessor_config
from dinov2_hf.data.decode import BrokenImage, Decoding, open_image
from dinov2_hf.data.stats import describe, measure_source
from dinov2_hf.features import FeatureExtractor
from dinov2_hf.weights.preprocessor import transform_of

RAMP = np.linspace(0, 4095, 40 * 60).reshape(40, 60).astype(np.uint16)
SIZES = ["crops.global_size=28", "crops.local_size=14", "crops.num_local=1"]


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_bits_say_which_value_is_white(bits, encode):
    values = (RAMP.astype(np.uint32) * (2**bits - 1) // 4095).astype(np.uint16)
    pixels, _ = open_image(encode(values), 3, Decoding(bits)).decode()
    np.testing.assert_array_equal(pixels, np.repeat((values >> (bits - 8))[None], 3, axis=0))
    pixels, _ = open_image(encode(values), 1, Decoding(bits)).decode()
    np.testing.assert_allclose(pixels[0].numpy(), values / (2**bits - 1), atol=1e-6)


def test_values_beyond_the_bits_are_broken(encode):
    with pytest.raises(BrokenImage, match="the value 4096 has more bits than data.bits=12"):
        open_image(encode(RAMP + np.uint16(1)), 3, Decoding(12)).decode()


def test_pgm_states_its_range_so_that_bits_do_not_scale_it_again():
    data = b"P5 60 40 4095\n" + RAMP.astype(">u2").tobytes()
    for bits in (12, 16):
        pixels, _ = open_image(data, 1, Decoding(bits)).decode()
        np.testing.assert_allclose(pixels[0].numpy(), RAMP / 4095, atol=1e-4)


def test_colours_of_sixteen_bits_are_broken_where_bits_would_scale_them(encode):
    data = b"P6 2 2 65535\n" + bytes(24)
    assert open_image(data, 3, Decoding(12)).decode()[0].shape == (3, 2, 2)  # PPM states its range
    png = io.BytesIO()
    write_png16(png)
    assert open_image(png.getvalue(), 3).decode()[0].flatten().tolist() == [0x12, 0x56, 0x9A]
    with pytest.raises(BrokenImage, match="upper byte, so that data.bits=12 cannot scale them"):
        open_image(png.getvalue(), 3, Decoding(12)).decode()


def write_png16(file):
    """One pixel of three channels of 16 bits."""
    import zlib

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (1).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    row = b"\0" + bytes.fromhex("123456789abc")
    file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b""))


@pytest.fixture
def folder(tmp_path, encode, photograph):
    """Three pictures of 12 bits in 16, one that uses 16, and one of 8."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(RAMP - np.uint16(number * 100) * (RAMP > 1000)))
    (tmp_path / "deep.png").write_bytes(encode(RAMP * np.uint16(16)))
    (tmp_path / "plain.png").write_bytes(encode(photograph(40, 60)))
    return tmp_path


def statistics(folder, *overrides):
    config = load_config(None, [f"data.train.path={folder}", *SIZES, *overrides], DINOv2RunConfig)
    found = measure_source(config, 100, 0)
    return found, describe(found, config, 0)


def test_statistics_count_pictures_of_sixteen_bits_and_name_the_key_that_scales_them(folder):
    found, text = statistics(folder)
    assert (found.num_images, found.deep, found.shallow) == (5, 4, 3)
    assert "4 images (80%) have 16 bits a channel and keep their upper 8" in text
    assert "open them with dinov2_hf.data.load_image" in text
    assert "3 of them use 12 bits or fewer and are nearly black; the others use up to 16" in text
    (folder / "deep.png").unlink()
    assert "use 12 bits or fewer and are nearly black; set data.bits=12" in statistics(folder)[1]
    found, text = statistics(folder, "data.bits=12")
    assert found.shallow == 0 and "scaled by data.bits=12" in text and "nearly black" not in text


def test_statistics_are_of_the_scaled_pixels(folder):
    (folder / "deep.png").unlink()
    (folder / "plain.png").unlink()
    dark, bright = (statistics(folder, f"data.bits={bits}")[0].mean[0] for bits in (16, 12))
    assert abs(bright - 0.5) < 0.05 and abs(dark * 16 - bright) < 0.08


@pytest.mark.parametrize("bits", [12, 16])
def test_stock_pipeline_with_our_loader_gives_our_features(bits, tmp_path, encode):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 8, "image_size": 32}
    model = Dinov2Model(Dinov2Config(**shape, layerscale_value=1.0))
    transform = EvalTransform(36, 32, [0.5] * 3, [0.2] * 3, Decoding(bits))
    model.save_pretrained(tmp_path / "export")
    (tmp_path / "export" / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(transform)))
    values = RAMP if bits == 12 else RAMP * np.uint16(16)
    (tmp_path / "deep.png").write_bytes(encode(values))

    backbone = FeatureExtractor.of(model, transform)
    pixels = torch.from_numpy(transform.pixels((tmp_path / "deep.png").read_bytes())[None].copy())
    ((cls, _),) = backbone.features(transform.normalize(pixels), 1)
    extract = pipeline("image-feature-extraction", model=str(tmp_path / "export"), device="cpu")
    found = torch.tensor(extract(load_image(tmp_path / "deep.png", bits)))[0, :1]
    torch.testing.assert_close(found, cls, atol=1e-5, rtol=1e-5)
    clipped = torch.tensor(extract(Image.open(tmp_path / "deep.png")))[0, :1]
    assert torch.cosine_similarity(clipped, cls).item() < 0.99


def test_bits_travel_with_a_preprocessor_and_leave_that_of_others_as_it_was():
    config = load_config(None, ["data.train.path=/x", "data.bits=12"], DINOv2RunConfig)
    transform = evaluation_transform(config)
    settings = preprocessor_config(transform)
    assert settings["bits"] == 12 and transform_of(settings, 3, 224, "it").decoding.bits == 12
    assert not evaluation_transform(
        load_config(None, ["data.train.path=/x", "data.truncated_jpegs=true"], DINOv2RunConfig)
    ).decoding.truncated_jpegs
    plain = dataclasses.replace(transform, decoding=Decoding())
    assert "bits" not in preprocessor_config(plain) and "bits=12" not in repr(plain) and "bits=12" in repr(transform)


def test_our_loader_gives_the_pixels_that_training_decodes(encode, photograph):
    for data in (encode(photograph(40, 60), "JPEG"), encode(photograph(40, 60).convert("CMYK"), "TIFF"), encode(RAMP)):
        expected = open_image(data).decode()[0].permute(1, 2, 0).numpy()
        image = load_image(data)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("bits", [7, 17])
def test_bits_outside_of_eight_to_sixteen_are_refused(bits):
    with pytest.raises(ValueError, match=rf"data.bits={bits} is not in \[8, 16\]"):
        load_config(None, ["data.train.path=/x", f"data.bits={bits}"], DINOv2RunConfig)
