"""The pixels that a foreign preprocessor gives, field by field, against the Pillow processors of transformers."""

import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from dinov2_hf.config.evaluations import KnnEvaluation
from dinov2_hf.data import EvalTransform, preprocessor_config
from dinov2_hf.evaluation import Evaluation
from dinov2_hf.features import FeatureExtractor
from dinov2_hf.weights import open_weights
from dinov2_hf.weights.preprocessor import colors_of, transform_of

SQUARE, SHORT = {"height": 48, "width": 48}, {"shortest_edge": 48}
CASES = {
    "vit squeezes, bilinear": ("ViTImageProcessor", {"size": SQUARE}),
    "not square": ("ViTImageProcessor", {"size": {"height": 32, "width": 64}}),
    "nearest": ("ViTImageProcessor", {"size": SQUARE, "resample": 0}),
    "lanczos": ("ViTImageProcessor", {"size": SQUARE, "resample": 1}),
    "box": ("ViTImageProcessor", {"size": SQUARE, "resample": 4}),
    "not normalised": ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False}),
    "not rescaled": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "image_mean": [127.5] * 3}),
    "neither": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "do_normalize": False}),
    "other factor": ("ViTImageProcessor", {"size": SQUARE, "rescale_factor": 1 / 127.5}),
    "one mean for all channels": ("ViTImageProcessor", {"size": SQUARE, "image_mean": 0.4, "image_std": 0.3}),
    "clip": ("CLIPImageProcessor", {"size": SHORT, "crop_size": {"height": 40, "width": 40}}),
    "crop that is not square": ("CLIPImageProcessor", {"size": SHORT, "crop_size": {"height": 40, "width": 24}}),
    "sizes as numbers": ("CLIPImageProcessor", {"size": 48, "crop_size": 40}),
    "crop beyond the image": ("CLIPImageProcessor", {"size": SHORT, "crop_size": {"height": 65, "width": 72}}),
    "crop without resize": ("CLIPImageProcessor", {"do_resize": False, "crop_size": {"height": 56, "width": 56}}),
    "squeezed, then cropped": ("BitImageProcessor", {"size": SQUARE, "crop_size": {"height": 32, "width": 32}}),
    "beit": ("BeitImageProcessor", {"size": SQUARE, "do_center_crop": False}),
    "siglip": ("SiglipImageProcessor", {"size": SQUARE}),
    "small convnext": ("ConvNextImageProcessor", {"size": SHORT}),
    "convnext with another share": ("ConvNextImageProcessor", {"size": SHORT, "crop_pct": 0.8}),
    "large convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "fast": ("ViTImageProcessorFast", {"size": SQUARE}),
    "feature extractor": ("ViTFeatureExtractor", {"size": 48}),
    "class only": ("DeiTImageProcessor", {}),
}


def encode(width, height, seed=0, kind="PNG"):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def stock(kind, fields):
    kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    return getattr(transformers, f"{kind}Pil")(**fields)


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (131, 97), (40, 30)])
@pytest.mark.parametrize("kind, fields", CASES.values(), ids=CASES)
def test_pixels_are_those_of_the_processor_of_the_model(kind, fields, size):
    data = encode(*size)
    expected = stock(kind, fields)(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]
    transform = transform_of({"image_processor_type": kind, **fields}, 3, 48, "model")
    found = transform.normalize(torch.from_numpy(transform.pixels(data).copy())[None])
    assert found.shape == expected.shape
    # one rounding in float32, where values are large one of 2 ** -16
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("size", [(100, 75), (40, 30)])
def test_crop_of_the_short_side_stands_for_images_of_many_shapes(size):
    """The processor keeps their aspect ratio, so that they cannot be batched: the centre of its pixels is taken."""
    data = encode(*size)
    settings = {"image_processor_type": "CLIPImageProcessor", "size": SHORT, "do_center_crop": False}
    whole = stock("CLIPImageProcessor", settings | {"do_center_crop": False})(Image.open(io.BytesIO(data)))
    transform = transform_of(settings, 3, 48, "model")
    found = transform.normalize(torch.from_numpy(transform.pixels(data).copy())[None])[0]
    left = (whole["pixel_values"][0].shape[2] - 48) // 2
    torch.testing.assert_close(found, torch.tensor(whole["pixel_values"][0][:, :, left : left + 48]).float())


def test_images_that_are_neither_resized_nor_cropped_keep_their_pixels():
    settings = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    data = encode(48, 48)
    transform = transform_of(settings, 3, 48, "model")
    expected = stock("ViTImageProcessor", settings)(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]
    assert transform.size == (48, 48)
    torch.testing.assert_close(
        transform.normalize(torch.from_numpy(transform.pixels(data).copy())[None]), expected, rtol=1e-6, atol=2e-6
    )


