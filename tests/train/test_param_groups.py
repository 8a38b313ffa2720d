"""Groups of the optimiser (their multipliers are compared with the published ones in tests/parity)."""

import pytest
import torch

from dinov2_hf.objectives import DINOv2
from dinov2_hf.train.param_groups import apply_schedule, build_param_groups
from dinov2_hf.train.schedules import StepValues


def test_groups_hold_every_trainable_parameter_once(tiny_config):
    model = DINOv2(tiny_config())
    groups = build_param_groups(model.student, model.config.optim)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.student.parameters())
    assert build_param_groups(model.teacher, model.config.optim) == []


def test_prototypes_stand_still_while_frozen(tiny_config):
    model = DINOv2(tiny_config())
    optimizer = torch.optim.AdamW(build_param_groups(model.student, model.config.optim), lr=0.0)
    before = {name: parameter.clone() for name, parameter in model.student.named_parameters()}
    for parameter in model.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_schedule(optimizer.param_groups, StepValues(lr=0.1, last_layer_lr=0.0, weight_decay=0.04))
    optimizer.step()
    for name, parameter in model.student.named_parameters():
        assert torch.equal(parameter, before[name]) == ("last_layer" in name), name


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_only_the_backbone_is_scaled_while_heads_are_warmed_up(tiny_config, scale):
    model = DINOv2(tiny_config())
    groups = build_param_groups(model.student, model.config.optim)
    of_backbone = {id(parameter) for parameter in model.student["backbone"].parameters()}
    apply_schedule(groups, StepValues(lr=0.1, last_layer_lr=0.05, weight_decay=0.04, backbone_lr_scale=scale))
    rates = set()
    for group in groups:
        assert {id(parameter) in of_backbone for parameter in group["params"]} == {group["is_backbone"]}
        if group["is_backbone"]:
            assert group["lr"] == pytest.approx(0.1 * scale * group["lr_multiplier"], rel=1e-12)
        else:
            assert group["lr"] == (0.05 if group["is_last_layer"] else 0.1) and group["lr_multiplier"] == 1.0
        assert group["weight_decay"] == 0.04 * group["weight_decay_multiplier"]
        rates.add((group["is_backbone"], group["is_last_layer"]))
    assert rates == {(True, False), (False, False), (False, True)}


def test_backbone_stands_still_bit_for_bit_at_a_scale_of_zero(tiny_config):
    """Neither the gradient nor weight decay moves it, while its moments are gathered."""
    model = DINOv2(tiny_config())
    groups = build_param_groups(model.student, model.config.optim)
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    before = {name: parameter.clone() for name, parameter in model.student.named_parameters()}
    for _ in range(3):
        for parameter in model.student.parameters():
            parameter.grad = torch.randn_like(parameter)
        apply_schedule(
            optimizer.param_groups, StepValues(lr=0.1, last_layer_lr=0.1, weight_decay=0.4, backbone_lr_scale=0.0)
        )
        optimizer.step()
    for name, parameter in model.student.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("backbone."), name
        assert optimizer.state[parameter]["exp_avg"].abs().max() > 0


def test_one_rate_for_all_gives_the_groups_of_the_published_dino_code_and_the_last_layer(tiny_config):
    """Its rule: biases and vectors are not decayed."""
    config = tiny_config("optim.layerwise_decay=1", "optim.patch_embed_lr_mult=1")
    model = DINOv2(config)
    groups = build_param_groups(model.student, config.optim)
    names = {id(parameter): name for name, parameter in model.student.named_parameters()}
    found = {
        (group["weight_decay_multiplier"], group["is_last_layer"]): {names[id(p)] for p in group["params"]}
        for group in groups
    }
    expected = {(0.0, False): set(), (1.0, False): set(), (1.0, True): set()}
    for name, parameter in model.student.named_parameters():
        decayed = not (name.endswith(".bias") or parameter.ndim == 1)
        expected[float(decayed), "last_layer" in name].add(name)
    assert found == expected and len(groups) == 3
    assert all(group["lr_multiplier"] == 1 for group in groups)
    warmed = build_param_groups(model.student, config.optim, head_warmup=True)
    assert [group["is_backbone"] for group in warmed].count(True) == 2 and len(warmed) == 5
