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
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from dinov2_hf.backbones import Dinov2Config, Dinov2Model, VisionTransformer, load_vision_transformer

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {**SIZES, "vocab_size": 20, "max_position_embeddings": 8}


def clip():
    vision = CLIPVisionConfig(**SIZES, patch_size=8, image_size=32)
    return CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**TEXT).to_dict(), vision_config=vision.to_dict()))


NETWORKS = {
    "ours": lambda: Dinov2Model(Dinov2Config(**SIZES, patch_size=8, image_size=32, num_register_tokens=2)),
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
    network = VisionTransformer(NETWORKS[name]()).eval()
    assert (network.hidden_size, network.patch_size, network.num_layers) == (32, 8, 3)
    images = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        (cls,), (patches,) = zip(*network(images))
        several = network(images, 3)
        tokens = network.model(pixel_values=images, **network._options).last_hidden_state
    assert cls.shape == (2, 32) and patches.shape == (2, 32, 4, 5)
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, -20:])
    torch.testing.assert_close(cls, tokens[:, 0] if tokens.shape[1] > 20 else tokens.mean(dim=1))
    assert len(several) == 3
    torch.testing.assert_close(several[-1][0], cls)
    torch.testing.assert_close(several[-1][1], patches)


@pytest.mark.parametrize("name", ["dinov2", "vit"])
def test_earlier_blocks_are_normed_as_the_last_one_is(name):
    network = VisionTransformer(NETWORKS[name]()).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = network.model(pixel_values=images, output_hidden_states=True).hidden_states
        for (cls, patches), hidden in zip(network(images, 3), states[1:]):
            tokens = network.model.layernorm(hidden)
            torch.testing.assert_close(cls, tokens[:, 0])
            torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, -16:])


def test_ours_and_the_stock_class_give_the_same_blocks(tmp_path):
    ours = NETWORKS["ours"]().eval()
    ours.save_pretrained(tmp_path)
    stock = Dinov2WithRegistersModel.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for first, second in zip(VisionTransformer(ours)(images, 3), VisionTransformer(stock)(images, 3)):
            for mine, theirs in zip(first, second):
                torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        attention = [VisionTransformer(model).attention(images) for model in (ours, stock)]
    torch.testing.assert_close(*attention, atol=1e-5, rtol=1e-5)


def test_attention_is_that_of_cls_to_patches_without_registers():
    network = VisionTransformer(NETWORKS["dinov2"]()).eval()
    images = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        network.model.set_attn_implementation("eager")
        whole = network.model(pixel_values=images, output_attentions=True).attentions[-1]
        found = network.attention(images)
    assert found.shape == (2, 2, 4, 5)
    torch.testing.assert_close(found.flatten(2), whole[:, :, 0, 3:])


def test_attention_of_a_model_without_cls_is_refused():
    with pytest.raises(ValueError, match="SiglipVision.* has no CLS token"):
        VisionTransformer(NETWORKS["siglip"]()).attention(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("layers", [0, 4])
def test_blocks_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match=f"layers={layers} of a model of 3 blocks; use 1 to 3"):
        VisionTransformer(NETWORKS["ours"]())(torch.randn(1, 3, 32, 32), layers)


def test_network_without_patches_is_refused():
    with pytest.raises(ValueError, match="ResNetModel has no patches"):
        VisionTransformer(ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])))


def test_model_that_is_not_there_is_named_as_it_was_given(tmp_path):
    with pytest.raises(FileNotFoundError, match="distill.teacher=.*nowhere is not a model that can be read"):
        load_vision_transformer(str(tmp_path / "nowhere"), f"distill.teacher={tmp_path / 'nowhere'}")
