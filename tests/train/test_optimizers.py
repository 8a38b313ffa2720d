"""Optimisers and clipping against naive twins; updates that are skipped; the state at the start."""

import math

import pytest
import torch

from dinov2_hf.backbones import ViTConfig
from dinov2_hf.backbones.transformer.attention import SelfAttentionProjections
from dinov2_hf.config import OptimConfig
from dinov2_hf.train.norms import clip_each_, fused_parameters, whole_norms
from dinov2_hf.train.optimizers import build_optimizer, create_state

SHAPES = {"kernel": (6, 3, 2, 2), "matrix": (5, 8), "token": (1, 1, 8), "zeros": (4, 3), "bias": (7,), "gain": (1, 1)}
STEPS = 7


def parameters():
    generator = torch.Generator().manual_seed(1)
    made = {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}
    with torch.no_grad():
        made["zeros"].zero_()
    return made


def gradients(step):
    """Those of an update; of `token` it is 0 at first, and `gain` has none at first."""
    generator = torch.Generator().manual_seed(100 + step)
    made = {name: torch.randn(shape, generator=generator) * 3 ** (step % 3) for name, shape in SHAPES.items()}
    if step == 0:
        made["token"].zero_()
    if step < 2:
        made["gain"] = None
    return made


def scheduled(step):
    """Learning rate and weight decay."""
    return 0.02 * (step + 1) / STEPS, 0.1 + 0.05 * step


def build(optim, held):
    """As a run builds it: vectors are not decayed."""
    groups = [
        {"params": [p for p in held.values() if p.ndim > 1], "decayed": 1.0},
        {"params": [p for p in held.values() if p.ndim < 2], "decayed": 0.0},
    ]
    optimizer = build_optimizer(groups, optim)
    create_state(optimizer)
    return optimizer


def update(optimizer, held, step, found_inf=None):
    lr, weight_decay = scheduled(step)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, weight_decay * group["decayed"]
    for name, gradient in gradients(step).items():
        held[name].grad = None if gradient is None else gradient.clone()
    if found_inf is not None:
        optimizer.found_inf = torch.tensor(found_inf)


def adamw(state, weight, gradient, lr, weight_decay, betas=(0.9, 0.999)):
    count = state["count"] = state.get("count", 0) + 1
    first = state["first"] = betas[0] * state.get("first", 0) + (1 - betas[0]) * gradient
    second = state["second"] = betas[1] * state.get("second", 0) + (1 - betas[1]) * gradient**2
    weight = weight * (1 - lr * weight_decay)
    corrected = (second / (1 - betas[1] ** count)).sqrt() + 1e-8
    return weight - lr * first / (1 - betas[0] ** count) / corrected


def sgd(state, weight, gradient, lr, weight_decay, momentum=0.9):
    state["buffer"] = momentum * state.get("buffer", 0) + gradient + weight_decay * weight
    return weight - lr * state["buffer"]


def lars(state, weight, gradient, lr, weight_decay, momentum=0.9):
    if weight.ndim > 1:
        gradient = gradient + weight_decay * weight
        of_weight, of_gradient = weight.norm(), gradient.norm()
        if of_weight > 0 and of_gradient > 0:
            gradient = gradient * 0.001 * of_weight / of_gradient
    state["buffer"] = momentum * state.get("buffer", 0) + gradient
    return weight - lr * state["buffer"]


def clipped(gradient, limit):
    return gradient * min(limit / (gradient.norm() + 1e-6), 1.0)


