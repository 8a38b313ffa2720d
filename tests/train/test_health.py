"""Signs of health in a run, what they cost, and what keeps numbers that are not finite from the weights."""

import contextlib
import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2_hf.data import TrainingBatches
from dinov2_hf.runs import read_metrics
from dinov2_hf.train import Callback, Trainer, build_accelerator
from dinov2_hf.train.health import CollapseWatch
from dinov2_hf.train.schedules import values_at

from .running import train

SIGNS = {
    "rankme",
    "teacher_student_cosine",
    "target_entropy/dino",
    "target_entropy/ibot",
    "prototypes_used/dino",
    "prototypes_used/ibot",
    "target_kl/dino",
    "target_kl/ibot",
}
BARE_SIGNS = {"rankme", "teacher_student_cosine", "projection_std"}
"""Of an objective without prototypes."""
PARTS = {
    "backbone": ["embeddings", "layer_00", "layer_01", "layernorm"],
    "dino_head": ["dino_head.mlp", "dino_head.last_layer"],
    "ibot_head": ["ibot_head.mlp", "ibot_head.last_layer"],
}
NORMS_OF_PARTS = {f"grad_norm_of/{part}" for parts in PARTS.values() for part in parts}


def tensors(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def moments(trainer):
    states = trainer.training_step.optimizer.state_dict()["state"]
    return {f"{index}.{name}": value.clone() for index, state in states.items() for name, value in state.items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def prepared_batch(trainer):
    """The run's first batch, coloured and normalised."""
    batches = TrainingBatches(trainer.source, trainer.config, 0, 1)
    return trainer.augment(batches.batch(0))


# warnings


def looks(watch, *values, name="rankme"):
    return [watch.look({name: value}) for value in values]


def test_fall_of_the_rank_is_said_once_and_again_after_a_recovery():
    watch = CollapseWatch(100)
    assert looks(watch, 10.0, 20.0, 5.0) == [[], [], []]  # a quarter of the best is still allowed
    (warning,) = watch.look({"rankme": 4.9})
    assert "effective rank fell from 20.0 to 4.9" in warning
    for remedy in ("lower optim.base_lr", "higher teacher.momentum", "higher koleo.loss_weight", "a checkpoint before"):
        assert remedy in warning
    assert looks(watch, 4.0, 1.0) == [[], []]
    assert looks(watch, 5.1) == [[]]
    (again,) = watch.look({"rankme": 3.0})
    assert "from 20.0 to 3.0" in again


@pytest.mark.parametrize("term", ["dino", "ibot"])
def test_few_prototypes_are_said_once_with_term_share_and_remedy(term):
    watch, name = CollapseWatch(100), f"prototypes_used/{term}"
    assert looks(watch, 0.5, 0.01, name=name) == [[], []]
    (warning,) = watch.look({name: 0.0099})
    assert f"the {term} targets are collapsing: 0.99% of the prototypes" in warning
    for remedy in ("teacher.centering=sinkhorn_knopp", "higher teacher.temp", "lower optim.base_lr"):
        assert remedy in warning
    assert looks(watch, 0.005, 0.02, name=name) == [[], []]
    assert len(watch.look({name: 0.005})) == 1


@pytest.mark.parametrize("term", ["dino", "ibot"])
def test_targets_that_become_uniform_are_said_once_and_again_after_a_recovery(term):
    watch, name = CollapseWatch(100), f"target_entropy/{term}"
    assert looks(watch, 1.0, 0.999, 0.95, 0.999, name=name) == [[]] * 4  # uniform from the start, never below the limit
    assert looks(watch, 0.9, 0.995, name=name) == [[], []]
    (warning,) = watch.look({name: 0.999})
    assert f"the {term} targets have become uniform (entropy 99.9% of its maximum, after 90.0%)" in warning
    assert "lower teacher.temp" in warning and "a checkpoint before the rise" in warning
    assert looks(watch, 1.0, 0.9, name=name) == [[], []]
    assert len(watch.look({name: 0.996})) == 1


def test_every_cause_is_said_by_itself():
    watch = CollapseWatch(100)
    watch.look({"rankme": 20.0, "target_entropy/ibot": 0.9, "target_entropy/dino": 0.9})
    bad = {"rankme": 1.0, "prototypes_used/dino": 0.001, "target_entropy/ibot": 1.0}
    assert len(watch.look(bad)) == 3
    (warning,) = watch.look(bad | {"prototypes_used/ibot": 0.001})
    assert warning.startswith("the ibot targets are collapsing")
    (warning,) = watch.look(bad | {"target_entropy/dino": 1.0})
    assert warning.startswith("the dino targets have become uniform")


def test_numbers_that_are_not_finite_say_nothing_and_are_forgotten():
    watch = CollapseWatch(100)
    assert looks(watch, math.nan, 20.0, math.nan) == [[], [], []]
    assert watch.look({name: math.nan for name in SIGNS}) == []
    assert len(watch.look({"rankme": 4.0})) == 1


def test_term_without_samples_is_no_collapse():
    assert CollapseWatch(100).look({"prototypes_used/ibot": 0.0, "target_entropy/ibot": 0.0}) == []


LATE = [
    ("target_entropy/ibot", {"target_entropy/ibot": 0.9998}, ["the ibot targets are uniform after a tenth", "99.98%"]),
    ("rankme", {"rankme": 1.2}, ["effective rank is 1.2", "lower optim.lr", "model.layerscale_value=0.1"]),
    (
        "target_entropy/dino",
        {"target_entropy/dino": 0.001, "target_kl/dino": 0.002, "prototypes_used/dino": 0.1},
        ["the dino targets are collapsed", "0.1% of its maximum", "teacher.centering=sinkhorn_knopp"],
    ),
]


@pytest.mark.parametrize(("recovering", "signs", "words"), LATE)
def test_what_is_bad_from_the_start_is_said_once_after_a_tenth_of_the_run(recovering, signs, words):
    watch = CollapseWatch(1000, "optim.lr")
    assert [watch.look(signs | {"step": step}) for step in (0, 10, 99)] == [[], [], []]
    (warning,) = watch.look(signs | {"step": 100})
    assert all(word in warning for word in (*words, "in a new run"))
    later = [signs, signs | {recovering: 0.97 if "/" in recovering else 2.5}, signs]
    assert [watch.look(values | {"step": 200 + index}) for index, values in enumerate(later)] == [[]] * 3


def test_sharp_targets_that_are_not_answered_and_those_without_samples_are_no_collapse():
    watch = CollapseWatch(10)
    for divergence in (0.0, 0.5):
        assert watch.look({"step": 9, "target_entropy/dino": 0.01, "target_kl/dino": divergence}) == []


def test_run_says_after_a_tenth_that_its_targets_are_uniform_also_across_a_resume(tiny_config, caplog):
    config = tiny_config("teacher.warmup_temp=100", "teacher.temp=100", "train.log_every=1", "train.epochs=10")
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        train(config, until=5)
        AcceleratorState._reset_state(reset_partial_state=True)
        train(config, until=8)
    assert warnings_of(caplog, "are uniform after a tenth") == [("2", "dino"), ("2", "ibot")]


def test_run_with_a_wanted_entropy_logs_the_temperature_that_it_uses_also_across_a_resume(tiny_config):
    """Each is that of the update before, times the exponential of half of what its targets lack in entropy."""
    config = tiny_config("teacher.target_entropy=0.1", "train.log_every=1", "teacher.warmup_temp_epochs=0")
    train(config, until=4)
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = train(config)
    for term in ("dino", "ibot"):
        lines, expected = read_metrics(trainer.folder), [0.07]
        for line in lines[:-1]:
            expected.append(line[f"teacher_temp/{term}"] * math.exp(0.5 * (0.1 - line[f"target_entropy/{term}"])))
        assert [line[f"teacher_temp/{term}"] for line in lines] == pytest.approx(expected, rel=1e-5)
        assert expected[-1] < 0.06


def warnings_of(caplog, kind):
    found = [record.getMessage() for record in caplog.records if kind in record.getMessage()]
    return [re.match(r"update (\d+): the (\w+) ", message).groups() for message in found]


def test_run_says_once_that_targets_have_become_uniform_also_across_a_resume(tiny_config, caplog):
    """The temperature rises within two updates to one at which any targets are uniform."""
    config = tiny_config("teacher.warmup_temp=0.02", "teacher.temp=100", "train.log_every=1")
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        trainer = train(config, until=5)
        AcceleratorState._reset_state(reset_partial_state=True)
        train(config)
    first, *others = read_metrics(trainer.folder)
    for term in ("dino", "ibot"):
        assert first[f"target_entropy/{term}"] < 0.95
        assert all(line[f"target_entropy/{term}"] > 0.9999 for line in others)
    assert warnings_of(caplog, "have become uniform") == [("2", "dino"), ("2", "ibot")]


def test_run_without_masks_says_nothing_of_patches(tiny_config, caplog):
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        trainer = train(tiny_config("ibot.mask_probability=0", "train.log_every=1"), until=2)
    assert [line["prototypes_used/ibot"] for line in read_metrics(trainer.folder)] == [0.0, 0.0]
    assert warnings_of(caplog, "the ibot targets") == []


# what is logged


class Recorder:
    """A training step that keeps the names of what each update gave."""

    def __init__(self, step):
        self.step, self.names = step, []

    def __call__(self, *args, **kwargs):
        scalars = self.step(*args, **kwargs)
        self.names.append(set(scalars))
        return scalars

    def __getattr__(self, name):
        return getattr(self.step, name)


def test_signs_are_computed_and_logged_on_cadence_only(tiny_config):
    def prepare(trainer):
        trainer.training_step = Recorder(trainer.training_step)

    def evaluate(student):
        return {"score": 1.0}

    config = tiny_config("train.log_every=2", "train.epochs=3.5")
    trainer = train(config, prepare=prepare, callbacks=[Callback(1, evaluate)])
    terms = {"loss", "loss/dino_global", "loss/dino_local", "loss/ibot", "loss/koleo"} | {
        f"grad_norm/{name}" for name in PARTS
    }
    on_cadence = terms | SIGNS | NORMS_OF_PARTS
    expected = [on_cadence if number in (2, 4, 6, 7) else terms for number in range(1, 8)]
    assert trainer.training_step.names == expected

    lines = read_metrics(trainer.folder)
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 7]
    for line in logged:
        assert on_cadence | {"skipped_updates", "broken_images"} <= line.keys()
        assert all(math.isfinite(value) for value in line.values())
        assert 1 <= line["rankme"] <= 8 and -1 <= line["teacher_student_cosine"] <= 1  # 8 global crops
        for term in ("dino", "ibot"):
            assert 0 < line[f"target_entropy/{term}"] <= 1.00001 and 0 < line[f"prototypes_used/{term}"] <= 1
    others = [line for line in lines if "loss" not in line]
    assert [line.keys() for line in others] == [{"step", "score"}] * 5


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["teacher.centering=softmax", "train.gradient_accumulation_steps=2"],
        ["objective=dino", "dino.batch_norm=true"],
        ["objective=ibot"],
        ["objective=simdino", "ibot.loss_weight=1"],
    ],
)
def test_diagnosing_changes_no_parameter(tiny_config, tmp_path, overrides):
    """Every update diagnosed, or the last alone: parameters, centre and moments bit for bit."""
    runs = []
    for cadence in (1, 100):
        settings = [f"train.log_every={cadence}", f"train.output_dir={tmp_path / str(cadence)}", *overrides]
        runs.append(train(tiny_config(*settings)))
    assert [len(read_metrics(run.folder)) for run in runs] == [6, 1]
    assert_equal(tensors(runs[1].objective), tensors(runs[0].objective))
    assert_equal(moments(runs[1]), moments(runs[0]))


