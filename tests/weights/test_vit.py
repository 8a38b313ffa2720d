"""Weights of the family `vit`: files of the stock class, of the published codes of DINO and iBOT, and what is said."""

import argparse
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dinov2_hf.backbones import ViTConfig, ViTModel
from dinov2_hf.weights import export_source, inspect_path, open_weights, original_usage, to_original, write_original

from .timm_twin import timm_forward

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SIZES |= {"image_size": 32, "patch_size": 8}
PUBLISHED = Path(__file__).parents[1] / "parity" / "data" / "dino_steps.safetensors"
close = dict(atol=1e-5, rtol=1e-4)


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


@torch.no_grad()
def test_file_of_a_stock_model_without_its_config_has_the_epsilon_and_the_rule_of_the_stock_class(tmp_path):
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    weights = open_weights(str(tmp_path / "model.safetensors"), num_attention_heads=4)
    assert (weights.config.layer_norm_eps, weights.config.interpolate_offset) == (1e-12, 0.0)
    pixels = torch.randn(2, 3, 32, 48)
    expected = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(weights.build()(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.no_grad()
def test_state_dict_of_a_stock_model_is_read_with_the_names_that_it_has_in_memory(tmp_path, suffix):
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**SIZES)).eval()
    path = tmp_path / f"model{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    weights = open_weights(str(path), num_attention_heads=4)
    assert any("pooler" in remark for remark in weights.remarks)
    model.config.save_pretrained(tmp_path)
    found = [weights.build()]
    if suffix == ".safetensors":
        found.append(open_weights(str(tmp_path)).build())
    pixels = torch.randn(2, 3, 32, 32)
    for backbone in found:
        torch.testing.assert_close(
            backbone(pixels).last_hidden_state, model(pixels).last_hidden_state, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_export_says_where_stock_transformers_differs(tmp_path, offset):
    model = ViTModel(ViTConfig(**SIZES, interpolate_offset=offset))
    model.save_pretrained(tmp_path / "source")
    done = export_source(str(tmp_path / "source"), tmp_path / "export")
    assert bool([remark for remark in done.remarks if "32 x 32 pixels only" in remark]) == bool(offset)
    assert done.usage.endswith("add_pooling_layer=False)")
    card = (tmp_path / "export" / "README.md").read_text()
    assert "add_pooling_layer=False" in card and "register" not in card


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_export_says_where_the_published_code_differs(tmp_path, offset):
    ViTModel(ViTConfig(**SIZES, interpolate_offset=offset)).save_pretrained(tmp_path / "source")
    done = export_source(str(tmp_path / "source"), tmp_path / "model.pth", "original")
    said = [remark for remark in done.remarks if remark.startswith("the original code interpolates")]
    assert bool(said) == (not offset)


# files of the published codes


def published(part):
    """Tensors of the published code under its names, such as `backbone.blocks.0.norm1.weight`, and what it computes."""
    tensors = load_file(PUBLISHED)
    state = {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
    assert state
    return state, tensors


def checkpoint():
    """As `main_dino.py` saves it: the student behind DistributedDataParallel."""
    student, _ = published("final.student.")
    teacher, _ = published("init.student.")
    return {
        "student": {f"module.{name}": value for name, value in student.items()},
        "teacher": teacher,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=8),
        "dino_loss": {"center": torch.zeros(1, 112)},
    }


@pytest.mark.parametrize("wrapped", ["backbone", "checkpoint"])
@torch.no_grad()
def test_file_of_dino_gives_the_published_features_at_every_size(tmp_path, wrapped):
    """`dino_deitsmall16_pretrain.pth` and `dino_deitsmall16_pretrain_full_checkpoint.pth`."""
    state, tensors = published("init.student.backbone.")
    torch.save(checkpoint() if wrapped == "checkpoint" else state, tmp_path / "model.pth")
    weights = open_weights(str(tmp_path / "model.pth"), num_attention_heads=3)
    model = weights.build()
    assert weights.remarks == [] and not model.takes_masks
    assert (weights.config.layer_norm_eps, weights.config.interpolate_offset) == (1e-6, 0.1)
    for size in ("native", "small", "wide", "large"):
        found = model(tensors[f"forward.{size}.pixel_values"]).last_hidden_state
        torch.testing.assert_close(found, tensors[f"forward.{size}.last"], **close)


@pytest.mark.parametrize("network, part", [("teacher", "init.student."), ("student", "final.student.")])
def test_full_checkpoint_of_dino_gives_the_network_and_its_head(tmp_path, network, part):
    torch.save(checkpoint(), tmp_path / "checkpoint.pth")
    weights = open_weights(str(tmp_path / "checkpoint.pth"), network=network, num_attention_heads=3)
    assert weights.kind == "training state of the original code" and weights.has_student
    state, _ = published(part)
    heads = weights.heads()
    assert list(heads) == ["dino_head"]
    expected = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
    assert heads["dino_head"].keys() == expected.keys()
    assert [name for name in expected if not torch.equal(heads["dino_head"][name], expected[name])] == []
    assert torch.equal(weights.backbone()["layernorm.weight"], state["backbone.norm.weight"])


@pytest.mark.parametrize("shared", [False, True])
def test_checkpoint_of_ibot_gives_its_mask_token_and_heads(tmp_path, shared):
    """Its head has one MLP; prototypes of patches are `last_layer2`, in a shared head those of CLS a second time."""
    state, _ = published("init.student.")
    state |= {"backbone.masked_embed": torch.randn(1, 48)}
    for part in ("weight_g", "weight_v"):
        of_cls = state[f"head.last_layer.{part}"]  # lengths are those of CLS in both
        state[f"head.last_layer2.{part}"] = torch.randn_like(of_cls) if part == "weight_v" and not shared else of_cls
    teacher = {name: value for name, value in state.items() if name != "backbone.masked_embed"}
    torch.save({"student": {f"module.{k}": v for k, v in state.items()}, "teacher": teacher}, tmp_path / "state.pth")
    for network in ("teacher", "student"):
        weights = open_weights(str(tmp_path / "state.pth"), network=network, num_attention_heads=3)
        assert weights.build().takes_masks == (network == "student")
        heads = weights.heads()
        expected = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
        if shared:
            expected = {name: value for name, value in expected.items() if not name.startswith("last_layer2.")}
        assert list(heads) == ["dino_head"] and heads["dino_head"].keys() == expected.keys()
        assert [name for name in expected if not torch.equal(heads["dino_head"][name], expected[name])] == []
    assert torch.equal(weights.backbone()["embeddings.mask_token"][0], state["backbone.masked_embed"])
    export_source(str(tmp_path / "state.pth"), tmp_path / "export", network="student", num_attention_heads=3)
    assert open_weights(str(tmp_path / "export")).heads().keys() == heads.keys()


def test_published_file_comes_back_to_the_last_bit(tmp_path):
    state, _ = published("init.student.backbone.")
    torch.save(state, tmp_path / "published.pth")
    export_source(str(tmp_path / "published.pth"), tmp_path / "export", num_attention_heads=3)
    export_source(str(tmp_path / "export"), tmp_path / "model.safetensors", "timm")
    export_source(str(tmp_path / "model.safetensors"), tmp_path / "back.pth", "original")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    assert [name for name in state if not torch.equal(back[name], state[name])] == []


@torch.no_grad()
def test_stock_class_gives_the_published_features_at_the_published_size(tmp_path):
    state, tensors = published("init.student.backbone.")
    torch.save(state, tmp_path / "published.pth")
    export_source(str(tmp_path / "published.pth"), tmp_path / "export", num_attention_heads=3)
    model = transformers.ViTModel.from_pretrained(tmp_path / "export", add_pooling_layer=False).eval()
    found = model(tensors["forward.native.pixel_values"]).last_hidden_state
    torch.testing.assert_close(found, tensors["forward.native.last"], **close)


def test_backbone_with_layer_scale_is_one_of_dinov2_and_without_it_one_of_dino(tiny, tiny_vit, tmp_path):
    """The tensors decide, whatever the file is called."""
    for make, family in ((lambda: tiny(num_register_tokens=0), "dinov2"), (tiny_vit, "vit")):
        torch.save(to_original(make().state_dict()), tmp_path / "model.pth")
        weights = open_weights(str(tmp_path / "model.pth"), num_attention_heads=4)
        assert weights.config.model_type == family and weights.build().width == 48


@pytest.mark.parametrize("damage", ["norm.bias", "pos_embed", "blocks.0.norm1.weight", "blocks.1.attn.qkv.weight"])
def test_file_of_dino_that_lacks_a_tensor_is_refused(tiny_vit, tmp_path, damage):
    state = to_original(tiny_vit().state_dict())
    del state[damage]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="is not a whole|is missing") as caught:
        open_weights(str(tmp_path / "model.pth"), num_attention_heads=4).build()
    assert "\n" not in str(caught.value)


