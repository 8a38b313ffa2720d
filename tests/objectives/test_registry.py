"""Objectives and terms from outside the package: registered by name, refused where a part is missing."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from dinov2_hf.config import RUNS, TERMS, DINOv2RunConfig, RunConfig, TermConfig, load_config
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import (
    OBJECTIVES,
    DINOv2,
    FurtherTerm,
    Objective,
    Term,
    find_objective,
    register_objective,
    register_term,
)
from dinov2_hf.objectives.further import FURTHER_TERMS
from dinov2_hf.train import TrainingStep, build_accelerator


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What a test registers is forgotten after it."""
    for registry in (OBJECTIVES, RUNS, FURTHER_TERMS, TERMS):
        for name in list(registry):
            monkeypatch.setitem(registry, name, registry[name])
    before = [set(registry) for registry in (OBJECTIVES, RUNS, FURTHER_TERMS, TERMS)]
    yield
    for registry, names in zip((OBJECTIVES, RUNS, FURTHER_TERMS, TERMS), before, strict=True):
        for name in set(registry) - names:
            del registry[name]
    AcceleratorState._reset_state(reset_partial_state=True)


@dataclass
class OwnConfig(RunConfig):
    """The configuration of an objective from outside."""

    objective: str = "own"


def parts(*names):
    """A class of an objective that defines these parts of the contract."""
    known = {
        "terms_of": classmethod(lambda cls, config: {"own": Term(1.0, "nothing")}),
        "build_networks": lambda self, student, drop_path_rate: {},
        "forward": lambda self, batch, values, diagnose=False: None,
    }
    return type("Own", (Objective,), {name: known[name] for name in names})


WHOLE = ("terms_of", "build_networks", "forward")


@pytest.mark.parametrize("missing", [*WHOLE, None])
def test_objective_that_lacks_a_part_of_the_contract_is_refused_naming_it(missing):
    names = [name for name in WHOLE if missing is not None and name != missing]
    lacking = missing or ", ".join(WHOLE)
    with pytest.raises(TypeError) as refused:
        register_objective("own", OwnConfig)(parts(*names))
    assert str(refused.value) == f"the objective 'own' (Own) does not define {lacking}"
    assert "own" not in OBJECTIVES and "own" not in RUNS


@pytest.mark.parametrize("kind", [nn.Module, "Own", lambda config: None])
def test_objective_that_is_of_another_class_is_refused(kind):
    with pytest.raises(TypeError, match="the objective 'own' must derive from Objective, not "):
        register_objective("own", OwnConfig)(kind)


def test_objective_without_a_configuration_is_refused():
    with pytest.raises(TypeError, match="the objective 'own' has no configuration; give one that derives from RunC"):
        register_objective("own")(parts(*WHOLE))
    for config in (dict, OwnConfig()):
        with pytest.raises(TypeError, match="configuration of the objective 'own' must derive from RunConfig"):
            register_objective("own", config)(parts(*WHOLE))
    assert "own" not in OBJECTIVES


def test_registered_objective_is_found_by_the_key_of_its_configuration():
    kind = register_objective("own", OwnConfig)(parts(*WHOLE))
    config = load_config(None, ["objective=own", "data.train.path=/images"])
    assert type(config) is OwnConfig and find_objective(config) is kind and kind.name == "own"
    with pytest.raises(ValueError, match="dino.num_prototypes|dino in the command line is not read by objective=own"):
        load_config(None, ["objective=own", "data.train.path=/images", "dino.num_prototypes=8"])
    config.objective = "other"
    with pytest.raises(ValueError, match="objective='other' is not one of dino, dinov2, .*own"):
        find_objective(config)


class Spread(FurtherTerm):
    title = "spread of the student's CLS"

    def forward(self, seen):
        return seen.student.cls.float().var(dim=0).mean()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (nn.Module, "the term 'spread' must derive from FurtherTerm, not "),
        (type("Own", (FurtherTerm,), {"title": "something"}), r"the term 'spread' \(Own\) does not define forward"),
        (type("Own", (FurtherTerm,), {"forward": lambda *_: 0}), r"the term 'spread' \(Own\) does not define title"),
    ],
)
def test_term_that_lacks_a_part_of_the_contract_is_refused_naming_it(kind, message):
    with pytest.raises(TypeError, match=message):
        register_term("spread")(kind)
    assert "spread" not in FURTHER_TERMS and "spread" not in TERMS


def test_term_with_a_configuration_of_another_class_is_refused():
    with pytest.raises(TypeError, match="the configuration of the term 'spread' must derive from TermConfig"):
        register_term("spread", DINOv2RunConfig)(Spread)
    assert "spread" not in FURTHER_TERMS


def test_registered_term_has_its_own_section_and_is_part_of_the_loss(tiny_config):
    @dataclass
    class SpreadConfig(TermConfig):
        power: float = 1.0

    with pytest.raises(ValueError, match="terms.spread: no term of that name is registered"):
        tiny_config("terms.spread.weight=2")
    register_term("spread", SpreadConfig)(Spread)
    config = tiny_config("terms.spread.weight=2", "terms.spread.power=3", "model.drop_path_rate=0")
    assert config.terms == {"spread": SpreadConfig(weight=2.0, power=3.0)}
    with pytest.raises(ValueError, match="terms.spread.powr in the command line is not a config key"):
        tiny_config("terms.spread.powr=3")
    masks = torch.arange(8 * 16).view(8, 16) % 5 == 0
    crops = (torch.rand(8, 3, 32, 32), torch.rand(8, 3, 16, 16))
    batch = SSLBatch(*crops, masks, *SSLBatch.flatten_masks(masks))
    objective = DINOv2(config)
    plain = DINOv2(tiny_config("model.drop_path_rate=0"))
    plain.load_state_dict(objective.state_dict())
    found, expected = (one(batch, SimpleNamespace(teacher_temp=0.05)) for one in (objective, plain))
    assert found.terms.keys() - expected.terms.keys() == {"spread"}
    assert DINOv2.terms_of(config)["spread"] == Term(2.0, Spread.title)
    assert found.terms["spread"] > 0
    torch.testing.assert_close(found.loss, expected.loss + 2 * found.terms["spread"])


def test_trainable_parameter_of_no_student_is_refused_by_the_step(tiny_config):
    config = tiny_config()
    objective = DINOv2(config)
    objective.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match="scale of DINOv2 is trainable but part of no student.*or freeze it"):
        TrainingStep(objective, config, build_accelerator(config.train))
    objective.scale.requires_grad_(False)
    TrainingStep(objective, config, build_accelerator(config.train))
