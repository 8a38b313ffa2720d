"""Sinkhorn-Knopp against the algorithm written out, and its invariants."""

import pytest
import torch

from dinov2_hf.objectives.terms import Logits, SinkhornQueue, sinkhorn_knopp


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
    found = sinkhorn_knopp(logits, 0.07, iterations).rows()
    torch.testing.assert_close(found, written_out(logits, 0.07, iterations), atol=1e-6, rtol=1e-5)


def test_every_sample_sums_to_one():
    assignments = sinkhorn_knopp(torch.randn(30, 50), 0.05).rows()
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(30))


def test_many_iterations_use_every_prototype_alike():
    assignments = sinkhorn_knopp(torch.randn(40, 8) * 0.2, 0.1, num_iterations=200).rows()
    torch.testing.assert_close(assignments.sum(dim=0), torch.full((8,), 5.0), atol=1e-3, rtol=1e-3)


def test_a_constant_added_to_all_logits_changes_nothing():
    logits = torch.randn(10, 6) * 0.1
    shifted = sinkhorn_knopp(logits + 0.5, 0.1).rows()
    torch.testing.assert_close(shifted, sinkhorn_knopp(logits, 0.1).rows(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_large_logits_do_not_overflow(scale):
    assignments = sinkhorn_knopp(torch.randn(8, 5) * scale, 0.04).rows()
    torch.testing.assert_close(assignments.sum(dim=1), torch.ones(8))


@pytest.mark.parametrize("scale", [1e9, 1e30])
@pytest.mark.parametrize("temperature", [0.04, 0.055, 0.07])
def test_logits_too_far_apart_to_balance_keep_their_argmax(scale, temperature):
    """What rounding adds to the largest logit when it is divided by the temperature does not overflow either."""
    for _ in range(20):
        logits = torch.randn(16, 33) * scale
        rows = sinkhorn_knopp(logits, temperature).rows()
        torch.testing.assert_close(rows, torch.nn.functional.one_hot(logits.argmax(dim=1), 33).float())


def test_samples_and_prototypes_that_underflow_keep_valid_rows():
    """Next to one sample with huge logits all others vanish from the first sums, and prototypes with them."""
    logits = torch.zeros(8, 5)
    logits[0] = torch.tensor([100.0, 50.0, 0.0, -50.0, -100.0])
    logits[1:, 4] = -1e6
    rows = sinkhorn_knopp(logits, 0.04).rows()
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(8))
    torch.testing.assert_close(rows[1:], rows[1:2].expand(7, 5))  # equal samples are still treated alike


def test_identical_samples_get_identical_uniform_assignments():
    assignments = sinkhorn_knopp(torch.full((6, 4), 3.0), 0.04).rows()
    torch.testing.assert_close(assignments, torch.full((6, 4), 0.25))


def test_one_sample_and_none_are_fine():
    none = sinkhorn_knopp(torch.zeros(0, 4), 0.1)
    assert len(none) == 0 and none.rows().shape == (0, 4)
    torch.testing.assert_close(sinkhorn_knopp(torch.randn(1, 4), 0.1).rows(), torch.full((1, 4), 0.25))


def test_logits_are_left_untouched():
    logits = torch.randn(4, 4)
    copy = logits.clone()
    sinkhorn_knopp(logits, 0.1).rows()
    assert torch.equal(logits, copy)


@pytest.mark.parametrize("elements", [1, 30, 10**9])
def test_assignments_do_not_depend_on_the_chunk_size(elements, monkeypatch):
    """One row at a time, chunks of 2 rows with one left over, and all rows."""
    logits = torch.randn(21, 12)
    expected = written_out(logits, 0.1)
    monkeypatch.setattr("dinov2_hf.objectives.terms.assignments.CHUNK_ELEMENTS", elements)
    found = sinkhorn_knopp(logits, 0.1)
    torch.testing.assert_close(found.rows(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.column_sums(), found.rows().sum(dim=0))


def test_rows_on_demand_are_those_of_the_whole_matrix():
    assignments = sinkhorn_knopp(torch.randn(9, 6).bfloat16(), 0.1)
    whole = assignments.rows()
    assert len(assignments) == 9 and whole.dtype == torch.float32
    assert torch.equal(torch.cat([assignments.rows(0, 4), assignments.rows(4, 5), assignments.rows(5)]), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_assigned_in_float32(dtype):
    logits = torch.randn(20, 12).to(dtype)
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.07).rows(), sinkhorn_knopp(logits.float(), 0.07).rows())


@pytest.mark.parametrize("spread", [0.04, 0.2, 1.0])
def test_cosines_are_balanced_as_in_float64(spread):
    """Logits are cosines: at the lowest temperature they are at most 50 apart, and nothing of that underflows."""
    logits = (torch.randn(40, 16) * spread).clamp(-1, 1)
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.04).rows(), written_out(logits, 0.04), atol=1e-5, rtol=1e-4)


# a queue of samples


def unit(rows, dim, seed):
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("batch", [4, 6, 20])
def test_full_queue_shapes_the_targets_as_its_samples_in_one_matrix_would(batch):
    """Batches of two views, newest first; the logits of all of them are of the present prototypes."""
    kept, queue = [], SinkhornQueue(12, 8)
    for update in range(8):
        features, prototypes = unit(batch, 8, update), unit(10, 8, 100 + update)
        found = sinkhorn_knopp(Logits(features, prototypes), 0.1, queued=queue.queued(features, prototypes)).rows()
        together = [features, *kept] if len(kept) == 12 else [features]
        rows = torch.cat([torch.atleast_2d(part) for part in together])
        expected = written_out(rows @ prototypes.T, 0.1)[:batch]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert (len(kept) == 12) == bool(update * batch >= 12)
        first, second = features.chunk(2)
        kept = ([row for pair in zip(first, second, strict=True) for row in pair] + kept)[:12]
        queue.push(features)
    torch.testing.assert_close(queue.rows, torch.stack(kept), rtol=0, atol=0)


def test_queue_that_is_not_full_has_no_effect_whatever_the_logits():
    queue, prototypes = SinkhornQueue(12, 8), unit(10, 8, 1)
    queue.push(unit(10, 8, 2))
    for features in (unit(6, 8, 3), -1e4 * prototypes.mean(dim=0).expand(6, 8)):
        found = sinkhorn_knopp(features @ prototypes.T, 0.04, queued=queue.queued(features, prototypes)).rows()
        assert torch.equal(found, sinkhorn_knopp(features @ prototypes.T, 0.04).rows())


def test_batch_that_is_not_finite_leaves_the_queue():
    queue = SinkhornQueue(4, 3)
    queue.push(torch.ones(2, 3))
    broken = torch.ones(2, 3) * 5
    broken[0, 0] = float("nan")
    queue.push(broken)
    assert queue.filled == 2
    assert torch.equal(queue.rows, torch.tensor([[1.0], [1.0], [0.0], [0.0]]).expand(4, 3))


def test_queue_balances_prototypes_that_a_small_batch_cannot():
    """Samples of one class: by themselves they are spread over all prototypes, and not beside samples of the others."""
    prototypes = torch.eye(8)
    queue = SinkhornQueue(64, 8)
    queue.push(torch.eye(8).repeat(8, 1))
    alone = sinkhorn_knopp(prototypes[:1].repeat(4, 1) @ prototypes.T, 0.1)
    queued = queue.queued(prototypes[:1], prototypes)
    together = sinkhorn_knopp(prototypes[:1].repeat(4, 1) @ prototypes.T, 0.1, queued=queued)
    assert alone.rows()[0, 0] == pytest.approx(1 / 8) and together.rows()[0, 0] > 0.99
