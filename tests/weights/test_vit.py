"""Files of the stock ViT, opened as a backbone of the family `vit`."""

import pytest
import torch
import transformers

from dinov2_hf.backbones import ViTModel
from dinov2_hf.weights import export_source, open_weights

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SIZES |= {"image_size": 32, "patch_size": 8}


@pytest.mark.parametrize("kind, others", [("ViTModel", "pooler"), ("ViTForImageClassification", "classifier")])
@torch.no_grad()
def test_backbone_of_a_stock_model_is_taken_and_the_rest_is_named(tmp_path, kind, others):
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.ViTConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    weights = open_weights(str(tmp_path))
    backbone = weights.build()
    assert isinstance(backbone, ViTModel)
    assert [remark for remark in weights.remarks if others in remark]
    pixels = torch.randn(2, 3, 32, 48)
    expected = model.base_model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone.features(pixels)[0].cls, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_export_says_where_stock_transformers_differs(tmp_path, offset):
    model = ViTModel(ViTModel.config_class(**SIZES, interpolate_offset=offset))
    model.save_pretrained(tmp_path / "source")
    done = export_source(str(tmp_path / "source"), tmp_path / "export")
    assert bool([remark for remark in done.remarks if "32 x 32 pixels only" in remark]) == bool(offset)
    assert done.usage.endswith("add_pooling_layer=False)")
    card = (tmp_path / "export" / "README.md").read_text()
    assert "add_pooling_layer=False" in card and "register" not in card


@pytest.mark.parametrize("format, suffix", [("original", ".pth"), ("timm", ".safetensors"), ("onnx", ".onnx")])
def test_formats_that_do_not_hold_the_family_are_refused(tmp_path, format, suffix):
    ViTModel(ViTModel.config_class(**SIZES)).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=f"--format {format} holds dinov2 only, not vit"):
        export_source(str(tmp_path / "source"), tmp_path / f"export{suffix}", format)
