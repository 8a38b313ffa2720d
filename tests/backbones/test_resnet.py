"""The residual network that DINO trains: the published code's features, files of the stock class, initialisation."""

import json
import subprocess
import sys

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from dinov2_hf.backbones import ResNetConfig, ResNetModel, find_family
from dinov2_hf.config import RESNET_PRESETS, ResNetModelConfig

KINDS = {
    "basic": {"layer_type": "basic", "depths": [2, 1], "hidden_sizes": [8, 16], "embedding_size": 8},
    "bottleneck": {"layer_type": "bottleneck", "depths": [1, 2], "hidden_sizes": [16, 16], "embedding_size": 8},
}


def make(kind="bottleneck", **settings):
    """A network whose running statistics are not those of a fresh one."""
    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig(**KINDS[kind] | settings))
    for _ in range(2):
        model(torch.randn(4, model.config.num_channels, 32, 32) * 2 + 1)
    return model.eval()


STOCK = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ResNetModel
assert "dinov2_hf" not in sys.modules
model, report = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert isinstance(model, ResNetModel), type(model)
assert not report["missing_keys"] and not report["unexpected_keys"], report
found = {}
for name, pixels in load_file(sys.argv[2]).items():
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
    found |= {f"{name}.pooled": output.pooler_output, f"{name}.map": output.last_hidden_state}
    found |= {f"{name}.{index}": value for index, value in enumerate(output.hidden_states[:-1])}
save_file(found, sys.argv[3])
"""


@pytest.mark.parametrize("kind", KINDS)
def test_stock_class_gives_the_features_of_an_export_at_every_size(kind, tmp_path):
    """In a process that cannot import the package."""
    model = make(kind, num_channels=4)
    model.save_pretrained(tmp_path / "export")
    pixels = {"square": torch.randn(2, 4, 32, 32), "odd": torch.randn(2, 4, 27, 41)}
    save_file(pixels, tmp_path / "pixels.safetensors")
    arguments = [str(tmp_path / name) for name in ("export", "pixels.safetensors", "features.safetensors")]
    subprocess.run([sys.executable, "-I", "-c", STOCK, *arguments], check=True)
    found = load_file(tmp_path / "features.safetensors")
    with torch.no_grad():
        for name, images in pixels.items():
            output = model(images, output_hidden_states=True)
            (features,) = model.features(images)
            expected = {"pooled": output.pooler_output, "map": output.last_hidden_state}
            expected |= {str(index): value for index, value in enumerate(output.hidden_states[:-1])}
            for part, value in expected.items():
                torch.testing.assert_close(found[f"{name}.{part}"], value, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(features.cls, output.pooler_output[:, :, 0, 0], atol=1e-6, rtol=1e-6)
            assert torch.equal(features.patches, output.last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_files_of_the_stock_class_are_read(kind, first, inside, tmp_path):
    torch.manual_seed(0)
    config = hf.ResNetConfig(**KINDS[kind], downsample_in_first_stage=first, downsample_in_bottleneck=inside)
    stock = hf.ResNetForImageClassification(config)
    stock(torch.randn(4, 3, 64, 64))
    stock.eval().save_pretrained(tmp_path)
    model = ResNetModel.from_pretrained(tmp_path).eval()
    assert model.stride == (16 if first else 8)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = stock.resnet(pixels)
        torch.testing.assert_close(model(pixels).last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", RESNET_PRESETS)
def test_tensors_of_a_preset_are_those_of_the_stock_class(preset):
    with torch.device("meta"):
        ours = find_family("resnet").build(ResNetModelConfig(preset=preset), 224, 0.0)
        stock = hf.ResNetModel(hf.ResNetConfig(**RESNET_PRESETS[preset]))
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (ours, stock)]
    assert shapes[0] == shapes[1]
    assert ours.stride == ResNetModelConfig(preset=preset).stride == 32


def test_initialisation_is_that_of_torchvision():
    """Kaiming's normal over outputs for convolutions; the last gain of a block is 1, as all others, and not 0."""
    model = find_family("resnet").build(ResNetModelConfig(preset="resnet18"), 224, 0.0)
    first = model.embedder.embedder
    assert first.convolution.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    last = model.encoder.stages[3].layers[1].layer[1]
    assert last.convolution.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    state = model.state_dict()
    assert all((value == 1).all() for name, value in state.items() if name.endswith("normalization.weight"))
    assert all((value == 1).all() for name, value in state.items() if name.endswith("running_var"))
    assert all(
        (value == 0).all() for name, value in state.items() if name.endswith(("bias", "running_mean", "tracked"))
    )


def test_features_of_several_stages_are_refused_and_hidden_states_are_not():
    model = make()
    with pytest.raises(ValueError, match=r"layers=2, and ResNetModel gives the features of its last stage only"):
        model.features(torch.randn(1, 3, 32, 32), layers=2)
    with pytest.raises(ValueError, match="layers=3 of a model of 2 blocks"):
        model.features(torch.randn(1, 3, 32, 32), layers=3)
    maps = model(torch.randn(1, 3, 32, 32), output_hidden_states=True).hidden_states
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 8, 8), (16, 8, 8), (16, 4, 4)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_path_rate": 0.1}, "drop_path_rate=0.1, and a ResNet has no stochastic depth; set 0"),
        ({"preset": "resnet20"}, "preset='resnet20' is not one of tiny, resnet18"),
        ({"depths": [1, 2]}, "must have a value for each stage"),
        ({"hidden_sizes": [256, 512, 1024, 2046]}, "multiples of 4"),
        ({"depths": [3, 4, 6, 0]}, "model.depths has 0"),
        ({"embedding_size": 10**6}, "model.embedding_size has 1000000"),
        ({"gradient_checkpointing": True, "compile": True}, "count every batch twice"),
    ],
)
def test_impossible_sections_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ResNetModelConfig(**settings).check()


@pytest.mark.parametrize(
    "settings",
    [
        {"depths": [10**9] * 4},
        {"hidden_sizes": [1, 2]},
        {"layer_type": "dense"},
        {"num_channels": 10**9},
        {"depths": []},
    ],
)
def test_config_of_a_stranger_that_no_model_has_is_refused(settings, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", **settings}))
    with pytest.raises(ValueError):
        ResNetConfig.from_pretrained(tmp_path)