def test_tensors_of_no_part_of_dino_are_named(tiny_vit, tmp_path):
    state = to_original(tiny_vit().state_dict()) | {"blocks.0.gamma_1": torch.ones(48)}
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="'blocks.0.gamma_1' does not belong to a DINO or iBOT backbone"):
        open_weights(str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    "settings, line",
    [
        (dict(), 'torch.hub.load("facebookresearch/dino:main", "dino_vits16", pretrained=False)'),
        (dict(patch_size=8), 'torch.hub.load("facebookresearch/dino:main", "dino_vits8", pretrained=False)'),
        (
            dict(image_size=64),
            'torch.hub.load("facebookresearch/dino:main", "dino_vits16", pretrained=False, img_size=[64])',
        ),
        (
            dict(layer_norm_eps=1e-12),
            "vision_transformer.VisionTransformer(img_size=[224], patch_size=16, in_chans=3, embed_dim=384, depth=12, "
            "num_heads=6, mlp_ratio=4, qkv_bias=True, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-12))",
        ),
    ],
)
def test_line_that_loads_an_original_file_has_the_arguments_that_the_model_needs(settings, line):
    config = ViTConfig.preset("small", **settings)
    load = 'model.load_state_dict(torch.load("x.pth", weights_only=True))'
    assert original_usage("x.pth", config) == f"model = {line}\n{load}"


def test_line_that_loads_a_file_with_a_mask_token_is_that_of_ibot(tiny_vit, tmp_path):
    path = tmp_path / "model.pth"
    model = tiny_vit(use_mask_token=True)
    write_original(path, model)
    assert "models.vision_transformer" in (line := original_usage(str(path), model.config))
    assert "masked_im_modeling=True" in line


def test_inspection_names_the_size_and_the_rule(tmp_path):
    state, _ = published("init.student.backbone.")
    torch.save(state, tmp_path / "model.pth")
    table = inspect_path(str(tmp_path / "model.pth"))
    assert "a grid of 4 x 4 patches" in table and "by a scale factor with offset 0.1" in table
    save_file(state, tmp_path / "model.safetensors")
    assert "bicubic with antialias, to the size" in inspect_path(str(tmp_path / "model.safetensors"))


@torch.no_grad()
def test_published_names_with_another_rule_give_timms_features(tiny_vit):
    """The twin that stands in for timm computes what the model does."""
    model = tiny_vit().eval()
    pixels = torch.randn(2, 3, 32, 32)
    found = timm_forward(to_original(model.state_dict()), pixels, 4, (4, 4))
    torch.testing.assert_close(found, model(pixels).last_hidden_state, **close)
