"""Ours to another format and back: every tensor and every field of the config, to the last bit."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel

from dinov2_hf import Dinov2Config, Dinov2Model
from dinov2_hf.weights import Notes, open_weights, write_onnx, write_original, write_timm

PREPROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 3.0], "crop_size": {"height": 32, "width": 32}}
WRITERS = {
    "original": (write_original, "model.pth"),
    "timm": (write_timm, "model.safetensors"),
    "onnx": (write_onnx, "model.onnx"),
}
MODELS = [
    dict(num_register_tokens=0),
    dict(num_register_tokens=4),
    dict(num_register_tokens=0, use_swiglu_ffn=True, interpolate_offset=0.1, image_size=56),
    dict(num_register_tokens=4, use_swiglu_ffn=True, image_size=16, qkv_bias=False),
    dict(num_register_tokens=2, mlp_ratio=3, num_channels=5, drop_path_rate=0.3, interpolate_antialias=False),
]
NOT_SQUARE = [dict(image_size=[32, 56]), dict(image_size=[48, 16], patch_size=[8, 4], num_register_tokens=0)]


def fields(config):
    """What of a config says something of the model."""
    settings = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "architectures", "transformers_version", "dtype", "use_mask_token"):
        settings.pop(name, None)
    return settings


def assert_same(found, model):
    expected, state = model.state_dict(), found.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in expected if state[name].dtype != expected[name].dtype] == []
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []
    assert fields(found.config) == fields(model.config)


def cases():
    for settings in MODELS:
        yield from (("original", settings), ("timm", settings))
    for settings in NOT_SQUARE:
        yield "timm", settings
    for settings in (MODELS[2], MODELS[4], NOT_SQUARE[1]):  # tests/models/test_convert_onnx.py has others
        yield pytest.param("onnx", settings | {"num_hidden_layers": 1}, marks=pytest.mark.slow)


@pytest.mark.parametrize(("format", "settings"), cases())
def test_round_trip_is_exact(tiny, tmp_path, format, settings):
    model = tiny(**settings)
    write, name = WRITERS[format]
    write(tmp_path / name, model, PREPROCESSOR)
    weights = open_weights(str(tmp_path / name))
    assert_same(weights.build(), model)
    assert weights.preprocessor == PREPROCESSOR
    assert weights.knows_num_attention_heads and weights.remarks == []


@pytest.mark.parametrize("settings", [*MODELS[:4], NOT_SQUARE[0]])
def test_round_trip_through_the_stock_class_is_exact(tiny, tmp_path, settings):
    model = tiny(**settings)
    model.save_pretrained(tmp_path / "ours")
    stock = AutoModel.from_pretrained(tmp_path / "ours")
    assert type(stock).__module__.startswith("transformers.models.dinov2")
    stock.save_pretrained(tmp_path / "stock")
    assert_same(Dinov2Model.from_pretrained(tmp_path / "stock"), model)
    assert_same(open_weights(str(tmp_path / "stock")).build(), model)


def test_half_precision_survives_every_format_but_onnx_which_is_float32(tiny, tmp_path):
    model = tiny(num_hidden_layers=1).to(torch.bfloat16)
    for format, (write, name) in WRITERS.items():
        write(tmp_path / name, model)
        found = open_weights(str(tmp_path / name)).build()
        expected = tiny(num_hidden_layers=1).to(torch.bfloat16)
        assert_same(found, expected.float() if format == "onnx" else expected)
    assert model.dtype == torch.bfloat16


def test_chain_through_all_formats_is_exact(tiny, tmp_path):
    model = current = tiny(num_register_tokens=4, use_swiglu_ffn=True)
    for step, format in enumerate(("timm", "original", "timm", "onnx", "original")):
        write, name = WRITERS[format]
        write(tmp_path / f"{step}-{name}", current)
        current = open_weights(str(tmp_path / f"{step}-{name}")).build()
    assert_same(current, model)


def test_files_hold_no_names_beyond_those_of_their_format(tiny, tmp_path):
    """So that `load_state_dict` of the code that reads them is strict and still content."""
    model = tiny(num_register_tokens=4)
    write_original(tmp_path / "model.pth", model)
    names = torch.load(tmp_path / "model.pth", weights_only=True).keys()
    top = {"cls_token", "mask_token", "register_tokens", "pos_embed", "norm.weight", "norm.bias"}
    patch = {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name in names if not name.startswith("blocks.")} == top | patch
    write_timm(tmp_path / "model.safetensors", model)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    top = {"cls_token", "reg_token", "pos_embed", "norm.weight", "norm.bias"}
    assert {name for name in names if not name.startswith("blocks.")} == top | patch


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (dict(image_size=[32, 56]), "image_size=[32, 56] is not square, as the original code asks for"),
        (dict(patch_size=[8, 4]), "patch_size=[8, 4] is not square"),
        (dict(hidden_act="relu"), "hidden_act='relu', but the original code knows gelu alone"),
        (dict(layer_norm_eps=1e-5), "layer_norm_eps=1e-05, but the original code knows 1e-6 alone"),
    ],
)
def test_what_the_original_code_has_not_is_refused(tiny, tmp_path, settings, named):
    with pytest.raises(ValueError) as caught:
        write_original(tmp_path / "model.pth", tiny(**{"image_size": [32, 32], **settings}))
    assert named in str(caught.value) and "export to hf or onnx" in str(caught.value)
    assert not (tmp_path / "model.pth").exists()


def test_what_timm_has_not_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="hidden_act='relu', but timm's model knows gelu alone"):
        write_timm(tmp_path / "model.safetensors", tiny(hidden_act="relu"))
    write_timm(tmp_path / "model.safetensors", tiny(hidden_act="relu", use_swiglu_ffn=True))  # which has silu


@pytest.mark.parametrize("damage", ["{", "[]", '{"hidden_size": 10, "num_attention_heads": 3}'])
def test_damaged_notes_are_named(damage):
    with pytest.raises(ValueError, match="x.pth has damaged metadata .*; export it again"):
        Notes.unpack({"config.json": damage}, "x.pth")


def test_notes_of_nothing_are_empty():
    assert Notes.unpack(None, "x") == Notes.unpack({"format": "pt"}, "x") == Notes()
    config = Dinov2Config.preset("small", num_register_tokens=4)
    assert fields(Notes.unpack(Notes(config).pack(), "x").config) == fields(config)
