"""Folders written here load in stock transformers with nothing of ours installed, and the other way round."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Dinov2WithRegistersBackbone, Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers import Dinov2Backbone as StockBackbone
from transformers import Dinov2Config as StockConfig
from transformers import Dinov2ForImageClassification as StockForImageClassification
from transformers import Dinov2Model as StockModel
from transformers import Dinov2WithRegistersForImageClassification as StockWithRegistersForImageClassification

from dinov2_hf import Dinov2Backbone, Dinov2Config, Dinov2ForImageClassification, Dinov2Model
from dinov2_hf.backbones import PRESETS
from dinov2_hf.data import EvalTransform, preprocessor_config

SIZES = [(224, 224), (98, 98), (518, 518), (224, 280)]

# runs where `dinov2_hf` cannot be imported: writes the stock model's features of every input beside the folder
STOCK_PROCESS = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dinov2_hf":
            raise ImportError("dinov2_hf is not here")

sys.meta_path.insert(0, Refuse())
try:
    import dinov2_hf
    raise SystemExit("dinov2_hf could be imported")
except ImportError:
    pass

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline

for folder in sys.argv[1:]:
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.models.dinov2"), type(model)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        inputs = load_file(f"{folder}/inputs.safetensors")
        outputs = {name: model(pixels).last_hidden_state for name, pixels in inputs.items()}
    extractor = pipeline("image-feature-extraction", model=folder)
    outputs["pipeline"] = torch.tensor(extractor(f"{folder}/image.png"))
    save_file(outputs, f"{folder}/outputs.safetensors")
"""


