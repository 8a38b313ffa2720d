import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from dinov2_hf.backbones import Dinov2Config, Dinov2Model, StockBackbone, load_stock_backbone

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {**SIZES, "vocab_size": 20, "max_position_embeddings": 8}


def clip():
    vision = CLIPVisionConfig(**SIZES, patch_size=8, image_size=32)
    return CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**TEXT).to_dict(), vision_config=vision.to_dict()))


def ours():
    return Dinov2Model(Dinov2Config(**SIZES, patch_size=8, image_size=32, num_register_tokens=2)).eval()


NETWORKS = {
    "dinov2": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZES, patch_size=8, image_size=32, num_register_tokens=2)
    ),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, patch_size=8, image_size=32, num_register_tokens=2)),
    "vit": lambda: ViTModel(ViTConfig(**SIZES, patch_size=8, image_size=32)),
    "clip": clip,
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, patch_size=8, image_size=32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_last_blocks_of_any_vision_transformer_are_cls_and_a_map_of_patches(name):
    network = StockBackbone(NETWORKS[name]()).eval()
    assert (network.width, network.stride, len(network.blocks)) == (32, 8, 3)
    images = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        (cls,), (patches,) = zip(*network.features(images))
        several = network.features(images, 3)
        tokens = network.model(pixel_values=images, **network._options).last_hidden_state
    assert cls.shape == (2, 32) and patches.shape == (2, 32, 4, 5)
    if name == "clip":  # which norms CLS only, for its pooled output
        tokens = network.model.post_layernorm(tokens)
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, -20:])
    torch.testing.assert_close(cls, tokens[:, 0] if tokens.shape[1] > 20 else tokens.mean(dim=1))
    assert len(several) == 3
    torch.testing.assert_close(several[-1][0], cls)
    torch.testing.assert_close(several[-1][1], patches)


@pytest.mark.parametrize("name", ["dinov2", "vit"])
def test_earlier_blocks_are_normed_as_the_last_one_is(name):
    network = StockBackbone(NETWORKS[name]()).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = network.model(pixel_values=images, output_hidden_states=True).hidden_states
        for (cls, patches), hidden in zip(network.features(images, 3), states[1:]):
            tokens = network.model.layernorm(hidden)
            torch.testing.assert_close(cls, tokens[:, 0])
            torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, -16:])


def test_ours_and_the_stock_class_give_the_same_blocks(tmp_path):
    model = ours()
    model.save_pretrained(tmp_path)
    stock = Dinov2WithRegistersModel.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for first, second in zip(model.features(images, 3), StockBackbone(stock).features(images, 3)):
            for mine, theirs in zip(first, second):
                torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        attention = [model.attention(images) for model in (model, StockBackbone(stock))]
    torch.testing.assert_close(*attention, atol=1e-5, rtol=1e-5)


def test_attention_is_that_of_cls_to_patches_without_registers():
    network = StockBackbone(NETWORKS["dinov2"]()).eval()
    images = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        network.model.set_attn_implementation("eager")
        whole = network.model(pixel_values=images, output_attentions=True).attentions[-1]
        found = network.attention(images)
    assert found.shape == (2, 2, 4, 5)
    torch.testing.assert_close(found.flatten(2), whole[:, :, 0, 3:])


def test_attention_of_a_model_without_cls_is_refused():
    with pytest.raises(ValueError, match="SiglipVision.* has no CLS token"):
        StockBackbone(NETWORKS["siglip"]()).attention(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("build", [ours, lambda: StockBackbone(NETWORKS["vit"]())], ids=["ours", "stock"])
@pytest.mark.parametrize("layers", [0, 4])
def test_blocks_that_are_not_there_are_refused(build, layers):
    with pytest.raises(ValueError, match=f"layers={layers} of a model of 3 blocks; use 1 to 3"):
        build().features(torch.randn(1, 3, 32, 32), layers)


def test_model_that_is_not_there_is_named_as_it_was_given(tmp_path):
    with pytest.raises(FileNotFoundError, match="distill.teacher=.*nowhere is not a model that can be read"):
        load_stock_backbone(str(tmp_path / "nowhere"), f"distill.teacher={tmp_path / 'nowhere'}")