def test_squared_norms_of_the_parts_add_up_to_that_of_their_network(tiny_config):
    """Before clipping, like the norm of the network."""
    trainer = train(tiny_config("train.log_every=1", "optim.clip_grad=0.001"))
    lines = read_metrics(trainer.folder)
    assert len(lines) == 6
    for line in lines:
        assert {name for name in line if name.startswith("grad_norm_of/")} == NORMS_OF_PARTS
        for network, parts in PARTS.items():
            whole = line[f"grad_norm/{network}"]
            assert whole > 0.001
            assert sum(line[f"grad_norm_of/{part}"] ** 2 for part in parts) == pytest.approx(whole**2, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "updates", "entropy"),
    [
        (["teacher.centering=none", "teacher.temp=0.04", "teacher.warmup_temp=0.04"], 12, 0.0),
        pytest.param(["teacher.temp=0.1", "teacher.warmup_temp=0.1"], 80, 1.0, marks=pytest.mark.slow),
    ],
    ids=["without_centering", "without_sharpening"],
)
def test_targets_collapse_without_centering_or_sharpening_as_the_dino_paper_shows(
    tiny_config, overrides, updates, entropy
):
    """Section 5.3: onto one prototype or onto all of them, and in both cases nothing is left to learn."""
    keys = ["objective=dino", "train.batch_size=8", f"train.log_every={updates}", "train.checkpoint_epochs=1000"]
    keys += ["optim.base_lr=1", "optim.warmup_epochs=2", "optim.freeze_last_layer_epochs=0"]
    keys += ["teacher.momentum=0.9", "teacher.warmup_temp_epochs=0", f"train.epochs={updates / 2}"]
    trainer = train(tiny_config(*keys, *overrides))
    (line,) = read_metrics(trainer.folder)
    assert line["target_entropy/dino"] == pytest.approx(entropy, abs=0.02)
    assert 0 <= line["target_kl/dino"] + 1e-6 < 0.01


