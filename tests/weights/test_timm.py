"""timm's names, shapes and features: against a frozen list, a naive twin, and timm itself where it is installed."""

import functools

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov2_hf import Dinov2Config, Dinov2Model
from dinov2_hf.backbones import ViTConfig, ViTModel
from dinov2_hf.weights import config_from_timm, from_timm, open_weights, timm_usage, to_timm, write_timm

from .timm_twin import FROZEN, FROZEN_DINO, frozen_shapes, has_timm, import_timm, patch_of, timm_forward

close = dict(atol=1e-5, rtol=1e-4)
needs_timm = pytest.mark.skipif(
    not has_timm(), reason="timm is not installed, as torchvision comes with it; the twin and the frozen list stand in"
)


def preset_of_name(name):
    return name.split("_")[1], 4 if "_reg4_" in name else 0


def timm_state(model):
    return to_timm(model.state_dict())[0]


@pytest.mark.parametrize("name", FROZEN)
def test_presets_have_timms_names_and_shapes(name):
    preset, registers = preset_of_name(name)
    with torch.device("meta"):
        model = Dinov2Model(Dinov2Config.preset(preset, num_register_tokens=registers, image_size=518))
    assert {key: list(value.shape) for key, value in timm_state(model).items()} == frozen_shapes(name)
    assert model.config.num_attention_heads == FROZEN[name]["num_heads"]
    assert timm_usage("x.safetensors", model.config) == (
        f'model = timm.create_model("{name}", dynamic_img_size=True, checkpoint_path="x.safetensors")'
    )


@pytest.mark.parametrize("name", [name for name in FROZEN if "large" not in name])
def test_architecture_is_read_off_timms_shapes(name):
    preset, registers = preset_of_name(name)
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in frozen_shapes(name).items()}
        config = config_from_timm(state)
        model = Dinov2Model(config)
    expected = Dinov2Config.preset(preset, num_register_tokens=registers, image_size=518)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "use_swiglu_ffn", "image_size"):
        assert getattr(config, key) == getattr(expected, key), key
    assert (config.num_register_tokens, config.patch_size) == (registers, 14)
    assert (config.interpolate_antialias, config.interpolate_offset) == (True, 0.0)
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in from_timm(state).items()} == wanted


@pytest.mark.parametrize("name", FROZEN_DINO)
def test_sizes_of_dino_have_timms_names_and_shapes_both_ways(name):
    preset, patch = name.split("_")[1], 8 if "patch8" in name else 16
    config = ViTConfig.preset(preset, patch_size=patch)
    with torch.device("meta"):
        model = ViTModel(config)
        state = {key: torch.empty(shape) for key, shape in frozen_shapes(name).items()}
        found = config_from_timm(state)
    assert {key: list(value.shape) for key, value in timm_state(model).items()} == frozen_shapes(name)
    assert timm_usage("x.safetensors", config) == (
        f'model = timm.create_model("{name}", dynamic_img_size=True, checkpoint_path="x.safetensors")'
    )
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size"):
        assert getattr(found, key) == getattr(config, key), key
    assert (found.patch_size, found.layer_norm_eps, found.use_mask_token) == (patch, 1e-6, False)
    assert (found.interpolate_antialias, found.interpolate_offset) == (True, 0.0)


@torch.no_grad()
def test_file_of_dino_that_timm_wrote_has_timms_features_at_every_size(tiny_vit, tmp_path):
    state = timm_state(tiny_vit())
    save_file(state, tmp_path / "model.safetensors")
    weights = open_weights(str(tmp_path / "model.safetensors"), num_attention_heads=4)
    model = weights.build()
    assert weights.kind == "file under timm's names" and not weights.remarks and not model.takes_masks
    for size in ((32, 32), (24, 40), (72, 16)):
        pixels = torch.randn(2, 3, *size)
        torch.testing.assert_close(model(pixels).last_hidden_state, timm_forward(state, pixels, 4, (4, 4)), **close)