@pytest.mark.parametrize("limit", [math.inf, 2.0])
@pytest.mark.parametrize(
    ("optim", "twin"),
    [
        (OptimConfig(), adamw),
        (OptimConfig(betas=[0.8, 0.95]), lambda *args: adamw(*args, betas=(0.8, 0.95))),
        (OptimConfig(optimizer="sgd"), sgd),
        (OptimConfig(optimizer="sgd", momentum=0.0), lambda *args: sgd(*args, momentum=0.0)),
        (OptimConfig(optimizer="lars"), lars),
        (OptimConfig(optimizer="lars", momentum=0.5), lambda *args: lars(*args, momentum=0.5)),
    ],
)
def test_updates_with_clipping_of_each_parameter_equal_those_of_a_naive_twin(optim, twin, limit):
    held = parameters()
    expected = {name: parameter.detach().double() for name, parameter in held.items()}
    states = {name: {} for name in held}
    optimizer = build(optim, held)
    for step in range(STEPS):
        update(optimizer, held, step)
        clip_each_(held.values(), limit)
        optimizer.step()
        lr, weight_decay = scheduled(step)
        for name, gradient in gradients(step).items():
            if gradient is not None:
                decay = weight_decay if expected[name].ndim > 1 else 0.0
                gradient = clipped(gradient.double(), limit)
                expected[name] = twin(states[name], expected[name], gradient, lr, decay)
    for name, parameter in held.items():
        torch.testing.assert_close(parameter.double(), expected[name], atol=1e-6, rtol=1e-6, msg=name)
        assert (expected[name] - parameters()[name]).abs().max() > 1e-6


def test_sgd_is_that_of_torch():
    ours, theirs = parameters(), parameters()
    optimizer = build(OptimConfig(optimizer="sgd"), ours)
    stock = torch.optim.SGD([{"params": [p]} for p in theirs.values()], lr=0.0, momentum=0.9)
    for step in range(STEPS):
        update(optimizer, ours, step)
        lr, weight_decay = scheduled(step)
        for (name, gradient), group in zip(gradients(step).items(), stock.param_groups, strict=True):
            group["lr"], group["weight_decay"] = lr, weight_decay if theirs[name].ndim > 1 else 0.0
            theirs[name].grad = gradient
        optimizer.step()
        stock.step()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], atol=1e-6, rtol=1e-6, msg=name)


def test_lars_with_weight_decay_on_vectors_leaves_them_without_decay():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([{"params": [parameter]}], OptimConfig(optimizer="lars", momentum=0.0))
    optimizer.param_groups[0].update(lr=0.5, weight_decay=10.0)
    parameter.grad = torch.tensor([1.0, 0.0, -2.0])
    optimizer.step()
    assert parameter.tolist() == [0.5, 1.0, 2.0]


OPTIMIZERS = ["adamw", "sgd", "lars"]