# no value is read from the device between two cadences

READS = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "allclose",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
}
PYTHON_READS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__array__",
    "__contains__",
    "__repr__",
    "__format__",
}


class Operations(TorchDispatchMode):
    """Names of the operations that wait for the device; indexing by a mask looks for where it is true."""

    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        self.count += 1
        if name in READS:
            self.reads.append(name)
        if name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            self.reads += [f"{name} by a mask"] * len(masks)
        return function(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Names of the calls that hand a tensor's values to Python, which on the CPU need no operation."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in PYTHON_READS:
            self.reads.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum()),
        lambda x: float(x.sum()),
        lambda x: int(x.sum()),
        lambda x: range(x.sum().int()),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 0.0).nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: torch.equal(x, x + 1),
        lambda x: torch.unique(x),
        lambda x: 1.0 if (x > 0).all() else 0.0,
        lambda x: 3.0 in x,
        lambda x: f"{x.sum():.3f}",
    ],
)
def test_a_read_of_a_value_is_noticed(read):
    """The instrument of the next test."""
    tensor = torch.rand(4) + 0.5
    with Methods() as methods, Operations() as operations:
        read(tensor)
    assert methods.reads or operations.reads


NO_READS = [
    [],
    ["teacher.centering=softmax", "optim.clip_grad=0"],
    ["train.gradient_accumulation_steps=2", "model.drop_path_rate=0"],
    ["teacher.target_entropy=0.8", "teacher.sinkhorn_queue=16"],
    ["train.precision=bf16", "ibot.separate_head=false", "koleo.distributed=true"],
    ["optim.optimizer=sgd", "optim.clip_by=parameter", "teacher.update=previous_update"],
    ["optim.optimizer=lars", "optim.freeze_last_layer_by=gradients"],
    ["objective=dino", "dino.batch_norm=true", "dino.norm_last_layer=false"],
    ["objective=ibot", "dino.norm_last_layer=false"],
    ["objective=simdino", "ibot.loss_weight=1", "coding_rate.features=mean"],
]


