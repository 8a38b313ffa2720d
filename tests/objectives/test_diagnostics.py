"""Signs of health on batches of which they are known by hand, and through the objective."""

import math
from types import SimpleNamespace

import pytest
import torch

from dinov2_hf.backbones import CropGroup
from dinov2_hf.data import PhotometricAugmentation, TrainingBatches, open_training_source
from dinov2_hf.objectives import DINOv2
from dinov2_hf.objectives.diagnostics import CrossEntropy, diagnose_batch, rankme
from dinov2_hf.objectives.terms import Assignments, sinkhorn_knopp

VALUES = SimpleNamespace(teacher_temp=0.05)


def assigned(probabilities):
    """Assignments whose rows are `probabilities`."""
    probabilities = torch.as_tensor(probabilities)
    return Assignments(probabilities.log(), 1.0, torch.zeros(probabilities.shape[1]))


def diagnose(**targets):
    features = torch.randn(4, 3)
    return diagnose_batch(features, features, targets)


def test_rankme_of_features_on_a_line_is_one():
    features = torch.randn(12, 1) @ torch.randn(1, 8)
    assert rankme(features).item() == pytest.approx(1.0, abs=1e-4)
    assert rankme(torch.ones(12, 8)).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("num_rows", [1, 3, 8])
def test_rankme_of_orthonormal_rows_is_their_number(num_rows):
    features = torch.linalg.qr(torch.randn(8, 8))[0][:num_rows]
    assert rankme(features).item() == pytest.approx(num_rows, rel=1e-5)
    assert rankme(features * 1000).item() == pytest.approx(num_rows, rel=1e-5)  # whatever their length


def test_rankme_is_the_exponential_of_the_entropy_of_the_spectrum():
    """Singular values 4, 2, 1, 1: shares 1/2, 1/4, 1/8, 1/8, of entropy 7/4 bits."""
    left, right = (torch.linalg.qr(torch.randn(n, n))[0] for n in (6, 4))
    features = left[:, :4] @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0])) @ right
    assert rankme(features).item() == pytest.approx(2**1.75, rel=1e-5)
    assert rankme(features.bfloat16()).item() == pytest.approx(2**1.75, rel=1e-2)  # half precision is taken


def test_rankme_of_zeros_is_defined():
    assert rankme(torch.zeros(4, 5)).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_give_no_rank_but_no_error(value):
    """A diverging run is stopped by its loss, with advice; a diagnostic must not end it before."""
    features = torch.randn(6, 4)
    features[1, 2] = value
    assert math.isnan(rankme(features).item())
    scalars = diagnose_batch(features, features, {"dino": assigned(torch.full((6, 5), 0.2))})
    assert math.isnan(scalars["teacher_student_cosine"].item())


def test_entropy_is_one_for_uniform_and_zero_for_one_hot_targets():
    scalars = diagnose(
        uniform=assigned(torch.full((6, 16), 1 / 16)),
        one_hot=assigned(torch.eye(16)[:6]),
        between=assigned(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])),
    )
    assert scalars["target_entropy/uniform"].item() == pytest.approx(1.0, abs=1e-6)
    assert scalars["target_entropy/one_hot"].item() == 0.0
    assert scalars["target_entropy/between"].item() == pytest.approx((0.5 + 1.0) / 2, abs=1e-6)


def test_prototypes_used_are_counted_of_those_that_could_be():
    def strongest(*prototypes):
        return assigned(torch.nn.functional.one_hot(torch.tensor(prototypes), 4) * 0.6 + 0.1)

    scalars = diagnose(few=strongest(0, 2, 2), one=strongest(3, 3, 3, 3, 3), many=strongest(0, 1, 2, 1, 0, 2, 2))
    assert scalars["prototypes_used/few"].item() == pytest.approx(2 / 3)  # 3 samples cannot use 4 prototypes
    assert scalars["prototypes_used/one"].item() == pytest.approx(1 / 4)
    assert scalars["prototypes_used/many"].item() == pytest.approx(3 / 4)