def test_grey_images_are_resized_by_the_filter_of_the_preprocessor():
    settings = {"image_processor_type": "ViTImageProcessor", "size": SQUARE, "image_mean": [0.5], "image_std": [0.25]}
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encode(100, 75))).convert("L").save(buffer, "PNG")
    expected = stock("ViTImageProcessor", settings)(Image.open(buffer), return_tensors="pt")["pixel_values"]
    transform = transform_of(settings, 1, 48, "model")
    found = transform.normalize(torch.from_numpy(transform.pixels(buffer.getvalue()).copy())[None])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_processor_type": "MobileViTImageProcessor"}, "do_flip_channel_order=True: evaluation does not follow"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "evaluation does not follow it"),
        ({"image_processor_type": "PoolFormerImageProcessor"}, "crop_pct=0.9: evaluation does not follow it"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "Perceiver.*evaluation does not follow it"),
        (
            {"size": {"shortest_edge": 8, "longest_edge": 9}, "do_normalize": False},
            "give shortest_edge, or height and width",
        ),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "size=None: give shortest_edge"),
        ({"size": 8}, "image_mean=None: give 3 values, or do_normalize=false"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        transform_of(settings, 3, 224, "/my/model")
    assert "\n" not in str(refused.value) and "preprocessor_config.json of /my/model" in str(refused.value)


def test_colours_of_the_usual_rescale_are_the_ones_in_the_file():
    settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255}
    assert colors_of(settings, 3, "model") == (settings["image_mean"], settings["image_std"])


@pytest.mark.parametrize(
    "transform",
    [
        EvalTransform(40, 32, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        EvalTransform((40, 48), (32, 40), [0.1], [0.4], resample=2),
        EvalTransform(0, 32, [0.1] * 3, [0.4] * 3),
    ],
)
def test_transform_survives_its_own_preprocessor(transform):
    assert transform_of(preprocessor_config(transform), len(transform.mean), 224, "model") == transform


def test_text_of_a_transform_is_that_under_which_features_lie_on_disk():
    text = "EvalTransform(resize_size=256, crop_size=224, mean=(0.5,), std=(0.2,), decoding=Decoding("
    assert repr(EvalTransform(256, (224, 224), [0.5], [0.2])).startswith(text)
    assert "resample" not in repr(EvalTransform(256, 224, [0.5], [0.2]))
    assert "resample=2" in repr(EvalTransform(256, 224, [0.5], [0.2], resample=2))


@pytest.mark.parametrize("text", ["{broken", '{"image_processor_type": "NothingProcessor"}'])
def test_preprocessor_that_cannot_be_read_is_refused_and_not_left_out(text, tmp_path):
    transformers.ViTMSNConfig(image_size=32).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match="has a preprocessor that cannot be read.*fetch or export it again"):
        open_weights(str(tmp_path))


@pytest.mark.parametrize(
    "keys, resize, crop",
    [
        ({}, (32, 64), (32, 64)),
        ({"crop_size": 48}, 48, (48, 48)),
        ({"crop_size": 112}, 128, (112, 112)),
        ({"crop_size": 48, "resize_size": 50}, 50, (48, 48)),
        ({"resize_size": 80}, 80, (32, 64)),
    ],
)
def test_sizes_of_an_evaluation_take_precedence_over_the_preprocessor(keys, resize, crop):
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 64}}
    own = transform_of(settings, 3, 224, "model")
    backbone = FeatureExtractor(len, own, 8, 16, 1, torch.device("cpu"))
    transform = Evaluation(backbone, KnnEvaluation(**keys), None).transform
    assert (transform.resize_size, transform.size, transform.resample) == (resize, crop, own.resample)


def test_own_size_that_the_patch_does_not_divide_is_refused_with_what_to_use():
    own = transform_of({"image_processor_type": "ViTImageProcessor", "size": SQUARE}, 3, 224, "model")
    backbone = FeatureExtractor(len, own, 8, 14, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match="crop_size=48 is not a multiple.*use 42 or 56"):
        _ = Evaluation(backbone, KnnEvaluation(), None).transform


@pytest.mark.parametrize("resample, mean", [(0, 0), (1, 0), (2, 1), (3, 1), (4, 0)])
def test_large_photographs_are_decoded_at_reduced_scale_for_smooth_filters_only(resample, mean):
    """In steps of 8 bits: 0.5 on average are measured for the two, and nothing for the others."""
    data, fields = encode(801, 604, kind="JPEG"), {"size": SQUARE, "resample": resample}
    expected = stock("ViTImageProcessor", fields)(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]
    transform = transform_of({"image_processor_type": "ViTImageProcessor", **fields}, 3, 48, "model")
    found = transform.normalize(torch.from_numpy(transform.pixels(data).copy())[None])
    assert (found - expected).abs().mean() * 127.5 <= mean + 1e-4
