"""The control of the temperature by the entropy of the targets."""

import math

import pytest
import torch

from dinov2_hf.config import TeacherConfig
from dinov2_hf.objectives.heads import Projected
from dinov2_hf.objectives.prototypes import assign, build_centers
from dinov2_hf.objectives.temperature import LARGEST_FACTOR, EntropyControl
from dinov2_hf.objectives.terms import Assignments

SAMPLES, PROTOTYPES, DIM = 64, 48, 16


def entropy_of(assignments):
    """Mean entropy of the targets as a share of its maximum, row by row in NumPy's float64."""
    rows = assignments.rows().double().numpy()
    total = sum(-value * math.log(value) for row in rows for value in row if value > 0)
    return total / len(rows) / math.log(rows.shape[1])


def projections(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(SAMPLES, DIM, generator=generator), dim=1)
    prototypes = torch.randn(PROTOTYPES, DIM, generator=torch.Generator().manual_seed(1000))
    return Projected(features, torch.nn.functional.normalize(prototypes, dim=1))


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax", "none"])
@pytest.mark.parametrize("start", [0.8, 0.03], ids=["from_above", "from_below"])
@pytest.mark.parametrize("wanted", [0.5, 0.7, 0.9])
def test_entropy_reaches_the_wanted_value_from_above_and_below(centering, start, wanted):
    teacher = TeacherConfig(centering=centering, target_entropy=wanted)
    parts = build_centers(teacher, {"dino": PROTOTYPES}, DIM)
    found = [entropy_of(assign(teacher, parts, "dino", projections(seed), start)) for seed in range(80)]
    assert abs(found[0] - wanted) > 0.05 and (found[0] > wanted) == (start == 0.8)
    assert found[-20:] == pytest.approx([wanted] * 20, abs=0.05)  # every batch is another one
    assert sum(found[-20:]) / 20 == pytest.approx(wanted, abs=0.01)


def test_first_targets_have_the_scheduled_temperature_and_a_change_of_it_is_followed():
    control = EntropyControl(0.5)
    assert control.temperature(0.04).item() == pytest.approx(0.04)
    control.log_factor.fill_(math.log(2))
    assert control.temperature(0.07).item() == pytest.approx(0.14)


def test_factor_moves_by_half_of_what_is_missing_and_stays_within_its_bounds():
    control, uniform = EntropyControl(0.8), Assignments.uncentred(torch.zeros(5, 12), torch.tensor(0.1))
    control.follow(uniform)
    assert control.log_factor.item() == pytest.approx(0.5 * (0.8 - 1))
    for _ in range(100):
        control.follow(uniform)
    assert control.temperature(1.0).item() == pytest.approx(1 / LARGEST_FACTOR)
    for _ in range(100):
        control.follow(Assignments.uncentred(torch.eye(12) * 100, torch.tensor(0.1)))
    assert control.temperature(1.0).item() == pytest.approx(LARGEST_FACTOR)


@pytest.mark.parametrize("logits", [torch.zeros(0, 12), torch.full((3, 12), math.nan), torch.zeros(3, 1)])
def test_targets_without_an_entropy_leave_the_factor(logits):
    control = EntropyControl(0.8)
    control.log_factor.fill_(0.25)
    control.follow(Assignments.uncentred(logits, torch.tensor(0.1)))
    assert control.log_factor.item() == 0.25


def test_temperature_on_the_device_gives_the_targets_of_the_same_number():
    logits = torch.randn(6, 9)
    for bias in (torch.zeros(9), torch.randn(9)):
        found = Assignments(logits, torch.tensor(0.07), bias).rows()
        torch.testing.assert_close(found, Assignments(logits, 0.07, bias).rows())


def test_terms_have_controls_of_their_own():
    parts = build_centers(TeacherConfig(target_entropy=0.8), {"dino": 8, "ibot": 8}, DIM)
    assert list(parts) == ["dino_temperature", "ibot_temperature"]
    assert list(build_centers(TeacherConfig(), {"dino": 8, "ibot": 8}, DIM)) == []