def test_cosine_is_one_for_the_same_and_minus_one_for_opposite_features():
    features = torch.randn(6, 8)
    for factor, expected in ((1.0, 1.0), (3.0, 1.0), (-2.0, -1.0)):
        scalars = diagnose_batch(features, features * factor, {})
        assert scalars["teacher_student_cosine"].item() == pytest.approx(expected, abs=1e-6)
    half = torch.cat((features[:3], -features[3:]))
    assert diagnose_batch(features, half, {})["teacher_student_cosine"].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("elements", [1, 40, 10**9])
def test_signs_do_not_depend_on_the_chunk_size(elements, monkeypatch):
    assignments = sinkhorn_knopp(torch.randn(21, 16), 0.1)
    rows = assignments.rows()
    entropy = -(rows * rows.log()).sum(1).mean() / math.log(16)
    used = len(rows.argmax(1).unique()) / 16
    monkeypatch.setattr("dinov2_hf.objectives.terms.assignments.CHUNK_ELEMENTS", elements)
    scalars = diagnose(dino=assignments)
    assert scalars["target_entropy/dino"].item() == pytest.approx(entropy.item(), rel=1e-5)
    assert scalars["prototypes_used/dino"].item() == pytest.approx(used)


def test_a_term_without_samples_has_zeros():
    targets = {"ibot": sinkhorn_knopp(torch.zeros(0, 8), 0.1)}
    answers = {"ibot": CrossEntropy(torch.zeros(()), torch.zeros(0))}
    scalars = diagnose_batch(torch.randn(4, 3), None, targets, answers)
    for sign in ("target_entropy", "prototypes_used", "target_kl"):
        assert scalars[f"{sign}/ibot"].item() == 0.0


@pytest.mark.parametrize("elements", [1, 40, 10**9])
@pytest.mark.parametrize("weighted", [False, True])
def test_divergence_is_the_weighted_mean_of_that_of_each_sample(weighted, elements, monkeypatch):
    monkeypatch.setattr("dinov2_hf.objectives.terms.assignments.CHUNK_ELEMENTS", elements)
    target, student = (torch.softmax(torch.randn(9, 16) * 2, dim=1) for _ in range(2))
    weights = torch.rand(9) if weighted else None
    shares = weights if weighted else torch.full((9,), 1 / 9)
    answer = CrossEntropy(-(shares @ (target * student.log()).sum(dim=1)), weights)
    scalars = diagnose_batch(torch.randn(4, 3), None, {"dino": assigned(target)}, {"dino": answer})
    divergence = (target * (target / student).log()).sum(dim=1)
    assert scalars["target_kl/dino"].item() == pytest.approx((shares @ divergence / shares.sum()).item(), rel=1e-5)


