"""Each term against its formula written out, and at its edges."""

import math

import pytest
import torch

from dinov2_hf.losses import SoftmaxCentering, dino_loss, ibot_loss, koleo_loss, prototype_cross_entropy


def test_cross_entropy_is_the_written_out_sum():
    student, targets = torch.randn(3, 7), torch.rand(3, 7).softmax(-1)
    expected = [
        -sum(targets[i, k] * (student[i, k] / 0.1 - torch.logsumexp(student[i] / 0.1, 0)) for k in range(7))
        for i in range(3)
    ]
    torch.testing.assert_close(prototype_cross_entropy(student, targets), torch.stack(expected))


def test_dino_loss_is_the_sum_over_pairs():
    """Summing the views before the cross-entropy changes neither value nor gradient."""
    student = torch.randn(5, 4, 9, requires_grad=True)
    teacher = torch.rand(2, 4, 9).softmax(-1)
    fast = dino_loss(student, teacher)
    naive = sum(prototype_cross_entropy(s, t).mean() for s in student for t in teacher)
    torch.testing.assert_close(fast, naive)
    torch.testing.assert_close(torch.autograd.grad(fast, student)[0], torch.autograd.grad(naive, student)[0])


def test_losses_are_float32_whatever_comes_in():
    half = torch.randn(2, 4, 8).bfloat16()
    targets = torch.rand(2, 4, 8).softmax(-1).bfloat16()
    assert dino_loss(half, targets).dtype == torch.float32
    assert ibot_loss(half[0], targets[0], torch.ones(4), 2).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert koleo_loss(half[0]).dtype == torch.float32


def test_huge_logits_do_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = prototype_cross_entropy(logits, torch.tensor([[1.0, 0.0, 0.0]])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0.0) and torch.isfinite(logits.grad).all()


def test_ibot_loss_averages_within_images_then_over_them():
    losses = torch.tensor([1.0, 3.0, 5.0])  # two patches of one image, one of another, a third image has none
    logits = torch.zeros(3, 2)
    targets = losses.unsqueeze(1) / math.log(2) * torch.tensor([[0.5, 0.5]])  # cross-entropy = sum of targets * log 2
    loss = ibot_loss(logits, targets, torch.tensor([0.5, 0.5, 1.0]), num_images=3)
    assert loss.item() == pytest.approx(((1 + 3) / 2 + 5 + 0) / 3)


def test_no_masked_patch_gives_zero_loss_and_gradient():
    logits = torch.zeros(0, 8, requires_grad=True)
    loss = ibot_loss(logits, torch.zeros(0, 8), torch.zeros(0), num_images=4)
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.shape == (0, 8)


def test_koleo_is_minus_log_distance_to_the_nearest_neighbour():
    angles = torch.tensor([0.0, 0.3, 1.5, 4.0])
    features = torch.stack((angles.cos(), angles.sin()), dim=1) * torch.tensor([[1.0], [5.0], [0.1], [2.0]])
    gaps = torch.tensor([0.3, 0.3, 1.2, 2 * math.pi - 4.0])
    expected = -torch.log(2 * torch.sin(gaps / 2)).mean()
    torch.testing.assert_close(koleo_loss(features), expected, atol=1e-5, rtol=1e-5)


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
    torch.testing.assert_close(centering(logits, 1.0), logits.softmax(-1))
    torch.testing.assert_close(centering.center, 0.5 * logits.mean(0, keepdim=True))
    torch.testing.assert_close(centering(logits, 0.5), ((logits - 0.5 * logits.mean(0)) / 0.5).softmax(-1))


def test_centre_stays_where_a_batch_has_no_samples():
    centering = SoftmaxCentering(4)
    centering(torch.randn(3, 4), 1.0)
    before = centering.center.clone()
    assert centering(torch.zeros(0, 4), 1.0).shape == (0, 4)
    assert torch.equal(centering.center, before)