@pytest.mark.parametrize("overrides", NO_READS)
def test_an_update_reads_no_value(tiny_config, overrides):
    """Model, losses, clipping, optimiser and teacher; asked of the second update, when the optimiser has its state."""
    config = tiny_config(*overrides)
    trainer = Trainer.from_config(config, build_accelerator(config.train))
    batch = prepared_batch(trainer)
    trainer.training_step(lambda: batch, values_at(trainer.schedules, 0), 0)
    before = tensors(trainer.objective.student)
    with Methods() as methods, Operations() as operations:
        trainer.training_step(lambda: batch, values_at(trainer.schedules, 1), 1)
    assert operations.count > 500
    assert (methods.reads, operations.reads) == ([], [])
    after = tensors(trainer.objective.student)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("diagnose", [False, True])
@pytest.mark.parametrize("overrides", [*NO_READS[:4], *NO_READS[-3:]])
def test_an_update_runs_where_there_are_no_values(tiny_config, overrides, diagnose, monkeypatch):
    """On the `meta` device, where reading is an error and a shape cannot depend on a value.

    All but the arithmetic of the optimiser, whose fused kernel does not exist there. Autocast, off in float32 anyhow,
    does not know the device.
    """
    config = tiny_config(*overrides)
    trainer = Trainer.from_config(config, build_accelerator(config.train))
    step, batch = trainer.training_step, prepared_batch(trainer)
    trainer.objective.to("meta")
    step.counters = step.counters.to("meta")
    step._optimizer.step = lambda: None
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    scalars = step(lambda: batch.to("meta"), values_at(trainer.schedules, 1), 1, diagnose=diagnose)
    terms, networks = trainer.objective.terms_of(config), trainer.objective.student
    bare = config.objective == "simdino"
    expected = {sign for sign in (BARE_SIGNS if bare else SIGNS) if not sign.endswith("/ibot") or "ibot" in terms}
    parts = [part for name in networks for part in PARTS[name] if not (bare and part.endswith(".last_layer"))]
    expected |= {f"grad_norm_of/{part}" for part in parts}
    assert (expected <= scalars.keys()) == diagnose
    assert {value.device.type for value in scalars.values()} == {"meta"} and step.counters.device.type == "meta"
    with pytest.raises(RuntimeError):
        scalars["loss"].item()