@pytest.mark.parametrize("logits", [torch.zeros(6, 8), torch.eye(8)[:6] * 50, torch.eye(8)[[2] * 6] * 50])
def test_divergence_of_a_student_that_gives_the_targets_is_zero(logits):
    """Uniform ones, one-hot ones, and all the same."""
    targets = Assignments(logits, 1.0, torch.zeros(8))
    rows = targets.rows()
    answer = CrossEntropy(torch.special.entr(rows).sum(dim=1).mean())
    scalars = diagnose_batch(torch.randn(4, 3), None, {"dino": targets}, {"dino": answer})
    assert scalars["target_kl/dino"].item() == pytest.approx(0.0, abs=1e-6)
    assert scalars["target_entropy/dino"].item() == pytest.approx(1.0 if not logits.any() else 0.0, abs=1e-6)


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax"])
def test_divergences_of_an_update_are_those_of_student_and_teacher(tiny_config, centering):
    """Of CLS over all pairs of crops, and of the masked patches with the weights of the loss."""
    config = tiny_config(f"teacher.centering={centering}", "model.drop_path_rate=0", "koleo.loss_weight=0")
    torch.manual_seed(0)
    model = DINOv2(config).train()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    batch = make_batch(config)
    centers = {name: module.center[0].clone() for name, module in model.centering.items()}
    output = model(batch, VALUES, diagnose=True)

    def student(features, head):
        return torch.log_softmax(model.student[head](features).logits / 0.1, dim=1)

    def teacher(features, term):
        logits = model.teacher[f"{term}_head"](features).logits
        if centering == "softmax":
            return torch.softmax((logits - centers[term]) / VALUES.teacher_temp, dim=1)
        return sinkhorn_knopp(logits, VALUES.teacher_temp).rows()

    with torch.no_grad():
        crops = [CropGroup(batch.global_crops, batch.masks, batch.mask_indices), CropGroup(batch.local_crops)]
        seen, local = model.student["backbone"].tokens(crops)
        (told,) = model.teacher["backbone"].tokens([CropGroup(batch.global_crops, wanted=batch.mask_indices)])
        views = [*student(seen.cls, "dino_head").chunk(2), *student(local.cls, "dino_head").chunk(2)]
        targets = teacher(told.cls, "dino").chunk(2)
        pairs = [(target, view) for i, target in enumerate(targets) for j, view in enumerate(views) if i != j]
        of_cls = [(target * (target.log() - view)).sum(dim=1).mean() for target, view in pairs]
        answers, target = student(seen.patches, "ibot_head"), teacher(told.patches, "ibot")
        of_patches = (target * (target.log() - answers)).sum(dim=1)
    weights = batch.mask_weights
    expected = {"dino": torch.stack(of_cls).mean(), "ibot": weights @ of_patches / weights.sum()}
    for term, value in expected.items():
        assert output.diagnostics[f"target_kl/{term}"].item() == pytest.approx(value.item(), rel=1e-4), term
        assert value > 0.01


def make_batch(config):
    source = open_training_source(config.data, config.train.seed)
    return PhotometricAugmentation(config.colors)(TrainingBatches(source, config, 0, 1).batch(0))


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax"])
def test_diagnosing_changes_neither_loss_nor_gradients(tiny_config, centering):
    config = tiny_config(f"teacher.centering={centering}")
    batch = make_batch(config)
    results = []
    for diagnosed in (False, True):
        torch.manual_seed(0)
        model = DINOv2(config).train()
        output = model(batch, VALUES, diagnose=diagnosed)
        output.loss.backward()
        results.append((output.loss.detach(), *(p.grad for p in model.student.parameters()), *model.buffers()))
        results[-1] += (torch.get_rng_state(),)
    assert all(torch.equal(plain, diagnosed) for plain, diagnosed in zip(*results, strict=True))
    signs = ("target_entropy", "prototypes_used", "target_kl")
    terms = {f"{sign}/{term}" for sign in signs for term in ("dino", "ibot")}
    assert output.diagnostics.keys() == {"rankme", "teacher_student_cosine"} | terms
    for value in output.diagnostics.values():
        assert value.dtype == torch.float32 and value.shape == () and not value.requires_grad
        assert torch.isfinite(value)


def test_nothing_is_diagnosed_unasked(tiny_config):
    config = tiny_config()
    assert DINOv2(config).train()(make_batch(config), VALUES).diagnostics == {}


def test_terms_that_are_off_or_empty_are_diagnosed_as_such(tiny_config):
    config = tiny_config("dino.loss_weight=0", "ibot.mask_probability=0")
    output = DINOv2(config).train()(make_batch(config), VALUES, diagnose=True)
    found = {name: value.item() for name, value in output.diagnostics.items() if "/" in name}
    assert found == {"target_entropy/ibot": 0.0, "prototypes_used/ibot": 0.0, "target_kl/ibot": 0.0}


def test_student_and_teacher_that_are_equal_agree(tiny_config):
    config = tiny_config("ibot.mask_probability=0")
    model = DINOv2(config).eval()
    output = model(make_batch(config), VALUES, diagnose=True)
    assert output.diagnostics["teacher_student_cosine"].item() == pytest.approx(1.0, abs=1e-6)
