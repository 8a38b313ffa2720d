"""Values recorded from the published code (data/README.md) survive every format: 1e-5 in torch, 1e-4 in onnxruntime."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel

from dinov2_hf.weights import export_source, open_weights

from ..weights.timm_twin import timm_forward

DATA = Path(__file__).parent / "data"
SUFFIX = {"hf": "", "original": ".pth", "timm": ".safetensors", "onnx": ".onnx"}
SIZES = ("native", "small", "wide", "tall")
close = dict(atol=1e-5, rtol=1e-4)


@pytest.fixture(params=["backbone_mlp", "backbone_swiglu_reg4"])
def golden(request, tmp_path):
    """Recorded tensors, the weights in a file as the published code saves them, and the architecture."""
    path = DATA / f"{request.param}.safetensors"
    with safe_open(path, "pt") as file:
        architecture = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    weights = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    torch.save(weights, tmp_path / "published.pth")
    return tensors, weights, tmp_path / "published.pth", architecture


def export(golden, tmp_path, format):
    output = tmp_path / f"model{SUFFIX[format]}"
    export_source(str(golden[2]), output, format, num_attention_heads=golden[3]["num_heads"])
    return output


def assert_published(tokens, recorded, size, registers, **tolerance):
    torch.testing.assert_close(tokens[:, 0], recorded[f"{size}.x_norm_clstoken"], **tolerance)
    torch.testing.assert_close(tokens[:, 1 + registers :], recorded[f"{size}.x_norm_patchtokens"], **tolerance)
    if registers:
        torch.testing.assert_close(tokens[:, 1 : 1 + registers], recorded[f"{size}.x_norm_regtokens"], **tolerance)


@pytest.mark.parametrize("format", [*list(SUFFIX)[:-1], pytest.param("onnx", marks=pytest.mark.slow)])
@torch.no_grad()
def test_every_format_keeps_the_published_features_at_every_size(golden, tmp_path, format):
    model = open_weights(str(export(golden, tmp_path, format))).build()
    for size in SIZES:
        tokens = model(golden[0][f"{size}.pixel_values"]).last_hidden_state
        assert_published(tokens, golden[0], size, golden[3]["num_register_tokens"], **close)
    masked = model(golden[0]["native.pixel_values"], bool_masked_pos=golden[0]["masked.masks"]).last_hidden_state
    torch.testing.assert_close(masked[:, 0], golden[0]["masked.x_norm_clstoken"], **close)


def test_onnxruntime_gives_the_published_features_at_every_size(golden, tmp_path):
    session = onnxruntime.InferenceSession(str(export(golden, tmp_path, "onnx")), providers=["CPUExecutionProvider"])
    for size in SIZES:
        tokens, pooled = session.run(None, {"pixel_values": golden[0][f"{size}.pixel_values"].numpy()})
        assert_published(
            torch.from_numpy(tokens), golden[0], size, golden[3]["num_register_tokens"], atol=1e-4, rtol=1e-4
        )
        recorded = golden[0][f"{size}.x_norm_clstoken"]
        torch.testing.assert_close(torch.from_numpy(pooled), recorded, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_timm_gives_the_published_features_where_it_has_the_published_rule(golden, tmp_path):
    """With registers at every size; without them at the size of the position embeddings."""
    state, architecture = load_file(export(golden, tmp_path, "timm")), golden[3]
    registers = architecture["num_register_tokens"]
    side = architecture["img_size"] // architecture["patch_size"]
    swiglu = architecture["ffn_layer"] == "swiglufused"
    for size in SIZES if registers else ("native",):
        pixels = golden[0][f"{size}.pixel_values"]
        tokens = timm_forward(state, pixels, architecture["num_heads"], (side, side), swiglu)
        assert_published(tokens, golden[0], size, registers, **close)


@torch.no_grad()
def test_stock_transformers_gives_the_published_features_where_it_has_the_published_rule(golden, tmp_path):
    model, registers = AutoModel.from_pretrained(export(golden, tmp_path, "hf")), golden[3]["num_register_tokens"]
    for size in SIZES if registers else ("native",):
        tokens = model.eval()(golden[0][f"{size}.pixel_values"]).last_hidden_state
        assert_published(tokens, golden[0], size, registers, **close)


@pytest.mark.parametrize("through", ["hf", "timm", pytest.param("onnx", marks=pytest.mark.slow)])
def test_published_file_comes_back_to_the_last_bit(golden, tmp_path, through):
    export_source(str(export(golden, tmp_path, through)), tmp_path / "back.pth", "original")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == golden[1].keys()
    assert [name for name in back if not torch.equal(back[name], golden[1][name])] == []
