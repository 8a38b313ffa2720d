"""Sinkhorn-Knopp against the algorithm written out, and its invariants."""

import pytest
import torch

from dinov2_hf.losses import sinkhorn_knopp


def written_out(logits, temperature, num_iterations=3):
    """Normalises rows and columns of the whole matrix in turn, in float64 so that nothing overflows."""
    matrix = torch.exp(logits.double() / temperature).T
    matrix /= matrix.sum()
    prototypes, samples = matrix.shape
    for _ in range(num_iterations):
        matrix /= matrix.sum(dim=1, keepdim=True) * prototypes
        matrix /= matrix.sum(dim=0, keepdim=True) * samples
    return (matrix * samples).T.float()


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_scaling_vectors_equal_the_matrix_algorithm(iterations):
    logits = torch.randn(20, 12) * 0.3
    found = sinkhorn_knopp(logits, 0.07, iterations)
    torch.testing.assert_close(found, written_out(logits, 0.07, iterations), atol=1e-6, rtol=1e-5)


def test_every_sample_sums_to_one():
    assignments = sinkhorn_knopp(torch.randn(30, 50), 0.05)
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(30))


def test_many_iterations_use_every_prototype_alike():
    assignments = sinkhorn_knopp(torch.randn(40, 8) * 0.2, 0.1, num_iterations=200)
    torch.testing.assert_close(assignments.sum(dim=0), torch.full((8,), 5.0), atol=1e-3, rtol=1e-3)


def test_a_constant_added_to_all_logits_changes_nothing():
    logits = torch.randn(10, 6) * 0.1
    torch.testing.assert_close(sinkhorn_knopp(logits + 0.5, 0.1), sinkhorn_knopp(logits, 0.1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_logits_do_not_overflow(scale):
    assignments = sinkhorn_knopp(torch.randn(8, 5) * scale, 0.04)
    assert torch.isfinite(assignments).all()


def test_identical_samples_get_identical_uniform_assignments():
    assignments = sinkhorn_knopp(torch.full((6, 4), 3.0), 0.04)
    torch.testing.assert_close(assignments, torch.full((6, 4), 0.25))


def test_one_sample_and_none_are_fine():
    assert sinkhorn_knopp(torch.zeros(0, 4), 0.1).shape == (0, 4)
    torch.testing.assert_close(sinkhorn_knopp(torch.randn(1, 4), 0.1), torch.full((1, 4), 0.25))


def test_logits_are_left_untouched():
    logits = torch.randn(4, 4)
    copy = logits.clone()
    sinkhorn_knopp(logits, 0.1)
    assert torch.equal(logits, copy)
