"""One backbone for evaluation, pictures and curation, out of whatever holds it."""

import json

import pytest
import torch
from transformers import ViTMSNConfig, ViTMSNModel

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.data import EvalTransform, preprocessor_config
from dinov2_hf.features import open_backbone
from dinov2_hf.weights import export_source

IMAGES = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
TRANSFORM = EvalTransform(40, 32, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that transformers loads, with a preprocessor."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "mine" / "export"
    config = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        patch_size=8,
        image_size=32,
        layerscale_value=1.0,
        interpolate_antialias=True,
    )
    Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(TRANSFORM)))
    return folder


def same(first, second):
    for mine, theirs in zip(first.features(IMAGES, 2), second.features(IMAGES, 2), strict=True):
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("format, suffix", [("original", ".pth"), ("timm", ".safetensors"), ("hf", "")])
def test_every_format_of_a_model_gives_its_features_and_its_transform(folder, tmp_path, format, suffix):
    export_source(str(folder), tmp_path / f"model{suffix}", format)
    backbone, again = open_backbone(str(folder)), open_backbone(str(tmp_path / f"model{suffix}"))
    same(backbone, again)
    assert backbone.transform == again.transform == TRANSFORM
    assert (again.width, again.stride, again.num_layers) == (64, 8, 2)


def test_export_is_called_by_the_run_that_it_is_of(folder):
    assert open_backbone(str(folder)).name == "mine"


def test_equal_weights_have_the_same_fingerprint_wherever_they_lie(folder, tmp_path):
    first = open_backbone(str(folder))
    export_source(str(folder), tmp_path / "copy")
    assert open_backbone(str(tmp_path / "copy")).fingerprint() == first.fingerprint()
    model = Dinov2Model.from_pretrained(folder)
    with torch.no_grad():
        model.layernorm.bias[3] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    assert open_backbone(str(tmp_path / "changed")).fingerprint() != first.fingerprint()
    assert open_backbone(str(folder), dtype=torch.bfloat16).fingerprint() != first.fingerprint()


def test_model_of_another_kind_is_read_with_its_own_preprocessor(tmp_path):
    config = ViTMSNConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, patch_size=8, image_size=32
    )
    model = ViTMSNModel(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"height": 32, "width": 32},
                "image_mean": [0.5] * 3,
                "image_std": [0.25] * 3,
            }
        )
    )
    backbone = open_backbone(str(tmp_path))
    assert backbone.transform == EvalTransform((32, 32), 32, [0.5] * 3, [0.25] * 3, resample=2)
    with torch.no_grad():
        expected = model(pixel_values=IMAGES, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone.features(IMAGES, 1)[0][0], expected)


def test_model_without_a_preprocessor_gets_the_colours_of_imagenet_and_says_so(tmp_path, caplog):
    ViTMSNModel(
        ViTMSNConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32)
    ).save_pretrained(tmp_path)
    transform = open_backbone(str(tmp_path)).transform
    assert (transform.resize_size, transform.crop_size) == (32, 32)
    assert transform.mean == (0.485, 0.456, 0.406)
    assert "has no preprocessor" in caplog.text


def test_weights_take_no_gradient_and_compute_in_the_dtype_asked_for(folder):
    backbone = open_backbone(str(folder), dtype=torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert backbone.module.dtype == torch.bfloat16
    (cls, patches), *_ = backbone.features(IMAGES, 1)
    assert cls.dtype == patches.dtype == torch.float32 and not cls.requires_grad
    exact = open_backbone(str(folder)).features(IMAGES, 1)[0][0]
    torch.testing.assert_close(cls, exact, atol=0.1, rtol=0.05)


def test_nothing_there_is_said_by_the_name_of_the_option(tmp_path):
    with pytest.raises(FileNotFoundError, match="--model=.*nothing"):
        open_backbone(str(tmp_path / "nothing"))


def test_network_that_takes_no_images_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel takes input_ids and not pixel_values"):
        open_backbone(str(tmp_path))
