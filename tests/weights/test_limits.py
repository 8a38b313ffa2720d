"""Files and configs that ask for more than any model has are refused in one line, before anything is made of them."""

import json
import zipfile

import onnx
import pytest
import torch
from transformers import Dinov2Config as StockConfig
from transformers import Dinov2Model as StockModel
from transformers import ViTConfig, ViTModel

from dinov2_hf import Dinov2Config
from dinov2_hf.backbones import load_stock_backbone
from dinov2_hf.config import load_config
from dinov2_hf.config.limits import LARGEST
from dinov2_hf.weights import inspect_path, open_weights, to_original, write_onnx, write_original
from dinov2_hf.weights import notes as notes_module


def refusal(path, act=open_weights):
    """The line with which a path is refused, by `open_weights` and by `inspect`."""
    with pytest.raises(ValueError) as caught:
        act(str(path))
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    rows = inspect_path(str(path)).splitlines()
    assert any(row.split()[0] == "why" for row in rows[1:])
    return message


# configs


CONFIGS = [
    ("num_hidden_layers", 10**7),
    ("num_hidden_layers", 10**400),
    ("hidden_size", 2**40),
    ("num_attention_heads", 2**40),
    ("image_size", 2**40),
    ("image_size", [224, 2**40]),
    ("patch_size", 2**40),
    ("num_channels", 2**40),
    ("num_register_tokens", 2**40),
    ("mlp_ratio", 1e300),
    ("num_labels", 10**9),
    ("vocab_size", 10**12),
]


@pytest.mark.parametrize("family", ["ours", "another"])
@pytest.mark.parametrize("key, value", CONFIGS, ids=[f"{key}-{index}" for index, (key, _) in enumerate(CONFIGS)])
def test_config_beyond_every_model_is_refused_naming_the_key(tmp_path, key, value, family):
    if family == "ours":
        StockModel(StockConfig(**TINY)).save_pretrained(tmp_path)
    else:
        ViTModel(ViTConfig(**TINY, intermediate_size=64)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    for act in (open_weights, lambda path: load_stock_backbone(path, f"SOURCE={path}")):
        message = refusal(tmp_path, act)
        assert f"has {key}=" in message and f"no model has more than {LARGEST[key]:,}" in message


TINY = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)


def test_limits_hold_in_sections_of_a_config(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": {"num_hidden_layers": 10**7}, "text_config": {}})
    )
    assert "has num_hidden_layers=10000000" in refusal(tmp_path)


@pytest.mark.parametrize("key, value", [("num_hidden_layers", 10**7), ("hidden_size", 2**40), ("num_labels", 10**9)])
def test_limits_hold_where_a_config_is_made(key, value):
    with pytest.raises(ValueError, match=f"Dinov2Config has {key}="):
        Dinov2Config(**{key: value})


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "num_register_tokens", "patch_size"])
def test_limits_hold_for_the_keys_of_a_run(key):
    with pytest.raises(ValueError, match=f"model has {key}=10000000, and no model has more than"):
        load_config(None, ["data.train.path=/images", f"model.{key}=10000000"])


@pytest.mark.parametrize("key, value", [("num_hidden_layers", 0), ("num_attention_heads", 0), ("hidden_size", "many")])
def test_config_that_no_model_can_have_is_refused(tmp_path, key, value):
    StockModel(StockConfig(**TINY)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    assert f"{key}={value!r} is not a whole number above 0" in refusal(tmp_path)


@pytest.mark.parametrize("write, name", [(write_original, "model.pth"), (write_onnx, "model.onnx")])
def test_limits_hold_in_the_notes_of_a_file(tiny, tmp_path, monkeypatch, write, name):
    packed = notes_module.Notes.pack

    def pack(notes):
        values = packed(notes)
        settings = json.loads(values["config.json"]) | {"num_hidden_layers": 10**7}
        return values | {"config.json": json.dumps(settings)}

    monkeypatch.setattr(notes_module.Notes, "pack", pack)
    write(tmp_path / name, tiny())
    assert "has num_hidden_layers=10000000" in refusal(tmp_path / name)


def test_number_of_a_block_in_a_file_is_not_taken_for_a_depth_without_limit(tiny, tmp_path):
    state = to_original(tiny().state_dict())
    torch.save(state | {"blocks.9999999.norm1.bias": torch.ones(48)}, tmp_path / "model.pth")
    assert "has num_hidden_layers=10000000" in refusal(tmp_path / "model.pth")


@pytest.mark.parametrize("change", [{"hidden_size": 65_536, "num_attention_heads": 1}, {"image_size": 2**20}])
def test_config_of_other_sizes_than_the_weights_is_refused_before_they_are_made(tmp_path, change):
    """Some 2^40 numbers would be drawn at random."""
    StockModel(StockConfig(**TINY)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert "do not fit the config.json beside them" in refusal(tmp_path)
    with pytest.raises(ValueError, match=r"the files hold [\d,]+ of the [\d,]+ numbers that config.json asks for"):
        load_stock_backbone(str(tmp_path), "distill.teacher=x")


# tensors


def big_in_safetensors(folder):
    header = {"x": {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}}
    text = json.dumps(header).encode()
    (path := folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    return path


def big_in_folder(folder):
    StockModel(StockConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4)).save_pretrained(folder / "big")
    big_in_safetensors(folder / "big")
    return folder / "big"


def big_view(folder):
    """One number, stretched."""
    torch.save({"x": torch.ones(1).expand(2**50)}, path := folder / "model.pth")
    return path


def big_view_of_old(folder):
    path = folder / "model.pth"
    torch.save({"x": torch.ones(1).expand(2**50)}, path, _use_new_zipfile_serialization=False)
    return path


def packed(folder):
    """Zeros, of which a thousand times as many fit into a file."""
    torch.save({"x": torch.zeros(2**20)}, folder / "plain.pth")
    with zipfile.ZipFile(folder / "plain.pth") as plain:
        with zipfile.ZipFile(path := folder / "model.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in plain.namelist():
                archive.writestr(name, plain.read(name))
    return path


@pytest.mark.parametrize("make", [big_in_safetensors, big_in_folder])
def test_safetensors_larger_than_their_file_are_refused_before_they_are_made(tmp_path, make):
    assert "cannot be read: Error while deserializing header" in refusal(make(tmp_path))


@pytest.mark.parametrize("make", [big_view, big_view_of_old, packed])
def test_pickled_tensors_larger_than_their_file_are_refused_before_they_are_made(tmp_path, make):
    assert " bytes, and the file has " in refusal(make(tmp_path))


def test_tensors_of_onnx_larger_than_their_file_are_refused_before_they_are_made(tiny, tmp_path):
    write_onnx(path := tmp_path / "model.onnx", tiny())
    model = onnx.load(path)
    tensor = next(each for each in model.graph.initializer if each.name == "layernorm.weight")
    tensor.dims[:] = [2**50]
    onnx.save(model, path)
    assert "names layernorm.weight of 4,503,599,627,370,496 bytes, and the file has " in refusal(path)