# a loss that is not finite


def spoil(*updates, crops="global_crops"):
    """Fills a crop, masked if it is a global one, of the first batch of the given updates with infinity."""

    def prepare(trainer):
        next_batch, last = trainer._next_batch, {}

        def spoiled(loader):
            batch = next_batch(loader)
            if trainer.step in updates and last.get("step") != trainer.step:
                masked = batch.masks.any(dim=1).nonzero().flatten().tolist()
                getattr(batch, crops)[masked[0] if masked and crops == "global_crops" else 0] = math.inf
            last["step"] = trainer.step
            return batch

        trainer._next_batch = spoiled

    return prepare


def observe(trainer, states):
    """Keeps all state after every update, and the teacher momentum it was made with."""
    update_averages = trainer.objective.update_averages

    def observed(values):
        update_averages(values)
        counters = trainer.training_step.counters.tolist()
        states.append((tensors(trainer.objective), moments(trainer), counters, values.teacher_momentum))

    trainer.objective.update_averages = observed


@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher.centering=softmax"],
        ["teacher.centering=softmax", "teacher.momentum=1.0"],
        ["teacher.centering=sinkhorn_knopp", "train.gradient_accumulation_steps=2"],
        ["teacher.centering=softmax", "train.precision=bf16"],
        ["teacher.centering=softmax", "optim.optimizer=sgd", "optim.clip_by=parameter"],
        ["teacher.centering=softmax", "optim.optimizer=lars"],
        ["objective=dino", "dino.norm_last_layer=false"],
        ["objective=ibot", "dino.norm_last_layer=false"],
        ["objective=simdino", "ibot.loss_weight=1"],
    ],
)
def test_crop_that_is_infinite_leaves_weights_moments_and_centre_as_they_were(tiny_config, overrides):
    """The teacher goes on towards the student as it is, and stands still at a momentum of 1."""
    states = []

    def prepare(trainer):
        spoil(2)(trainer)
        observe(trainer, states)

    trainer = train(tiny_config("train.log_every=1", *overrides), prepare=prepare)
    (before, moments_before, counters_before, _), (after, moments_after, counters, momentum) = states[1:3]
    assert (counters_before, counters) == ([0.0, 0.0], [1.0, 1.0])
    kept = [name for name in before if not name.startswith("teacher.")]
    centering = getattr(trainer.config.teacher, "centering", None)
    assert any(name.startswith("centering.") for name in kept) == (centering == "softmax")
    assert_equal({name: after[name] for name in kept}, {name: before[name] for name in kept})
    assert_equal(moments_after, moments_before)
    for name in before.keys() - set(kept):
        towards = before[name.replace("teacher.", "student.", 1)]
        assert torch.equal(after[name], torch.add(before[name] * momentum, towards, alpha=1 - momentum)), name
        assert momentum < 1 or torch.equal(after[name], before[name])

    final, _, counters, _ = states[-1]
    assert len(states) == trainer.step == 6 and counters == [1.0, 0.0]
    assert all(torch.isfinite(value).all() for state, *_ in states for value in state.values())
    assert [name for name in kept if torch.equal(final[name], after[name])] == []
    lines = read_metrics(trainer.folder)
    assert [line["loss"] is not None for line in lines] == [True, True, False, True, True, True]
    assert [line["skipped_updates"] for line in lines] == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_local_crop_that_is_infinite_reaches_no_weight_either(tiny_config):
    states = []

    def prepare(trainer):
        spoil(2, crops="local_crops")(trainer)
        observe(trainer, states)

    train(tiny_config(), prepare=prepare)
    (before, moments_before, *_), (after, moments_after, counters, _) = states[1:3]
    assert counters == [1.0, 1.0]
    student = [name for name in before if name.startswith("student.")]
    assert_equal({name: after[name] for name in student}, {name: before[name] for name in student})
    assert_equal(moments_after, moments_before)
    assert all(torch.isfinite(value).all() for value in states[-1][0].values())


