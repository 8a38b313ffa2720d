"""LoRA adapters of peft, trained on a class of transformers or on ours, are read as the model that they make."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config as StockConfig
from transformers import Dinov2Model as StockModel

from dinov2_hf import Dinov2Model
from dinov2_hf.weights import export_source, inspect_path, open_weights

RANK = 3


@pytest.fixture
def stock(request, tmp_path):
    """A model as the class of transformers has it in memory, and its folder `base`."""
    shape = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=8, image_size=32)
    model = StockModel(StockConfig(**shape, use_swiglu_ffn=getattr(request, "param", False)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "base")
    return model.eval()


def adapter(folder, model, modules, settings=None, more=None, prefix="base_model.model."):
    """A folder as peft saves it, with factors for the modules of a model; returns these by name."""
    tensors, factors = dict(more or {}), {}
    for name in modules:
        weight = model.get_submodule(name).weight
        first = torch.randn(RANK, *weight.shape[1:]) * 0.3
        second = torch.randn(len(weight), RANK, *[1] * (weight.ndim - 2)) * 0.3
        tensors[f"{prefix}{name}.lora_A.weight"], tensors[f"{prefix}{name}.lora_B.weight"] = first, second
        factors[name] = first, second
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(folder.parent / "base"),
        "r": RANK,
        "lora_alpha": 6,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        **(settings or {}),
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return factors


@torch.no_grad()
def features(model):
    torch.manual_seed(0)
    return model.eval()(torch.randn(2, 3, 32, 32)).last_hidden_state


def adapted_features(model, factors, scales):
    """Those of the model with the two products of each adapted module beside its own, as peft computes them."""

    def add(name):
        first, second = factors[name]

        def hook(module, inputs, output):
            if first.ndim == 4:
                low = torch.nn.functional.conv2d(inputs[0], first, stride=module.stride)
                return output + scales[name] * torch.nn.functional.conv2d(low, second)
            return output + scales[name] * (inputs[0] @ first.T @ second.T)

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(add(name)) for name in factors]
    try:
        return features(model)
    finally:
        for hook in hooks:
            hook.remove()


LAYER = "encoder.layer.1."
MLP = [f"{LAYER}attention.{name}" for name in ("q_proj", "v_proj", "o_proj")] + [f"{LAYER}mlp.fc1"]
SWIGLU = [f"{LAYER}mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")] + [f"{LAYER}attention.k_proj"]
HALF = [f"{LAYER}mlp.up_proj"]
PATCHES = ["embeddings.patch_embeddings.projection", f"{LAYER}mlp.fc2"]


@pytest.mark.parametrize(
    "stock, modules",
    [(False, MLP), (True, SWIGLU), (True, HALF), (False, PATCHES)],
    ids=["mlp", "swiglu", "half of swiglu", "patches"],
    indirect=["stock"],
)
@pytest.mark.parametrize(
    "settings, scale",
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / 3**0.5),
        ({"lora_alpha": 1, "alpha_pattern": {r"layer\.1\..*|projection": 9}}, 3.0),
    ],
    ids=["plain", "rank-stabilised", "patterns"],
)
def test_adapter_of_the_stock_class_gives_its_features(stock, tmp_path, modules, settings, scale):
    factors = adapter(tmp_path / "adapter", stock, modules, settings)
    weights = open_weights(str(tmp_path / "adapter"))
    expected = adapted_features(stock, factors, dict.fromkeys(factors, scale))
    torch.testing.assert_close(features(weights.build()), expected, atol=1e-5, rtol=0)
    assert (expected - features(stock)).abs().max() > 0.1
    assert weights.kind.startswith("LoRA adapter of peft, added to ") and not weights.remarks


def test_adapter_of_our_class_gives_its_features(stock, tmp_path):
    ours = Dinov2Model.from_pretrained(tmp_path / "base")
    names = [f"{LAYER}attention.attention.query", f"{LAYER}attention.output.dense", f"{LAYER}mlp.fc2"]
    adapter(tmp_path / "adapter", ours, names)
    for name, tensor in open_weights(str(tmp_path / "adapter")).backbone().items():
        same = torch.equal(tensor, ours.state_dict()[name])
        assert same == (name.removesuffix(".weight") not in names)


def test_adapter_of_a_classifier_is_read_with_what_it_replaces(stock, tmp_path):
    more = {
        "base_model.model.classifier.weight": torch.ones(3, 96),
        "base_model.model.dinov2.layernorm.weight": torch.full((48,), 2.0),
    }
    adapter(tmp_path / "adapter", stock, [MLP[0]], more=more, prefix="base_model.model.dinov2.")
    weights = open_weights(str(tmp_path / "adapter"))
    assert torch.equal(weights.backbone()["layernorm.weight"], torch.full((48,), 2.0))
    assert weights.remarks == ["base_model.model.classifier.weight is left out: no part of the backbone"]


def test_magnitudes_of_dora_scale_the_rows(stock, tmp_path):
    name = MLP[0]
    magnitudes = torch.rand(48) + 1
    more = {f"base_model.model.{name}.lora_magnitude_vector": magnitudes}
    ((first, second),) = adapter(tmp_path / "adapter", stock, [name], {"use_dora": True}, more).values()
    changed = stock.get_submodule(name).weight + 2.0 * second @ first
    found = open_weights(str(tmp_path / "adapter")).backbone()[f"{LAYER}attention.attention.query.weight"]
    torch.testing.assert_close(found.norm(dim=1), magnitudes)
    torch.testing.assert_close(
        torch.nn.functional.normalize(found, dim=1), torch.nn.functional.normalize(changed, dim=1)
    )


def test_adapter_is_inspected_and_exported_like_a_model(stock, tmp_path):
    adapter(tmp_path / "adapter", stock, MLP)
    assert "LoRA adapter of peft, added to " in inspect_path(str(tmp_path / "adapter"))
    export_source(str(tmp_path / "adapter"), tmp_path / "export")
    expected = open_weights(str(tmp_path / "adapter")).build()
    again = StockModel.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(features(again), features(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"peft_type": "IA3"}, "is an adapter of the kind IA3 of peft, and only LORA is read; write the whole model: "),
        ({"init_lora_weights": "pissa_niter_16"}, "has init_lora_weights='pissa_niter_16', a kind of LoRA that is not"),
        ({"use_qalora": True}, "has use_qalora=True, a kind of LoRA that is not read; write the whole model: "),
        ({"base_model_name_or_path": None}, "does not say which model it was trained on"),
        ({"alpha_pattern": {"(": 1}}, "has a damaged adapter_config.json"),
        ({"alpha_pattern": 3}, "has a damaged adapter_config.json"),
    ],
)
def test_adapter_that_is_not_read_is_refused_with_the_way_round(stock, tmp_path, settings, message):
    adapter(tmp_path / "adapter", stock, MLP, settings)
    with pytest.raises(ValueError, match="^[^\n]*$") as caught:
        open_weights(str(tmp_path / "adapter"))
    assert str(caught.value).startswith(f"SOURCE={tmp_path / 'adapter'} {message}")


def test_adapter_of_another_model_is_refused(stock, tmp_path):
    wide = StockModel(StockConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4))
    adapter(tmp_path / "wide", wide, MLP)
    with pytest.raises(ValueError, match=r"changes .*_proj.weight by \[64, 3\] x \[3, 64\], and it is \[48, 48\]"):
        open_weights(str(tmp_path / "wide"))
    deep = StockModel(StockConfig(hidden_size=48, num_hidden_layers=5, num_attention_heads=4))
    adapter(tmp_path / "deep", deep, ["encoder.layer.4.mlp.fc1"])
    with pytest.raises(
        ValueError, match="has encoder.layer.4.mlp.fc1, which is not a whole part of the model it names"
    ):
        open_weights(str(tmp_path / "deep"))
    adapter(tmp_path / "chain", stock, MLP, {"base_model_name_or_path": str(tmp_path / "chain")})
    with pytest.raises(ValueError, match="was trained on .*chain, another adapter; write the whole model"):
        open_weights(str(tmp_path / "chain"))


@pytest.mark.parametrize("settings", [{}, {"alpha_pattern": {"layers.1.attention.q_proj": 12}}])
def test_adapter_of_the_stock_vit_is_read_with_the_names_that_it_has_in_memory(tmp_path, settings):
    from transformers import ViTConfig, ViTModel

    shape = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    model = ViTModel(ViTConfig(**shape, patch_size=8, image_size=32), add_pooling_layer=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "base")
    modules = ["layers.1.attention.q_proj", "layers.0.mlp.fc2", "layers.1.attention.o_proj"]
    factors = adapter(tmp_path / "adapter", model, modules, settings)
    scales = {name: 6 / RANK for name in modules} | ({modules[0]: 12 / RANK} if settings else {})
    expected = adapted_features(model, factors, scales)
    found = features(open_weights(str(tmp_path / "adapter")).build())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
