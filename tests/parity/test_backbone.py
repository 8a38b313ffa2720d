"""Against values recorded from the published code (see data/README.md): atol 1e-5, rtol 1e-4."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dinov2_hf.weights import from_original, model_from_original, to_original

DATA = Path(__file__).parent / "data"
close = dict(atol=1e-5, rtol=1e-4)


@pytest.fixture(params=["backbone_mlp", "backbone_swiglu_reg4"])
def golden(request):
    path = DATA / f"{request.param}.safetensors"
    with safe_open(path, "pt") as file:
        architecture = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    weights = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    return tensors, weights, model_from_original(weights, num_attention_heads=architecture["num_heads"]), architecture


def test_configuration_is_read_off_the_weights(golden):
    _, _, model, architecture = golden
    config = model.config
    assert config.hidden_size == architecture["embed_dim"]
    assert config.num_hidden_layers == architecture["depth"]
    assert (config.patch_size, config.image_size) == (architecture["patch_size"], architecture["img_size"])
    assert config.num_register_tokens == architecture["num_register_tokens"]
    assert config.use_swiglu_ffn == (architecture["ffn_layer"] == "swiglufused")
    assert config.interpolate_antialias == architecture["interpolate_antialias"]
    assert config.interpolate_offset == architecture["interpolate_offset"]


@pytest.mark.parametrize("size", ["native", "small", "wide", "tall"])
@torch.no_grad()
def test_features_equal_the_published_code(golden, size):
    tensors, _, model, _ = golden
    pixels, registers = tensors[f"{size}.pixel_values"], model.config.num_register_tokens
    output = model(pixels, output_hidden_states=True)
    tokens = output.last_hidden_state
    torch.testing.assert_close(tokens[:, 0], tensors[f"{size}.x_norm_clstoken"], **close)
    torch.testing.assert_close(output.pooler_output, tensors[f"{size}.x_norm_clstoken"], **close)
    torch.testing.assert_close(tokens[:, 1 + registers :], tensors[f"{size}.x_norm_patchtokens"], **close)
    torch.testing.assert_close(output.hidden_states[-1], tensors[f"{size}.x_prenorm"], **close)
    if registers:
        torch.testing.assert_close(tokens[:, 1 : 1 + registers], tensors[f"{size}.x_norm_regtokens"], **close)


@pytest.mark.parametrize("size", ["native", "small", "wide", "tall"])
@torch.no_grad()
def test_intermediate_layers_equal_the_published_code(golden, size):
    tensors, _, model, _ = golden
    for index, (patches, cls) in enumerate(model.get_intermediate_layers(tensors[f"{size}.pixel_values"], 2)):
        torch.testing.assert_close(patches, tensors[f"{size}.intermediate.{index}.patch"], **close)
        torch.testing.assert_close(cls, tensors[f"{size}.intermediate.{index}.cls"], **close)


@torch.no_grad()
def test_masked_features_equal_the_published_code(golden):
    tensors, _, model, _ = golden
    tokens = model(tensors["native.pixel_values"], bool_masked_pos=tensors["masked.masks"]).last_hidden_state
    torch.testing.assert_close(tokens[:, 0], tensors["masked.x_norm_clstoken"], **close)
    patches = tokens[:, model.config.num_prefix_tokens :]
    torch.testing.assert_close(patches, tensors["masked.x_norm_patchtokens"], **close)


def test_conversion_round_trip_is_exact(golden):
    _, weights, model, _ = golden
    back = to_original(model.state_dict())
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("prefix", ["", "module.", "teacher.backbone."])
def test_chunked_and_wrapped_state_dicts_convert_alike(golden, prefix):
    _, weights, model, _ = golden

    def chunked(name):  # layer 2 of 3 in a second chunk keeps its global index
        if not name.startswith("blocks."):
            return prefix + name
        layer = name.split(".")[1]
        return f"{prefix}blocks.{1 if layer == '2' else 0}.{name.removeprefix('blocks.')}"

    converted = from_original({chunked(name): value for name, value in weights.items()})
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_original_file_is_loaded_without_unpickling_code(golden, tmp_path):
    _, weights, model, architecture = golden
    torch.save(weights, tmp_path / "original.pth")
    loaded = model_from_original(tmp_path / "original.pth", num_attention_heads=architecture["num_heads"])
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))

    torch.save({"weights": weights, "trap": torch.nn.Linear(1, 1)}, tmp_path / "trap.pth")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        model_from_original(tmp_path / "trap.pth")


def test_foreign_tensor_is_named(golden):
    _, weights, _, _ = golden
    with pytest.raises(ValueError, match="dino_head.mlp.0.weight.*backbone"):
        from_original(weights | {"dino_head.mlp.0.weight": torch.zeros(1)})