def shake(model):
    """Random LayerScale, tokens and biases, so that every tensor shows in the features."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda1" in name:
                parameter.uniform_(0.2, 0.6, generator=generator)
            elif parameter.ndim < 3 and "weight" not in name or "token" in name:
                parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


@pytest.mark.parametrize("registers", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_stock_class_gives_our_features_in_a_process_without_us(tmp_path, registers):
    """S, B, L and g widths, two layers each, at four input sizes; and the pipeline, through the image processor."""
    rng = np.random.default_rng(0)
    transform = EvalTransform(256, 224, [0.5, 0.45, 0.4], [0.2, 0.25, 0.3])
    folders, expected = [], {}
    for preset in ("small", "base", "large", "giant"):
        torch.manual_seed(0)
        config = Dinov2Config.preset(preset, num_hidden_layers=2, num_register_tokens=registers, image_size=518)
        model = shake(Dinov2Model(config))
        folder = tmp_path / preset
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(transform)))
        Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(folder / "image.png")
        inputs = {f"{height}x{width}": torch.randn(1, 3, height, width) for height, width in SIZES}
        save_file(inputs, folder / "inputs.safetensors")
        with torch.no_grad():
            expected[folder] = {name: model(pixels).last_hidden_state for name, pixels in inputs.items()}
            pixels = torch.from_numpy(transform.pixels((folder / "image.png").read_bytes()).copy())
            expected[folder]["pipeline"] = model(transform.normalize(pixels[None])).last_hidden_state
        folders.append(folder)

    done = subprocess.run([sys.executable, "-c", STOCK_PROCESS, *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder in folders:
        outputs = load_file(folder / "outputs.safetensors")
        assert outputs.keys() == expected[folder].keys()
        for name, tokens in outputs.items():
            difference = (tokens - expected[folder][name]).abs().max().item()
            assert difference <= 1e-5, f"{folder.name} {name}: {difference}"


@pytest.mark.parametrize(("registers", "swiglu"), [(0, False), (0, True), (4, False), (4, True)])
def test_we_load_what_the_stock_class_saves(tmp_path, registers, swiglu):
    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14)
    if registers:
        config = Dinov2WithRegistersConfig(**shape, use_swiglu_ffn=swiglu, num_register_tokens=registers)
        stock = Dinov2WithRegistersModel(config)
    else:
        stock = StockModel(StockConfig(**shape, use_swiglu_ffn=swiglu))
    shake(stock).save_pretrained(tmp_path)
    model, info = Dinov2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for size in ((56, 56), (28, 28), (56, 84)):
        pixels = torch.randn(2, 3, *size)
        with torch.no_grad():
            ours, theirs = model(pixels).last_hidden_state, stock(pixels).last_hidden_state
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("registers", [0, 4])
def test_file_holds_the_names_and_type_of_the_published_checkpoints(tmp_path, registers):
    config = Dinov2Config.preset("tiny", num_hidden_layers=1, num_register_tokens=registers, use_swiglu_ffn=True)
    Dinov2Model(config).save_pretrained(tmp_path)
    layer = "encoder.layer.0."
    expected = {
        "embeddings.cls_token",
        "embeddings.mask_token",
        "embeddings.position_embeddings",
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.projection.bias",
        "layernorm.weight",
        "layernorm.bias",
        f"{layer}layer_scale1.lambda1",
        f"{layer}layer_scale2.lambda1",
    }
    for part in ("norm1", "norm2", "attention.output.dense", "mlp.weights_in", "mlp.weights_out"):
        expected |= {f"{layer}{part}.weight", f"{layer}{part}.bias"}
    for part in ("query", "key", "value"):
        expected |= {f"{layer}attention.attention.{part}.weight", f"{layer}attention.attention.{part}.bias"}
    if registers:
        expected.add("embeddings.register_tokens")
    assert load_file(tmp_path / "model.safetensors").keys() == expected
    written = json.loads((tmp_path / "config.json").read_text())
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    assert written["model_type"] == ("dinov2_with_registers" if registers else "dinov2")
    assert written["architectures"] == [f"{name}Model"]


@pytest.mark.parametrize("registers", [0, 4])
def test_classifier_travels_both_ways(tmp_path, registers):
    config = Dinov2Config.preset(
        "tiny", num_hidden_layers=2, num_register_tokens=registers, num_labels=7, image_size=56
    )
    ours = shake(Dinov2ForImageClassification(config))
    ours.save_pretrained(tmp_path / "ours")
    stock_class = StockWithRegistersForImageClassification if registers else StockForImageClassification
    stock, info = stock_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    stock.save_pretrained(tmp_path / "stock")
    again, info = Dinov2ForImageClassification.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels, labels = torch.randn(3, 3, 56, 56), torch.tensor([0, 3, 6])
    with torch.no_grad():
        outputs = [model(pixels, labels=labels) for model in (ours, stock.eval(), again.eval())]
    for output in outputs[1:]:
        torch.testing.assert_close(output.logits, outputs[0].logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.loss, outputs[0].loss, atol=1e-5, rtol=0)


@pytest.mark.parametrize("registers", [0, 4])
def test_backbone_gives_the_stock_feature_maps(tmp_path, registers):
    config = Dinov2Config.preset("tiny", num_hidden_layers=3, num_register_tokens=registers, image_size=56)
    shake(Dinov2Model(config)).save_pretrained(tmp_path)
    stages = ["stem", "stage2", "stage3"]
    ours = Dinov2Backbone.from_pretrained(tmp_path, out_features=stages).eval()
    stock_class = Dinov2WithRegistersBackbone if registers else StockBackbone
    stock = stock_class.from_pretrained(tmp_path, out_features=stages).eval()
    pixels = torch.randn(2, 3, 56, 84)
    with torch.no_grad():
        maps, expected = ours(pixels).feature_maps, stock(pixels).feature_maps
    assert [list(m.shape) for m in maps] == [[2, 192, 4, 6]] * 3
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_auto_classes_give_ours_for_our_config_and_stock_for_folders(tmp_path):
    config = Dinov2Config.preset("tiny", num_hidden_layers=1, num_register_tokens=2)
    model = AutoModel.from_config(config)
    assert type(model) is Dinov2Model
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is Dinov2WithRegistersModel


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"tiny"}))
def test_presets_have_the_published_sizes(name):
    with torch.device("meta"):
        model = Dinov2Model(Dinov2Config.preset(name, image_size=518, num_register_tokens=0))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    published = {"small": 22.1, "base": 86.6, "large": 304.4, "giant": 1136.5}
    assert millions == pytest.approx(published[name], rel=0.02)


def test_foreign_model_type_is_refused(tmp_path):
    Path(tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 64}))
    with pytest.raises(ValueError, match="model_type='vit'.*dinov2"):
        Dinov2Config.from_pretrained(tmp_path)


def test_pickled_weights_are_not_opened(tmp_path):
    model = Dinov2Model(Dinov2Config.preset("tiny", num_hidden_layers=1))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        Dinov2Model.from_pretrained(tmp_path)
