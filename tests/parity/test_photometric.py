"""Against values recorded from torchvision on the published transform's operations: 2/255, hue 4/255."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov2_hf.data import photometric

GOLDEN = load_file(Path(__file__).parent / "data" / "photometric.safetensors")
OPERATIONS = {
    "brightness": photometric.adjust_brightness,
    "contrast": photometric.adjust_contrast,
    "saturation": photometric.adjust_saturation,
    "hue": photometric.adjust_hue,
    "gaussian": photometric.gaussian_blur,
    "grayscale": photometric.to_grayscale,
    "solarize": photometric.solarize,
}


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - {"images_uint8"}))
def test_colour_operation_equals_the_recorded_one(name):
    images = GOLDEN["images_uint8"].float() / 255
    operation, *_, value = name.split("_") if "_" in name else (name, None)
    if operation == "normalized":
        result = photometric.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    elif operation in ("grayscale", "solarize"):
        result = OPERATIONS[operation](images)
    else:
        result = OPERATIONS[operation](images, torch.full((len(images), 1, 1, 1), float(value)))
    tolerance = (4 if operation == "hue" else 2) / 255
    assert (result - GOLDEN[name]).abs().max().item() <= tolerance