@torch.no_grad()
def test_timm_gives_the_features_of_the_family_vit_at_its_own_size(tiny_vit, tmp_path):
    model = tiny_vit(image_size=[32, 48], layer_norm_eps=1e-12).eval()
    write_timm(tmp_path / "model.safetensors", model)
    state, pixels = load_file(tmp_path / "model.safetensors"), torch.randn(2, 3, 32, 48)
    found = timm_forward(state, pixels, 4, (4, 6), eps=1e-12)
    torch.testing.assert_close(found, model(pixels).last_hidden_state, **close)


@pytest.mark.parametrize(
    "suffix, classifier, kind",
    [
        (".safetensors", False, "file under timm's names"),
        (".pth", False, "file under the original names"),
        (".pth", True, "file under timm's names"),
    ],
)
def test_whose_rule_a_file_of_dino_follows_shows_in_its_suffix_and_classifier(
    tiny_vit, tmp_path, suffix, classifier, kind
):
    """DINO's code and timm have the same names, and two rules for position embeddings."""
    state = timm_state(tiny_vit())
    if classifier:
        state |= {"head.weight": torch.ones(7, 48), "head.bias": torch.ones(7)}
    path = tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    weights = open_weights(str(path), num_attention_heads=4)
    assert weights.kind == kind
    rule = (weights.config.interpolate_antialias, weights.config.interpolate_offset)
    assert rule == ((True, 0.0) if "timm" in kind else (False, 0.1))


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_timm_gives_our_features(tiny, tmp_path, registers, swiglu):
    """At the size of the position embeddings always; at others where the rule is timm's, as it is with registers."""
    model = tiny(num_register_tokens=registers, use_swiglu_ffn=swiglu, image_size=[32, 48]).eval()
    write_timm(tmp_path / "model.safetensors", model)
    state = load_file(tmp_path / "model.safetensors")
    assert ("reg_token" in state) == bool(registers) and "mask_token" not in state
    sizes = [(32, 48)] + [(24, 40), (72, 16)] * bool(registers)
    for size in sizes:
        pixels = torch.randn(2, 3, *size)
        found = timm_forward(state, pixels, 4, (4, 6), swiglu)
        torch.testing.assert_close(found, model(pixels).last_hidden_state, **close)


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_we_give_the_features_of_timms_own_weights_at_every_size(tiny, tmp_path, registers, swiglu):
    """A file that timm wrote, without notes of ours: the rule of timm is taken."""
    state = timm_state(tiny(num_register_tokens=registers, use_swiglu_ffn=swiglu))
    state["head.weight"], state["head.bias"] = torch.ones(7, 48), torch.ones(7)
    save_file(state, tmp_path / "model.safetensors")
    weights = open_weights(str(tmp_path / "model.safetensors"), num_attention_heads=4)
    model = weights.build()
    assert weights.kind == "file under timm's names"
    assert [remark.split(":")[0] for remark in weights.remarks] == [
        "head.bias (and 1 tensors more) is left out",
        "the mask token is zero",
    ]
    assert (model.embeddings.mask_token == 0).all()
    for size in ((32, 32), (24, 40), (72, 16)):
        pixels = torch.randn(2, 3, *size)
        expected = timm_forward(state, pixels, 4, (4, 4), swiglu)
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, **close)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema"])
def test_timm_checkpoints_are_read_from_pickles_without_running_code(tiny, tmp_path, wrapper):
    model = tiny()
    state = {f"module.{name}": value for name, value in timm_state(model).items()}
    torch.save({wrapper: state, "epoch": 3, "arch": "vit"}, tmp_path / "checkpoint.pth")
    weights = open_weights(str(tmp_path / "checkpoint.pth"), num_attention_heads=4)
    expected = model.state_dict()
    same = {name for name, value in weights.backbone().items() if torch.equal(value, expected[name])}
    changed = {"embeddings.mask_token", "embeddings.cls_token", "embeddings.position_embeddings"}
    assert expected.keys() - same == changed  # CLS bears its position
    assert torch.equal(weights.backbone()["embeddings.cls_token"], state["module.cls_token"])


