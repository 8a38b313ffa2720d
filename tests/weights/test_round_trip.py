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
MODELS_OF_VIT = [
    dict(),
    dict(use_mask_token=True, interpolate_offset=0.1),
    dict(layer_norm_eps=1e-12, intermediate_size=100, qkv_bias=False, num_channels=5, interpolate_antialias=True),
]
NOT_SQUARE = [dict(image_size=[32, 56]), dict(image_size=[48, 16], patch_size=[8, 4], num_register_tokens=0)]


def fields(config):
    """What of a config says something of the model."""
    settings = json.loads(config.to_json_string(use_diff=False))
    ignored = ["_name_or_path", "architectures", "transformers_version", "dtype"]
    if config.model_type == "dinov2":  # the stock class notes that all have one
        ignored.append("use_mask_token")
    for name in ignored:
        settings.pop(name, None)
    return settings


def assert_same(found, model):
    expected, state = model.state_dict(), found.state_dict()
    assert state.keys() == expected.keys()
    assert [name for name in expected if state[name].dtype != expected[name].dtype] == []
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []
    assert fields(found.config) == fields(model.config)


def cases():
    for family, models in (("dinov2", MODELS), ("vit", MODELS_OF_VIT)):
        for settings in models:
            yield from ((family, "original", settings), (family, "timm", settings))
    for family, settings in (("dinov2", NOT_SQUARE[0]), ("dinov2", NOT_SQUARE[1]), ("vit", dict(image_size=[32, 56]))):
        yield family, "timm", settings
    others = [("dinov2", settings) for settings in (MODELS[2], MODELS[4], NOT_SQUARE[1])]
    for family, settings in (*others, ("vit", MODELS_OF_VIT[1])):  # tests/weights/test_onnx.py has more
        yield pytest.param(family, "onnx", settings | {"num_hidden_layers": 1}, marks=pytest.mark.slow)


@pytest.mark.parametrize(("family", "format", "settings"), cases())
def test_round_trip_is_exact(tiny, tiny_vit, tmp_path, family, format, settings):
    model = {"dinov2": tiny, "vit": tiny_vit}[family](**settings)
    write, name = WRITERS[format]
    write(tmp_path / name, model, PREPROCESSOR)
    weights = open_weights(str(tmp_path / name))
    assert_same(weights.build(), model)
    assert weights.preprocessor == PREPROCESSOR
    assert weights.knows_num_attention_heads and weights.remarks == []


@pytest.mark.parametrize("untrained", [False, True])
def test_token_for_masked_patches_is_in_the_file_where_it_was_trained(tiny_vit, tmp_path, untrained):
    """iBOT's code reads one; DINO's, which has none, reads the file of a model that was never masked."""
    model = tiny_vit(use_mask_token=True)
    if untrained:
        torch.nn.init.zeros_(model.embeddings.mask_token)
    write_original(tmp_path / "model.pth", model)
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert ("masked_embed" in state) == (not untrained)
    assert untrained or state["masked_embed"].shape == (1, 48)
    assert_same(open_weights(str(tmp_path / "model.pth")).build(), model)


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


@pytest.mark.parametrize("family", ["dinov2", "vit"])
def test_chain_through_all_formats_is_exact(tiny, tiny_vit, tmp_path, family):
    if family == "vit":
        model = current = tiny_vit(use_mask_token=True, interpolate_offset=0.1)
    else:
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


@pytest.mark.parametrize("format", ["original", "timm"])
def test_files_of_the_family_vit_hold_the_names_of_the_published_ones(tiny_vit, tmp_path, format):
    """Those of `dino_deitsmall16_pretrain.pth`, which are also those of `vit_small_patch16_224.dino` in timm."""
    write, name = WRITERS[format]
    write(tmp_path / name, tiny_vit(num_hidden_layers=1))
    if format == "original":
        names = set(torch.load(tmp_path / name, weights_only=True))
    else:
        with safe_open(tmp_path / name, "pt") as file:
            names = set(file.keys())
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = {"patch_embed.proj", "norm", *(f"blocks.0.{module}" for module in block)}
    expected = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    assert names == expected | {"cls_token", "pos_embed"}


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
