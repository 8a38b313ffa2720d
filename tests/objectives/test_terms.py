"""Each term against its formula written out, and at its edges."""

import math

import pytest
import torch

from dinov2_hf.objectives.terms import (
    Assignments,
    SoftmaxCentering,
    dino_loss,
    ibot_loss,
    koleo_loss,
    prototype_cross_entropy,
)


def assigned(probabilities):
    """Assignments whose rows are `probabilities`."""
    return Assignments(probabilities.log(), 1.0, torch.zeros(probabilities.shape[-1]))


def cross_entropy(student_logits, targets):
    return -(targets * (student_logits / 0.1).log_softmax(-1)).sum(-1)


def test_cross_entropy_is_the_written_out_sum():
    student, targets = torch.randn(3, 7), torch.rand(3, 7).softmax(-1)
    for i, only in enumerate(torch.eye(3)):  # a weight of one on one sample
        expected = -sum(targets[i, k] * (student[i, k] / 0.1 - torch.logsumexp(student[i] / 0.1, 0)) for k in range(7))
        found = prototype_cross_entropy(student[None], torch.eye(7), assigned(targets), [[0]], only, 0.1)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("num_local", [0, 3])
def test_dino_loss_is_the_sum_over_pairs(num_local):
    """Each global crop against the other's target, each local crop against both; values and gradients."""
    features = torch.nn.functional.normalize(torch.randn(2 + num_local, 4, 6), dim=-1).requires_grad_()
    prototypes = torch.randn(9, 6, requires_grad=True)
    teacher = torch.rand(2, 4, 9).softmax(-1)
    found = dino_loss(features, prototypes, assigned(teacher.flatten(0, 1)))
    first, second, *local = (features @ prototypes.T).unbind()
    among_global = cross_entropy(first, teacher[1]).mean() + cross_entropy(second, teacher[0]).mean()
    with_local = sum((cross_entropy(s, t).mean() for s in local for t in teacher), torch.zeros(()))
    for fast, naive in zip(found, (among_global, with_local)):
        torch.testing.assert_close(fast, naive)
    inputs = (features, prototypes)
    naive_gradients = torch.autograd.grad(among_global + 3 * with_local, inputs)
    for fast, naive in zip(torch.autograd.grad(found[0] + 3 * found[1], inputs), naive_gradients, strict=True):
        torch.testing.assert_close(fast, naive)


def test_losses_are_float32_whatever_comes_in():
    half = torch.randn(3, 4, 8).bfloat16()
    teacher = Assignments(torch.rand(8, 8).bfloat16(), 0.05, torch.zeros(8))
    assert all(loss.dtype == torch.float32 for loss in dino_loss(half, torch.eye(8), teacher))
    first = Assignments(teacher.logits[:4], 0.05, torch.zeros(8))
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher.rows().dtype == torch.float32
        assert ibot_loss(half[0], torch.eye(8), first, torch.ones(4), 2).dtype == torch.float32
        assert koleo_loss(half[0]).dtype == torch.float32


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    target = assigned(torch.tensor([[1.0, 0.0, 0.0]]))
    loss = prototype_cross_entropy(logits, torch.eye(3), target, [[0]], torch.ones(1), 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.0) and torch.isfinite(logits.grad).all()


def test_ibot_loss_averages_within_images_then_over_them():
    losses = torch.tensor([1.0, 3.0, 5.0])  # two patches of one image, one of another, a third image has none
    features = torch.stack((torch.zeros(3), 0.1 * torch.log(losses.exp() - 1)), dim=1)  # log(1 + (exp(loss) - 1))
    teacher = assigned(torch.tensor([[1.0, 0.0]]).expand(3, 2))
    loss = ibot_loss(features, torch.eye(2), teacher, torch.tensor([0.5, 0.5, 1.0]), num_images=3)
    assert loss.item() == pytest.approx(((1 + 3) / 2 + 5 + 0) / 3)


def test_ibot_gradients_equal_the_written_out_ones():
    features, prototypes = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    targets, weights = torch.rand(5, 7).softmax(-1), torch.rand(5)
    fast = ibot_loss(features, prototypes, assigned(targets), weights, num_images=3)
    naive = (cross_entropy(features @ prototypes.T, targets) * weights).sum() / 3
    torch.testing.assert_close(fast, naive)
    found, expected = (torch.autograd.grad(loss, (features, prototypes)) for loss in (fast, naive))
    torch.testing.assert_close(found, expected)


def test_no_masked_patch_gives_zero_loss_and_gradient():
    features, prototypes = torch.zeros(0, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    loss = ibot_loss(features, prototypes, assigned(torch.zeros(0, 16)), torch.zeros(0), num_images=4)
    loss.backward()
    assert loss.item() == 0.0 and features.grad.shape == (0, 8)
    assert torch.equal(prototypes.grad, torch.zeros(16, 8))


def test_koleo_is_minus_log_distance_to_the_nearest_neighbour():
    angles = torch.tensor([0.0, 0.3, 1.5, 4.0])
    features = torch.stack((angles.cos(), angles.sin()), dim=1) * torch.tensor([[1.0], [5.0], [0.1], [2.0]])
    gaps = torch.tensor([0.3, 0.3, 1.2, 2 * math.pi - 4.0])
    expected = -torch.log(2 * torch.sin(gaps / 2)).mean()
    torch.testing.assert_close(koleo_loss(features), expected, atol=1e-5, rtol=1e-5)


def test_koleo_of_one_process_is_the_same_whichever_batches_it_looks_in():
    features = torch.randn(6, 8, requires_grad=True)
    losses = [koleo_loss(features, distributed) for distributed in (False, True)]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(loss, features)[0] for loss in losses))


def test_koleo_of_identical_features_is_large_but_finite():
    features = torch.ones(4, 8, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert loss.item() > 10 and torch.isfinite(loss) and torch.isfinite(features.grad).all()


@pytest.mark.parametrize("batch", [0, 1])
def test_koleo_without_neighbours_is_zero(batch):
    features = torch.randn(batch, 8, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert loss.item() == 0.0 and features.grad.abs().sum() == 0


def test_centering_uses_the_batches_before():
    centering = SoftmaxCentering(4, momentum=0.5)
    logits = torch.tensor([[4.0, 0.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
    first = centering(logits, 1.0)
    torch.testing.assert_close(first.rows(), logits.softmax(-1))
    torch.testing.assert_close(centering.center, 0.5 * logits.mean(0, keepdim=True))
    second = centering(logits, 0.5)
    torch.testing.assert_close(second.rows(), ((logits - 0.5 * logits.mean(0)) / 0.5).softmax(-1))
    torch.testing.assert_close(first.rows(), logits.softmax(-1))  # rows made late are under the centre of their time


def test_centre_stays_where_a_batch_has_no_samples():
    centering = SoftmaxCentering(4)
    centering(torch.randn(3, 4), 1.0)
    before = centering.center.clone()
    assert centering(torch.zeros(0, 4), 1.0).rows().shape == (0, 4)
    assert torch.equal(centering.center, before)
