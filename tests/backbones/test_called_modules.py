"""What hooks, wraps, quantises or offloads a module of the model takes part in every forward.

The model computes some products from parameters without calling the modules that hold them, because that is faster.
Here each module is changed in the ways that users change them, and the result is compared with that of a model whose
weights are changed instead.
"""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from torch.nn.utils import parametrize, prune

from dinov2_hf.backbones.dinov2.modeling import Dinov2Layer
from dinov2_hf.backbones.transformer.packing import Packing

READ_DIRECTLY = {  # modules whose parameters, or whose parts, a fast path reads
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "output": "attention.output.dense",
    "scale1": "layer_scale1",
    "scale2": "layer_scale2",
}
POSITIONS = torch.tensor([0, 20, 5, 19])


def forward(model, pixels):
    return model(pixels).last_hidden_state


def forward_packed(model, pixels):
    return torch.cat([group.flatten(0, 1) for group in model.forward_packed([pixels, pixels[..., :16, :16]])])


def forward_at(model, pixels):
    return model.forward_at(POSITIONS, [pixels, pixels[..., :16, :16]])


def maps(model, pixels):
    return model.get_intermediate_layers(pixels, 2)[0][0]


each_forward = pytest.mark.parametrize("run", [forward, forward_packed, forward_at, maps], ids=lambda run: run.__name__)
each_module = pytest.mark.parametrize("name", READ_DIRECTLY.values(), ids=READ_DIRECTLY)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def model(tiny):
    """Residual branches of weight 1, so that a change in one shows."""
    return tiny(layerscale_value=1.0).eval()


@each_forward
def test_every_module_of_a_layer_is_called_where_it_is_hooked(model, pixels, run):
    expected = run(model, pixels)
    called = set()
    layer = model.encoder.layer[-1]
    modules = dict(layer.named_modules())
    for name, module in modules.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    torch.testing.assert_close(run(model, pixels), expected, atol=1e-5, rtol=1e-5)
    assert called == modules.keys()