def test_skipped_updates_are_counted_on_after_a_resume(tiny_config, tmp_path):
    """Skipped: the third update; ended after the fifth, resumed from the checkpoint at 4."""
    settings = ["teacher.centering=softmax"]
    whole = train(tiny_config(*settings, f"train.output_dir={tmp_path / 'whole'}"), prepare=spoil(2))
    config = tiny_config(*settings, f"train.output_dir={tmp_path / 'parts'}")
    train(config, until=5, prepare=spoil(2))
    written = json.loads((tmp_path / "parts" / "checkpoints" / "step-00000004" / "run.json").read_text())
    assert written["counters"] == [1.0, 0.0] and written["scaler"] is None
    found = []
    again = train(config, prepare=lambda trainer: found.append(trainer.training_step.counters.tolist()))
    assert found == [[1.0, 0.0]] and again.training_step.counters.tolist() == [1.0, 0.0]
    assert [line["skipped_updates"] for line in read_metrics(tmp_path / "parts")] == [0.0, 1.0, 1.0]
    assert_equal(tensors(again.objective), tensors(whole.objective))
    assert_equal(moments(again), moments(whole))


def test_updates_skipped_in_a_row_are_counted_across_a_resume(tiny_config):
    config = tiny_config("train.max_skipped_updates=4")
    trainer = train(config, until=4, prepare=spoil(2, 3))
    assert trainer.training_step.counters.tolist() == [2.0, 2.0]
    with pytest.raises(FloatingPointError, match="not finite in 4 updates in a row"):
        train(config, prepare=spoil(4, 5))


# gradient scaling, as accelerate sets it up for fp16


def scaled_accelerator(config, scale, growth_interval=2000):
    """What accelerate builds for fp16 on a GPU, on the CPU: it leaves these two attributes unset there, no more."""
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="fp16",
        log_with="tensorboard",
        project_dir=config.train.output_dir,
        step_scheduler_with_optimizer=False,
    )
    assert accelerator.scaler is None and not accelerator.native_amp
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=float(scale), growth_interval=growth_interval)
    return accelerator


def wider_heads(trainer):
    """Heads this narrow have outputs close to 0 at first, and gradients that float16 cannot hold."""
    generator = torch.Generator().manual_seed(0)
    for name in ("dino_head", "ibot_head"):
        for layer in trainer.objective.student[name].mlp:
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.normal_(layer.weight, std=0.5, generator=generator)
    trainer.objective.copy_students_to_averages()


def train_scaled(config, scale, until=None, prepare=None, growth_interval=2000):
    dtypes = set()

    def prepare_all(trainer):
        if trainer.step == 0:
            wider_heads(trainer)
        layer = trainer.objective.student["backbone"].encoder.layer[0].mlp.fc1
        layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
        if prepare:
            prepare(trainer)

    accelerator = scaled_accelerator(config, scale, growth_interval)
    trainer = train(config, until=until, prepare=prepare_all, accelerator=accelerator)
    assert dtypes == {torch.float16}
    return trainer


