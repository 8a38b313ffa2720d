"""The vision transformer of DINO and iBOT: the published code's features, files of the stock class, initialisation."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov2_hf.backbones import ViTConfig, ViTModel, find_family
from dinov2_hf.config import ViTModelConfig

from ..parity.published import Recording, vit_state


@pytest.fixture
def vit():
    def make(**settings):
        torch.manual_seed(0)
        defaults = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
        return ViTModel(ViTConfig(**defaults | {"image_size": 32, "patch_size": 8} | settings)).eval()

    return make


STOCK = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ViTModel
sys.modules["dinov2_hf"] = None  # which makes its import fail
model, report = AutoModel.from_pretrained(sys.argv[1], add_pooling_layer=False, output_loading_info=True)
assert isinstance(model, ViTModel), type(model)
assert not report["missing_keys"] and not report["unexpected_keys"], report
found = {}
for name, pixels in load_file(sys.argv[2]).items():
    with torch.no_grad():
        found[name] = model(pixels, interpolate_pos_encoding=True).last_hidden_state
save_file(found, sys.argv[3])
"""


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_stock_class_gives_the_features_of_an_export(vit, tmp_path, offset):
    """At every size with the rule of the stock class, else at the size of the position embeddings."""
    model = vit(interpolate_offset=offset)
    model.save_pretrained(tmp_path / "export")
    sizes = {"native": (32, 32), "wide": (24, 40), "small": (16, 16)}
    pixels = {name: torch.randn(2, 3, *size) for name, size in sizes.items()}
    save_file(pixels, tmp_path / "pixels.safetensors")
    arguments = [str(tmp_path / name) for name in ("export", "pixels.safetensors", "features.safetensors")]
    subprocess.run([sys.executable, "-I", "-c", STOCK, *arguments], check=True)
    found = load_file(tmp_path / "features.safetensors")
    with torch.no_grad():
        expected = {name: model(value).last_hidden_state for name, value in pixels.items()}
    for name in sizes:
        if offset == 0 or name == "native":
            torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
        else:
            assert (found[name] - expected[name]).abs().max() > 1e-4


def test_files_of_the_stock_class_are_read_with_or_without_pooler(vit, tmp_path):
    from transformers import ViTConfig as StockConfig
    from transformers import ViTModel as StockModel

    torch.manual_seed(0)
    config = StockConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8
    )
    for pooler in (True, False):
        stock = StockModel(config, add_pooling_layer=pooler).eval()
        stock.save_pretrained(tmp_path / str(pooler))
        model = ViTModel.from_pretrained(tmp_path / str(pooler)).eval()
        assert model.config.layer_norm_eps == 1e-12 and model.config.interpolate_offset == 0
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(
                model(pixels).last_hidden_state, stock(pixels).last_hidden_state, atol=1e-5, rtol=1e-5
            )


def test_config_is_that_of_the_stock_class(vit, tmp_path):
    vit(use_mask_token=True).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "vit" and written["architectures"] == ["ViTModel"]
    assert written["intermediate_size"] == 96
    again = ViTModel.from_pretrained(tmp_path)
    assert again.config.use_mask_token and again.takes_masks
    assert again.embeddings.mask_token.shape == (1, 1, 48)


def test_initialisation_follows_the_published_code():
    """Truncated normal of 0.02 for CLS, positions and weights; LayerNorm's epsilon is 1e-6; no LayerScale."""
    section = ViTModelConfig(preset="tiny", num_hidden_layers=2)
    model = find_family("vit").build(section, 224, 0.1)
    assert model.embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.02)
    layer = model.encoder.layer[1]
    assert layer.intermediate.dense.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert layer.layernorm_before.eps == model.layernorm.eps == 1e-6
    assert [layer.drop_path_rate for layer in model.encoder.layer] == [0.0, 0.1]
    assert not any("lambda" in name for name, _ in model.named_parameters())


def test_model_without_mask_token_refuses_masks(vit):
    model = vit()
    assert not model.takes_masks
    with pytest.raises(ValueError, match="no mask token"):
        model(torch.randn(1, 3, 32, 32), bool_masked_pos=torch.ones(1, 16, dtype=torch.bool))


def test_masked_patches_get_the_mask_token(vit):
    model = vit(use_mask_token=True)
    with torch.no_grad():
        model.embeddings.mask_token.normal_()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3] = True
    one, other = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    other[1] = one[1]
    tokens = [model.embeddings(pixels, mask)[0, 4] for pixels in (one, other)]
    assert torch.equal(*tokens)
    assert not torch.equal(model.embeddings(one, mask)[0, 5], model.embeddings(other, mask)[0, 5])


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_wanted_tokens_equal_those_of_the_whole_forward(vit, drop_path_rate):
    model = vit(use_mask_token=True, drop_path_rate=drop_path_rate, drop_path_uniform=True).train()
    crops = [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)]
    positions = torch.tensor([0, 17, 5, 90, 68, 33])
    results = []
    for fast in (True, False):
        model.zero_grad()
        torch.manual_seed(3)
        if fast:
            tokens = model.forward_at(positions, crops)
        else:
            tokens = torch.cat([group.flatten(0, 1) for group in model.forward_packed(crops)])[positions]
        tokens.square().sum().backward()
        results.append((tokens, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*(tokens for tokens, _ in results), atol=1e-5, rtol=1e-5)
    for found, expected in zip(*(gradients for _, gradients in results), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def published():
    """The backbone of the published code of DINO, and what it computes."""
    recording = Recording("dino_steps")
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        interpolate_offset=0.1,
        attn_implementation="eager",
    )
    model = ViTModel(config).eval()
    model.load_state_dict(vit_state(recording.under("init.student.backbone.")))
    return recording.tensors, model


@pytest.mark.parametrize("size", ["native", "small", "wide", "large"])
@torch.no_grad()
def test_features_and_attention_equal_the_published_code(published, size):
    """See tests/parity/data/README.md: atol 1e-5, rtol 1e-4."""
    tensors, model = published
    close = {"atol": 1e-5, "rtol": 1e-4}
    found = {name: tensors[f"forward.{size}.{name}"] for name in ("pixel_values", "last", "before_last", "attention")}
    output = model(found["pixel_values"], output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(output.last_hidden_state, found["last"], **close)
    torch.testing.assert_close(model.layernorm(output.hidden_states[-2]), found["before_last"], **close)
    torch.testing.assert_close(output.attentions[-1], found["attention"], **close)