@torch.no_grad()
def test_notes_that_the_weights_have_outgrown_are_not_used(tiny, tmp_path):
    """Trained further in timm, with the metadata kept: the new CLS counts, and features are timm's."""
    model = tiny(num_register_tokens=4).eval()
    write_timm(tmp_path / "model.safetensors", model)
    weights = open_weights(str(tmp_path / "model.safetensors"))
    state, kept = to_timm(model.state_dict())
    assert torch.equal(from_timm(state, kept)["embeddings.cls_token"], model.embeddings.cls_token)
    state["cls_token"] = state["cls_token"] + 1
    changed = from_timm(state, kept)
    assert torch.equal(changed["embeddings.cls_token"], state["cls_token"])
    weights = weights.resized(weights.config, changed)
    pixels = torch.randn(1, 3, 32, 32)
    expected = timm_forward(state, pixels, 4, (4, 4), False)
    torch.testing.assert_close(weights.build()(pixels).last_hidden_state, expected, **close)


@needs_timm
@pytest.mark.parametrize("name", [*FROZEN, *FROZEN_DINO])
def test_frozen_list_is_timms(name):
    with torch.device("meta"):
        model = import_timm().create_model(name)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == frozen_shapes(name)
    assert model.default_cfg["input_size"][1] == (FROZEN | FROZEN_DINO)[name]["image_size"]


SETTINGS = [
    dict(hidden_size=128, num_attention_heads=2, image_size=56, patch_size=14, num_register_tokens=4),
    dict(hidden_size=128, num_attention_heads=2, image_size=[28, 42], patch_size=14, num_register_tokens=0),
    dict(use_swiglu_ffn=True, image_size=32),
    dict(use_swiglu_ffn=True, image_size=32, mlp_ratio=3, qkv_bias=False, num_channels=5, num_register_tokens=0),
]
SETTINGS_OF_VIT = [
    dict(),
    dict(layer_norm_eps=1e-12, intermediate_size=100, qkv_bias=False, num_channels=5, image_size=[32, 48]),
]


@needs_timm
@pytest.mark.parametrize("settings", SETTINGS_OF_VIT)
@torch.no_grad()
def test_timm_itself_loads_the_family_vit_with_the_line_that_we_give(tiny_vit, tmp_path, settings):
    model, path = tiny_vit(interpolate_antialias=True, **settings).eval(), tmp_path / "model.safetensors"
    write_timm(path, model)
    namespace = {"timm": import_timm(), "functools": functools, "torch": torch}
    exec(timm_usage(str(path), model.config), namespace)
    theirs, grid = namespace["model"].eval(), model.config.grid_size
    for size in ((8 * grid[0], 8 * grid[1]), (24, 40)):
        pixels = torch.randn(2, model.config.num_channels, *size)
        torch.testing.assert_close(theirs.forward_features(pixels), model(pixels).last_hidden_state, **close)


@needs_timm
@pytest.mark.parametrize("settings", SETTINGS)
@torch.no_grad()
def test_timm_itself_loads_what_we_write_with_the_line_that_we_give(tiny, tmp_path, settings):
    model = tiny(**settings).eval()
    path = tmp_path / "model.safetensors"
    write_timm(path, model)
    namespace = {"timm": import_timm()}
    exec(timm_usage(str(path), model.config), namespace)
    theirs = namespace["model"].eval()
    state, config = load_file(path), model.config
    height, width = (count * patch for count, patch in zip(config.grid_size, patch_of(state)))
    for size in ((height, width), (3 * patch_of(state)[0], 5 * patch_of(state)[1])):
        pixels = torch.randn(2, config.num_channels, *size)
        found = theirs.forward_features(pixels)
        twin = timm_forward(state, pixels, config.num_attention_heads, config.grid_size, config.use_swiglu_ffn)
        torch.testing.assert_close(found, twin, **close)
        if config.num_register_tokens or size == (height, width):
            torch.testing.assert_close(found, model(pixels).last_hidden_state, **close)
