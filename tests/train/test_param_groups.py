"""Groups of the optimiser (their multipliers are compared with the published ones in tests/parity)."""

import torch

from dinov2_hf.ssl import DINOv2Pretraining
from dinov2_hf.train.param_groups import apply_schedule, build_param_groups
from dinov2_hf.train.schedules import StepValues


def test_groups_hold_every_trainable_parameter_once(tiny_config):
    model = DINOv2Pretraining(tiny_config())
    groups = build_param_groups(model.student.named_parameters(), 2, 0.9, 0.2)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.student.parameters())
    assert build_param_groups(model.teacher.named_parameters(), 2, 0.9, 0.2) == []


def test_prototypes_stand_still_while_frozen(tiny_config):
    model = DINOv2Pretraining(tiny_config())
    optimizer = torch.optim.AdamW(build_param_groups(model.student.named_parameters(), 2, 0.9, 0.2), lr=0.0)
    before = {name: parameter.clone() for name, parameter in model.student.named_parameters()}
    for parameter in model.student.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_schedule(optimizer.param_groups, StepValues(0.1, 0.0, 0.04, 0.99, 0.04))
    optimizer.step()
    for name, parameter in model.student.named_parameters():
        assert torch.equal(parameter, before[name]) == ("last_layer" in name), name