def test_every_module_of_the_model_is_called_by_its_forward(model, pixels):
    called = set()
    modules = {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    model(pixels)
    assert called == modules.keys()


@each_module
@each_forward
def test_hook_that_changes_an_output_changes_the_features(model, pixels, name, run):
    twin = copy.deepcopy(model)
    layer, other = model.encoder.layer[-1], twin.encoder.layer[-1]
    layer.get_submodule(name).register_forward_hook(lambda module, args, output: 3 * output)
    with torch.no_grad():
        for parameter in other.get_submodule(name).parameters():
            parameter.mul_(3)
    torch.testing.assert_close(run(model, pixels), run(twin, pixels), atol=1e-5, rtol=1e-5)


@each_module
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_backward_hook_sees_the_gradient_of_training(tiny, pixels, name, drop_path_rate):
    model = tiny(layerscale_value=1.0, drop_path_rate=drop_path_rate).train()
    seen = []
    model.encoder.layer[-1].get_submodule(name).register_full_backward_hook(lambda *_: seen.append(name))
    forward_at(model, pixels).sum().backward()
    assert seen == [name]


@each_forward
def test_pruned_weights_are_left_out_after_an_update(model, pixels, run):
    twin = copy.deepcopy(model)
    for layer, other in zip(model.encoder.layer, twin.encoder.layer):
        for name in READ_DIRECTLY.values():
            tensor = "lambda1" if "scale" in name else "weight"
            prune.l1_unstructured(layer.get_submodule(name), tensor, amount=0.5)
            with torch.no_grad():
                kept = getattr(layer.get_submodule(name), tensor)
                assert 0.4 < (kept == 0).float().mean() < 0.6
                getattr(other.get_submodule(name), tensor).copy_(2 * kept)
                getattr(layer.get_submodule(name), f"{tensor}_orig").mul_(2)
    torch.testing.assert_close(run(model, pixels), run(twin, pixels), atol=1e-5, rtol=1e-5)


@each_forward
def test_parametrised_weights_are_used(model, pixels, run):
    class Halved(nn.Module):
        def forward(self, weight):
            return weight / 2

    twin = copy.deepcopy(model)
    for layer, other in zip(model.encoder.layer, twin.encoder.layer):
        for name in READ_DIRECTLY.values():
            tensor = "lambda1" if "scale" in name else "weight"
            parametrize.register_parametrization(layer.get_submodule(name), tensor, Halved())
            with torch.no_grad():
                getattr(other.get_submodule(name), tensor).div_(2)
    torch.testing.assert_close(run(model, pixels), run(twin, pixels), atol=1e-5, rtol=1e-5)


class Int8Weight(torch.Tensor):
    """A weight as quantisation libraries hold it: a tensor subclass that knows its linear product and little more."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.scale = weight.abs().amax(dim=1, keepdim=True) / 127
        self.values = (weight / self.scale).round().to(torch.int8)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            tokens, weight, bias = (*args, None)[:3]
            return nn.functional.linear(tokens, weight.values * weight.scale, bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(function)


@each_forward
def test_quantised_weights_are_used_by_their_own_product(model, pixels, run):
    twin = copy.deepcopy(model)
    for layer, other in zip(model.encoder.layer, twin.encoder.layer):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                weight = Int8Weight(module.weight.detach())
                module.weight = nn.Parameter(weight, requires_grad=False)
                other.get_submodule(name).weight.data = weight.values * weight.scale
    torch.testing.assert_close(run(model, pixels), run(twin, pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@each_forward
def test_offloaded_weights_are_fetched(model, pixels, run, where, tmp_path):
    expected = run(model, pixels)
    if where == "cpu":
        cpu_offload(model, torch.device("cpu"))
    else:
        disk_offload(model, str(tmp_path), torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    torch.testing.assert_close(run(model, pixels), expected, atol=1e-5, rtol=1e-5)


def test_global_hook_sees_every_module(model, pixels):
    called = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.add(module))
    try:
        forward_at(model, pixels)
    finally:
        handle.remove()
    assert called >= set(model.encoder.layer[-1].modules())


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_gradients_reach_the_hidden_states_and_attentions(tiny, pixels, drop_path_rate):
    model = tiny(layerscale_value=1.0, drop_path_rate=drop_path_rate).train()
    output = model(pixels, output_hidden_states=True, output_attentions=True)
    inner = (*output.hidden_states, *output.attentions)
    gradients = torch.autograd.grad(output.last_hidden_state.square().sum(), inner)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_layers_see_sequences_as_in_the_stock_class(model, pixels):
    """`[B, T, D]`: what tools that explain a model reshape to a map."""
    seen = []
    layer = model.encoder.layer[-1]
    layer.norm1.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    output = model(pixels, output_hidden_states=True)
    assert seen == [(2, 19, 48)]
    assert torch.equal(layer(output.hidden_states[-2]), output.hidden_states[-1])


def test_sequences_equal_their_packing(tiny):
    layer = tiny(layerscale_value=1.0).encoder.layer[0]
    sequences = torch.randn(3, 7, 48)
    rows, packing = Packing.pack([sequences])
    assert torch.equal(layer(sequences), packing.unpack(layer(rows, packing))[0])


def test_input_embeddings_can_be_replaced(model, pixels):
    embeddings = copy.deepcopy(model.get_input_embeddings())
    assert embeddings.projection.weight.shape == (48, 3, 8, 8)
    nn.init.zeros_(embeddings.projection.weight)
    model.set_input_embeddings(embeddings)
    assert model.embeddings.patch_embeddings is embeddings
    assert torch.equal(model(pixels).last_hidden_state, model(2 * pixels).last_hidden_state)


def test_compiled_layer_has_no_graph_break(tiny):
    layer = tiny(layerscale_value=1.0).encoder.layer[0]
    assert isinstance(layer, Dinov2Layer)
    rows, packing = Packing.pack([torch.randn(2, 5, 48), torch.randn(3, 4, 48)])
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(rows, packing), layer(rows, packing))
    torch.testing.assert_close(compiled(rows, packing, None, POSITIONS), layer(rows, packing, None, POSITIONS))
