"""Wrappings of the wild: a backbone is found wherever training code has put it, or what is in the way is named."""

import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config as StockConfig
from transformers import Dinov2Model as StockModel
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from dinov2_hf import Dinov2Model
from dinov2_hf.weights import from_original, model_from_original, open_weights, to_original, to_timm

HEADS = {"dino_head.mlp.0.weight": torch.ones(2, 48), "dino_head.last_layer.weight_v": torch.ones(3, 2)}


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def refusal(path, **options):
    with pytest.raises(ValueError) as caught:
        open_weights(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message and f"SOURCE={path}" in message
    return message


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def compiled_blocks(state):
    return {name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in state.items()}


def sharded_blocks(state):
    names = {
        name: name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.") for name in state
    }
    return {f"_fsdp_wrapped_module.{names[name]}": value for name, value in state.items()}


WRAPPINGS = {
    "plain": lambda state: state,
    "torch's tutorials": lambda state: {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "Lightning": lambda state: {"state_dict": prefixed("model.backbone.", state), "hyper_parameters": {"lr": 1e-3}},
    "timm's training": lambda state: {"state_dict": {n: v + 1 for n, v in state.items()}, "state_dict_ema": state},
    "average beside the model": lambda state: {"model": {n: v + 1 for n, v in state.items()}, "model_ema": state},
    "Depth Anything": lambda state: prefixed("pretrained.", state),
    "data parallel and compiled": lambda state: prefixed("module._orig_mod.", state),
    "compiled in blocks": compiled_blocks,
    "FSDP with full names": sharded_blocks,
    "DeepSpeed": lambda state: {"module": state, "ds_version": "0.15"},
    "nested": lambda state: {"model": {"encoder": {"backbone": state}}},
    "any prefix": lambda state: prefixed("net.image_encoder.trunk.", state),
    "arguments beside it": lambda state: {"teacher": prefixed("module.backbone.", state), "args": ARGUMENTS},
}
ARGUMENTS = argparse.Namespace(
    arch="vit_small",
    output_dir=Path("/somewhere"),
    best=np.float64(0.5),
    history=np.arange(3),
    device=torch.device("cpu"),
)
NAMES = {"original": to_original, "timm": lambda state: to_timm(state)[0], "transformers": lambda state: state}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("names", NAMES)
def test_backbone_is_found_in_every_wrapping(tiny, tmp_path, wrapping, names):
    state = state_of(tiny(num_register_tokens=0))
    torch.save(WRAPPINGS[wrapping](NAMES[names](state)), tmp_path / "model.pth")
    weights = open_weights(str(tmp_path / "model.pth"), num_attention_heads=4)
    expected = state | ({"embeddings.mask_token": torch.zeros(1, 48)} if names == "timm" else {})
    assert_same(weights.backbone(), expected)
    assert not any("left out" in remark for remark in weights.remarks)
    assert weights.build().width == 48


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_stands_beside_a_backbone_is_named(tiny, tmp_path, suffix):
    state = prefixed("pretrained.", to_original(state_of(tiny()))) | {"depth_head.weight": torch.ones(2)}
    path = tmp_path / f"model{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    weights = open_weights(str(path), num_attention_heads=4)
    assert weights.remarks == ["depth_head.weight is left out: no part of the backbone"]
    assert_same(weights.backbone(), state_of(tiny()))
    with pytest.raises(ValueError, match="tensor 'depth_head.weight' does not belong"):
        from_original(state)


def test_heads_beside_a_wrapped_backbone_are_those_of_its_network(tiny, tmp_path):
    state = prefixed("backbone.", to_original(state_of(tiny()))) | HEADS
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"model": prefixed("student.module.", other) | prefixed("teacher.", state)}, tmp_path / "model.pth")
    for network, added in (("teacher", 0), ("student", 1)):
        weights = open_weights(str(tmp_path / "model.pth"), network=network, num_attention_heads=4)
        assert_same(weights.backbone(), {name: value + added for name, value in state_of(tiny()).items()})
        assert torch.equal(weights.heads()["dino_head"]["mlp.0.weight"], torch.ones(2, 48) + added)