def everything(optimizer, held):
    """Weights and state, by name."""
    found = {name: parameter.detach().clone() for name, parameter in held.items()}
    for name, parameter in held.items():
        found |= {f"{name}.{entry}": value.clone() for entry, value in optimizer.state[parameter].items()}
    return found


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("skipped", [0, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update_that_is_not_finite_leaves_weights_and_state_bit_for_bit(optimizer, skipped):
    """The first update or a later one; the run goes on as if it had not been."""
    results = []
    for spoiled in (True, False):
        held = parameters()
        made = build(OptimConfig(optimizer=optimizer), held)
        for step in range(STEPS):
            if spoiled and step == skipped:
                before = everything(made, held)
                update(made, held, step, found_inf=1.0)
                held["matrix"].grad[0, 0] = math.nan
                held["bias"].grad[1] = -math.inf
                made.step()
                assert_equal(everything(made, held), before)
            update(made, held, step, found_inf=0.0)
            made.step()
        results.append(everything(made, held))
    assert_equal(*results)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameter_has_a_state_of_zeros_at_the_start(optimizer):
    held = parameters()
    made = build(OptimConfig(optimizer=optimizer), held)
    entries = {"step", "exp_avg", "exp_avg_sq"} if optimizer == "adamw" else {"momentum_buffer"}
    for name, parameter in held.items():
        assert torch.equal(parameter, parameters()[name]) and parameter.grad is None
        assert made.state[parameter].keys() == entries
        assert all(not value.any() for value in made.state[parameter].values())
    assert getattr(made, "found_inf", None) is None


def test_adamw_whose_state_was_made_before_computes_what_torch_computes():
    results = []
    for early in (True, False):
        held = parameters()
        optimizer = torch.optim.AdamW(list(held.values()), lr=0.01, fused=True)
        if early:
            create_state(optimizer)
        for step in range(STEPS):
            for name, gradient in gradients(step).items():
                held[name].grad = gradient
            optimizer.step()
        results.append(everything(optimizer, held))
    assert_equal(*results)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameter_without_gradient_keeps_weight_and_state(optimizer):
    held = parameters()
    made = build(OptimConfig(optimizer=optimizer), held)
    for step in range(2):
        update(made, held, step)
        made.step()
    found = everything(made, held)
    assert torch.equal(found["gain"], parameters()["gain"])
    assert all(not value.any() for name, value in found.items() if name.startswith("gain."))


def test_only_gradients_above_the_limit_are_changed():
    held = parameters()
    scales = dict(zip(held, (10.0, 1.0, 0.1, 0.0, 5.0, 0.2)))
    for name, parameter in held.items():
        direction = torch.randn_like(parameter)
        parameter.grad = direction / direction.norm() * scales[name]
    before = {name: parameter.grad.clone() for name, parameter in held.items()}
    norm = clip_each_(held.values(), 2.0)
    assert norm.item() == pytest.approx(math.sqrt(sum(scale**2 for scale in scales.values())), rel=1e-5)
    for name, parameter in held.items():
        if scales[name] > 2:
            assert parameter.grad.norm().item() == pytest.approx(2 / (1 + 1e-6 / scales[name]), rel=1e-5)
            torch.testing.assert_close(parameter.grad, before[name] * 2 / scales[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(parameter.grad, before[name]), name


def test_gradients_of_exactly_the_limit_are_shortened_by_the_published_constant():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    clip_each_([parameter], 5.0)
    assert parameter.grad.norm().item() == pytest.approx(5 * 5 / (5 + 1e-6), rel=1e-7)


def test_projections_of_attention_are_clipped_as_the_one_tensor_that_they_are_in_the_published_code():
    torch.manual_seed(0)
    attention = SelfAttentionProjections(ViTConfig.preset("tiny"))
    fused = fused_parameters(torch.nn.ModuleDict({"a": attention, "b": torch.nn.Linear(3, 3)}))
    assert [[tuple(parameter.shape) for parameter in group] for group in fused] == [[(192, 192)] * 3, [(192,)] * 3]
    for parameter in attention.parameters():
        parameter.grad = torch.randn_like(parameter)
    whole = [torch.cat([parameter.grad for parameter in group]) for group in fused]
    norm = clip_each_(attention.parameters(), 3.0, fused)
    assert norm.item() == pytest.approx(torch.cat([tensor.flatten() for tensor in whole]).norm().item(), rel=1e-5)
    for group, expected in zip(fused, whole, strict=True):
        found = torch.cat([parameter.grad for parameter in group])
        torch.testing.assert_close(found, clipped(expected, 3.0))


@pytest.mark.parametrize("drops", [False, True])
def test_lars_scales_the_projections_of_attention_as_the_one_tensor_that_they_are_in_the_published_code(drops):
    """A group of which one has no gradient is not one."""
    torch.manual_seed(0)
    attention = SelfAttentionProjections(ViTConfig(hidden_size=8, num_attention_heads=2))
    optimizer = build_optimizer([{"params": list(attention.parameters())}], OptimConfig(optimizer="lars"))
    optimizer.fused = fused_parameters(attention)
    optimizer.param_groups[0].update(lr=0.5, weight_decay=0.1)
    for parameter in attention.parameters():
        parameter.grad = torch.randn_like(parameter)
    layers = [attention.query, attention.key, attention.value]
    if drops:
        attention.value.weight.grad = None
        layers = [attention.query]
    before = torch.cat([layer.weight.detach() for layer in layers])
    expected = lars({}, before, torch.cat([layer.weight.grad for layer in layers]), 0.5, 0.1)
    optimizer.step()
    found = torch.cat([layer.weight.detach() for layer in layers])
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)


def test_nothing_to_clip_has_the_norm_zero():
    assert clip_each_([torch.nn.Parameter(torch.ones(2))], 1.0).item() == 0.0


def test_norms_are_those_of_each_tensor():
    tensors = [torch.randn(shape) for shape in SHAPES.values()]
    assert whole_norms(tensors).tolist() == pytest.approx([tensor.norm().item() for tensor in tensors], rel=1e-6)