def test_scaled_gradients_are_unscaled_before_they_are_measured_and_clipped(tiny_config, tmp_path):
    """Clipped to 0.01, whatever the scale; and logged with the norms before, in which no scale is left."""
    runs = {}
    for scale in (2**4, 2**9):
        norms = {}

        def record(trainer, norms=norms):
            step = trainer.training_step.optimizer.step

            def observed(*args, **kwargs):
                for name, network in trainer.objective.student.items():
                    gradients = [parameter.grad for parameter in network.parameters()]
                    norms.setdefault(name, []).append(torch.nn.utils.get_total_norm(gradients).item())
                return step(*args, **kwargs)

            # accelerate puts this method in place of the optimiser's for the time of a scaled step
            trainer.training_step._optimizer._optimizer_patched_step_method = observed

        folder = f"train.output_dir={tmp_path / str(scale)}"
        config = tiny_config("optim.clip_grad=0.01", "train.log_every=1", "koleo.loss_weight=0", folder)
        trainer = train_scaled(config, scale, until=2, prepare=record)
        assert trainer.training_step.counters.tolist() == [0.0, 0.0]
        assert norms == {name: pytest.approx([0.01] * 2, rel=1e-3) for name in PARTS}
        runs[scale] = read_metrics(Path(config.train.output_dir))
    first, second = runs.values()
    for name in (f"grad_norm/{network}" for network in PARTS):
        assert first[0][name] > 0.01
        assert [line[name] for line in second] == pytest.approx([line[name] for line in first], rel=2e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_overflow_skips_the_update_and_halves_the_scale(tiny_config, optimizer):
    """At a scale of 2^30 every gradient overflows."""
    states = []
    config = tiny_config("teacher.momentum=1.0", "teacher.centering=softmax", f"optim.optimizer={optimizer}")
    scale = 2**30
    trainer = train_scaled(config, scale, prepare=lambda trainer: observe(trainer, states))
    assert trainer.accelerator.scaler.get_scale() == scale / 2**6
    assert [counters for _, _, counters, _ in states] == [[float(n), float(n)] for n in range(1, 7)]
    first = states[0][0]
    weights = [name for name in first if not name.startswith("centering.")]
    for state, kept, *_ in states:
        assert_equal({name: state[name] for name in weights}, {name: first[name] for name in weights})
        assert all(torch.isfinite(value).all() for value in state.values())
        assert not any(value.abs().max() > 0 for value in kept.values())
    assert not torch.equal(states[-1][0]["centering.dino.center"], first["centering.dino.center"])  # a finite forward
    assert read_metrics(trainer.folder)[-1]["skipped_updates"] == 6.0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_infinite_crop_under_a_scaler_skips_one_update(tiny_config, optimizer):
    states = []

    def prepare(trainer):
        spoil(2)(trainer)
        observe(trainer, states)

    config = tiny_config("koleo.loss_weight=0", f"optim.optimizer={optimizer}")
    trainer = train_scaled(config, 2**9, prepare=prepare)
    (before, *_), (after, _, counters, _) = states[1:3]
    student = [name for name in before if name.startswith("student.")]
    assert counters == [1.0, 1.0] and states[-1][2] == [1.0, 0.0]
    assert_equal({name: after[name] for name in student}, {name: before[name] for name in student})
    assert [name for name in student if torch.equal(states[-1][0][name], after[name])] == []
    assert trainer.accelerator.scaler.get_scale() == 2**8
    assert all(torch.isfinite(value).all() for value in states[-1][0].values())


def test_scaler_is_saved_and_restored_so_that_a_resumed_run_is_the_same(tiny_config, tmp_path):
    """The scale doubles after every third update: at 512 until the third, 1024 until the sixth."""
    settings = ["koleo.loss_weight=0"]
    whole = train_scaled(tiny_config(*settings, f"train.output_dir={tmp_path / 'a'}"), 2**9, growth_interval=3)
    config = tiny_config(*settings, f"train.output_dir={tmp_path / 'b'}")
    train_scaled(config, 2**9, until=5, growth_interval=3)
    written = json.loads((tmp_path / "b" / "checkpoints" / "step-00000004" / "run.json").read_text())["scaler"]
    expected = {"scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3}
    assert written == expected | {"_growth_tracker": 1}

    AcceleratorState._reset_state(reset_partial_state=True)
    found = []

    def prepare(trainer):
        found.append(trainer.accelerator.scaler.state_dict())

    again = train_scaled(config, 2**16, prepare=prepare)  # as a new process would build it
    assert found == [written]
    assert again.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert again.accelerator.scaler.get_scale() == 2**11
    assert_equal(tensors(again.objective), tensors(whole.objective))
    assert_equal(moments(again), moments(whole))