def test_several_backbones_of_no_known_part_are_refused_by_their_places(tiny, tmp_path):
    state = to_original(state_of(tiny()))
    torch.save(prefixed("left.", state) | prefixed("right.", state), tmp_path / "model.pth")
    assert "holds 2 backbones (left., right.); save the state dict of the one" in refusal(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "state, what, remedy",
    [
        (
            {"_fsdp_wrapped_module._flat_param": torch.ones(9)},
            "parameters that FSDP has flattened",
            "full_state_dict=True",
        ),
        ({"blocks.0.flat_param_0": torch.ones(9)}, "parameters that FSDP has flattened", "get_model_state_dict"),
        (
            {"base_model.model.encoder.layer.0.mlp.fc1.lora_A.weight": torch.ones(2, 2)},
            "an adapter of peft",
            "merge_and_unload",
        ),
        ({"encoder.layer.0.mlp.fc1.weight.absmax": torch.ones(2)}, "quantised weights", "float32"),
    ],
)
def test_tensors_that_cannot_be_taken_are_named_with_what_to_do(tmp_path, state, what, remedy):
    torch.save({"model": state}, tmp_path / "model.pth")
    save_file(state, tmp_path / "model.safetensors")
    for name in ("model.pth", "model.safetensors"):
        message = refusal(tmp_path / name)
        assert f"holds {what}" in message and remedy in message and next(iter(state)).split(".")[-1] in message


def test_integers_are_not_taken_for_weights(tiny, tmp_path):
    state = to_original(state_of(tiny()))
    torch.save(state | {"blocks.0.mlp.fc1.weight": torch.ones(192, 48, dtype=torch.int8)}, tmp_path / "model.pth")
    assert "encoder.layer.0.mlp.fc1.weight in int8, as quantised weights are" in refusal(tmp_path / "model.pth")


def test_settings_beside_tensors_are_not_made(tiny, tmp_path):
    """Their classes are not called: another one takes their place."""
    torch.save({"model": to_original(state_of(tiny())), "args": ARGUMENTS}, tmp_path / "model.pth")
    with pytest.raises(pickle.UnpicklingError, match="argparse.Namespace"):
        torch.load(tmp_path / "model.pth", weights_only=True)
    assert model_from_original(tmp_path / "model.pth", num_attention_heads=4).width == 48
    torch.save({"model": to_original(state_of(tiny())), "args": argparse.ArgumentParser}, tmp_path / "other.pth")
    assert "which are not loaded as they can run code (argparse.ArgumentParser); save" in refusal(
        tmp_path / "other.pth"
    )


# names of transformers 5 in memory


def stock(registers, swiglu):
    shape = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=8, image_size=32)
    if registers:
        model = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**shape, use_swiglu_ffn=swiglu, num_register_tokens=registers)
        )
    else:
        model = StockModel(StockConfig(**shape, use_swiglu_ffn=swiglu))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def features(model):
    torch.manual_seed(0)
    return model(torch.randn(2, 3, 32, 32)).last_hidden_state


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("form", ["pickle", "safetensors", "folder", "wrapped"])
def test_state_dict_of_transformers_5_gives_its_features(tmp_path, registers, swiglu, form):
    model = stock(registers, swiglu)
    state = state_of(model)
    assert "encoder.layer.0.attention.q_proj.weight" in state
    path, heads = tmp_path / "model.pth", 4
    if form == "pickle":
        torch.save(state, path)
    elif form == "safetensors":
        save_file(state, path := tmp_path / "weights.safetensors")
    elif form == "wrapped":
        torch.save({"model_state_dict": prefixed("module.dinov2.", state) | {"classifier.bias": torch.ones(1)}}, path)
    else:
        (path := tmp_path / "folder").mkdir()
        model.config.save_pretrained(path)
        save_file(state, path / "model.safetensors")
        heads = None
    weights = open_weights(str(path), num_attention_heads=heads)
    torch.testing.assert_close(features(weights.build()), features(model), atol=1e-5, rtol=0)
    assert weights.remarks == (["classifier.bias is left out: no part of the backbone"] if form == "wrapped" else [])


@pytest.mark.parametrize("swiglu", [False, True])
def test_our_class_loads_the_names_of_transformers_5(tmp_path, swiglu):
    model = stock(2, swiglu)
    model.config.save_pretrained(tmp_path)
    save_file(state_of(model), tmp_path / "model.safetensors")
    for ours in (Dinov2Model.from_pretrained(tmp_path), Dinov2Model(Dinov2Model.from_pretrained(tmp_path).config)):
        ours.load_state_dict(model.state_dict())
        torch.testing.assert_close(features(ours.eval()), features(model), atol=1e-5, rtol=0)
