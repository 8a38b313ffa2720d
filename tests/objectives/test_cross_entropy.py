"""The cross-entropy in chunks against its naive twin, which holds all logits at once: values and gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2_hf.objectives.terms import (
    Assignments,
    Logits,
    SoftmaxCentering,
    dino_loss,
    ibot_loss,
    prototype_cross_entropy,
    sinkhorn_knopp,
)

TEMPERATURE = 0.1


def naive(features, prototypes, targets, weights):
    """`[G, M, d]`, `[K, d]`, `[G or 1, M, K]`, `[M]` to the loss, by autograd."""
    logits = features @ prototypes.T / TEMPERATURE
    return -((targets * logits.log_softmax(-1)).sum(-1) * weights).sum()


def assigned(targets):
    """Assignments whose views are the targets `[G, M, K]`."""
    return Assignments(targets.flatten(0, 1).log(), 1.0, torch.zeros(targets.shape[-1]))


def chunked(features, prototypes, targets, weights, mass=1):
    """Each of `mass` views holds an equal share of the targets."""
    groups = len(targets)
    views = [[group + groups * view for view in range(mass)] for group in range(groups)]
    teacher = assigned((targets / mass).repeat(mass, 1, 1))
    return prototype_cross_entropy(features, prototypes, teacher, views, weights, TEMPERATURE)


def problem(groups, samples, prototypes, width, shared=False, mass=1):
    """Unit-length features and prototypes that require gradients, targets of mass `mass`, weights."""
    normalize = torch.nn.functional.normalize
    return (
        normalize(torch.randn(groups, samples, width), dim=-1).requires_grad_(),
        normalize(torch.randn(prototypes, width), dim=-1).requires_grad_(),
        (torch.randn(1 if shared else groups, samples, prototypes) * 3).softmax(-1) * mass,
        torch.rand(samples) + 0.1,
    )


def value_and_gradients(function, features, prototypes, *rest, scale=1.0):
    loss = function(features, prototypes, *rest)
    return loss.detach(), *torch.autograd.grad(loss * scale, (features, prototypes))


@pytest.fixture(params=[1, 24 * 3 * 4, 10**9], ids=["row by row", "uneven chunks", "all at once"])
def chunk_elements(request, monkeypatch):
    """Of 11 samples in 3 groups with 24 prototypes: one at a time, 4 and 4 and 3, all."""
    monkeypatch.setattr("dinov2_hf.objectives.terms.assignments.CHUNK_ELEMENTS", request.param)


@pytest.mark.parametrize("shared", [False, True], ids=["own targets", "shared targets"])
@pytest.mark.parametrize("mass", [1, 2])
def test_chunks_equal_the_whole_matrix(chunk_elements, shared, mass):
    features, prototypes, targets, weights = problem(3, 11, 24, 8, shared, mass)
    found = value_and_gradients(chunked, features, prototypes, targets, weights, mass)
    expected = value_and_gradients(naive, features, prototypes, targets, weights)
    # the sums are of 33 terms of up to 100, the gradients up to 60
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=2e-6)


def test_gradients_equal_float64_to_float32_rounding(chunk_elements):
    features, prototypes, targets, weights = problem(3, 11, 24, 8)
    found = value_and_gradients(chunked, features, prototypes, targets, weights)
    doubles = [tensor.detach().double().requires_grad_() for tensor in (features, prototypes)]
    expected = value_and_gradients(naive, *doubles, targets.double(), weights.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_bfloat16_features_give_the_float32_loss_and_gradients_to_rounding(chunk_elements):
    """Against float32 of the same rounded inputs.

    Logits of up to 10 are off by up to 2^-9 of that twice (features over temperature, product), so probabilities and
    with them gradients by 2 to 3 % at worst and by less than 1 % in norm; errors of the loss average out further.
    """
    features, prototypes, targets, weights = problem(3, 11, 24, 8)
    features, prototypes = (tensor.detach().bfloat16().requires_grad_() for tensor in (features, prototypes))
    loss, *gradients = value_and_gradients(chunked, features, prototypes.float(), targets, weights)
    whole = [tensor.detach().float().requires_grad_() for tensor in (features, prototypes)]
    expected, *expected_gradients = value_and_gradients(naive, *whole, targets, weights)
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32]
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_float16_gradients_of_the_order_of_one_over_k_are_not_flushed():
    """The gradient of a prototype that no target asks for is its probability, 1 / 65536 or less: subnormal in float16.

    Logits are off by up to 2^-11 of 5 twice, so probabilities by 0.5 % at most.
    """
    features, prototypes, _, weights = problem(1, 3, 65536, 64)
    features = features.detach().half().requires_grad_()
    prototypes = prototypes.detach().half().float().requires_grad_()
    asked = torch.tensor([5, 77, 60000])
    targets = torch.nn.functional.one_hot(asked, 65536).float()[None]
    weights = weights / 1000  # as with a thousand masked patches
    loss, features_grad, prototypes_grad = value_and_gradients(chunked, features, prototypes, targets, weights)
    whole = features.detach().float().requires_grad_()
    expected, _, expected_grad = value_and_gradients(naive, whole, prototypes, targets, weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    others = torch.ones(65536, dtype=torch.bool)
    others[asked] = False
    error = (prototypes_grad - expected_grad)[others].norm(dim=1)
    assert expected_grad[others].abs().max() < 1e-4  # so that nothing large hides what is measured
    assert torch.all(error <= 1e-2 * expected_grad[others].norm(dim=1) + 1e-10)

    # the loss scale of mixed precision keeps the features' gradient, which float16 has to hold, away from zero
    scaled, _ = torch.autograd.grad(chunked(features, prototypes, targets, weights) * 2**12, (features, prototypes))
    (expected_grad,) = torch.autograd.grad(naive(whole, prototypes, targets, weights) * 2**12, whole)
    assert scaled.dtype == torch.float16
    assert (scaled - expected_grad).norm() < 5e-3 * expected_grad.norm()


def test_float16_gradients_of_many_samples_that_agree_do_not_overflow():
    """A collapsed batch: the teacher sends every sample to one prototype, the student to another."""
    features = torch.zeros(2, 2000, 4, dtype=torch.float16)
    features[..., 0] = 1
    features.requires_grad_()
    prototypes = torch.eye(4).repeat(2, 1).requires_grad_()
    targets = torch.nn.functional.one_hot(torch.full((1, 2000), 1), 8) * 2.0
    weights = torch.full((2000,), 1 / 2000)
    found = value_and_gradients(chunked, features, prototypes, targets, weights, 2)
    whole = features.detach().float().requires_grad_()
    expected = value_and_gradients(naive, whole, prototypes, targets, weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=1e-5, rtol=2e-3)


@pytest.mark.parametrize(("groups", "samples"), [(1, 0), (3, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_samples_or_no_crops_give_zero_loss_and_gradients(groups, samples, dtype):
    features = torch.zeros(groups, samples, 4, dtype=dtype, requires_grad=True)
    prototypes = torch.randn(6, 4, requires_grad=True)
    asked = []

    class Teacher(Assignments):
        def rows(self, start=0, stop=None):
            asked.append((start, stop))
            return super().rows(start, stop)

    teacher = Teacher(torch.zeros(samples, 6), 1.0, torch.zeros(6))
    loss = prototype_cross_entropy(features, prototypes, teacher, [[0]], torch.ones(samples), TEMPERATURE)
    loss.backward()
    assert loss.item() == 0.0
    assert features.grad.shape == features.shape and torch.equal(prototypes.grad, torch.zeros(6, 4))
    assert not asked  # targets that nothing is compared with are not made


def test_weights_of_zero_give_zero_loss_and_gradients():
    features, prototypes, targets, _ = problem(2, 5, 6, 4)
    for value in value_and_gradients(chunked, features, prototypes, targets, torch.zeros(5)):
        assert torch.equal(value, torch.zeros_like(value))


def test_gradients_scale_with_what_comes_from_above():
    features, prototypes, targets, weights = problem(2, 5, 6, 4)
    found = value_and_gradients(chunked, features, prototypes, targets, weights, scale=-7.5)
    expected = value_and_gradients(naive, features, prototypes, targets, weights, scale=-7.5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_features_and_prototypes_can_be_used_twice_and_walked_back_twice():
    """As prototypes are by the two sums of `dino_loss`, and both by a retained graph."""
    features, prototypes, targets, weights = problem(2, 5, 6, 4)

    def twice(function):
        moved = features * 1.5
        loss = function(moved, prototypes, targets, weights)
        return 2 * loss + loss * function(moved.flip(0), prototypes, targets, weights)

    losses = [twice(function) for function in (chunked, naive)]
    for _ in range(2):
        found, expected = (torch.autograd.grad(loss, (features, prototypes), retain_graph=True) for loss in losses)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_of_one_input_alone(wanted):
    features, prototypes, targets, weights = problem(2, 5, 6, 4)
    inputs = [features.detach(), prototypes.detach()]
    inputs[wanted].requires_grad_()
    (found,) = torch.autograd.grad(chunked(*inputs, targets, weights), inputs[wanted])
    (expected,) = torch.autograd.grad(naive(*inputs, targets, weights), inputs[wanted])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_without_gradients_the_value_is_the_same():
    features, prototypes, targets, weights = problem(2, 5, 6, 4)
    with torch.no_grad():
        loss = chunked(features, prototypes, targets, weights)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, chunked(features, prototypes, targets, weights).detach())


def test_a_second_derivative_is_refused():
    """The gradients are made in the forward pass, as constants: a gradient of them would be silently wrong."""
    features, prototypes, targets, weights = problem(2, 5, 6, 4)
    squared = chunked(features, prototypes, targets, weights).square()
    (gradient,) = torch.autograd.grad(squared, features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_autocast_around_the_loss_changes_nothing():
    features, prototypes, targets, weights = problem(2, 5, 6, 4)
    expected = value_and_gradients(chunked, features, prototypes, targets, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(chunked, features, prototypes, targets, weights)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_targets_of_centering_do_not_depend_on_the_chunk_size(chunk_elements):
    centering, logits = SoftmaxCentering(24, momentum=0.5), torch.randn(2, 11, 24)
    first = centering(logits[0], 0.1)
    second = centering(logits[1], 0.1)
    center = 0.5 * logits[0].mean(0)
    torch.testing.assert_close(first.rows(), (logits[0] / 0.1).softmax(-1))
    torch.testing.assert_close(second.rows(), ((logits[1] - center) / 0.1).softmax(-1))
    torch.testing.assert_close(centering.center[0], 0.5 * center + 0.5 * logits[1].mean(0))


class LargestFloat32(TorchDispatchMode):
    """Records the number of elements of the largest float32 tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("term", ["ibot", "dino"])
@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_float32_matrix_of_samples_by_prototypes_ever_exists(term, centering, dtype, monkeypatch):
    """Targets, loss and gradients of M = 128 samples, K = 512 prototypes, with room for 8 of the samples.

    Logits of 128 KB fit in bfloat16 and do not in float32.
    """
    monkeypatch.setattr("dinov2_hf.objectives.terms.assignments.CHUNK_ELEMENTS", 8 * 512)
    monkeypatch.setattr("dinov2_hf.objectives.terms.assignments.KEPT_BYTES", 2 * 128 * 512)
    teacher_features, teacher_prototypes = torch.randn(128, 8).to(dtype), torch.randn(512, 8)
    features = torch.nn.functional.normalize(torch.randn(128, 8), dim=-1).to(dtype).requires_grad_()
    prototypes = torch.randn(512, 8, requires_grad=True)
    assign = sinkhorn_knopp if centering == "sinkhorn_knopp" else SoftmaxCentering(512)

    def ours():
        teacher = assign(Logits(teacher_features, teacher_prototypes), 0.1)
        if term == "ibot":
            return ibot_loss(features, prototypes, teacher, torch.ones(128), 4)
        crops = features.unflatten(0, (2, 64)).repeat(2, 1, 1)
        return sum(dino_loss(crops, prototypes, teacher))

    def naive_twin():
        targets = assign(teacher_features @ teacher_prototypes.to(dtype).T, 0.1).rows()
        return naive(features[None], prototypes.to(features.dtype), targets[None], torch.ones(128))

    largest = []
    for function in (ours, naive_twin):
        with LargestFloat32() as record:
            function().backward()
        largest.append(record.elements)
    assert largest[0] == 8 * 512
    assert largest[1] >= 128 * 512


def test_assignments_describe_rows_that_sum_to_one():
    assignments = Assignments(torch.randn(6, 9) * 5, 0.04, torch.randn(9))
    torch.testing.assert_close(assignments.rows().sum(dim=1), torch.ones(6))
    torch.testing.assert_close(assignments.rows(), (assignments.logits / 0.04 + assignments.bias).softmax(-1))


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax"])
def test_logits_that_are_not_kept_give_the_same_assignments(centering, monkeypatch):
    monkeypatch.setattr("dinov2_hf.objectives.terms.assignments.CHUNK_ELEMENTS", 4 * 24)
    features, prototypes = torch.randn(11, 8), torch.randn(24, 8)
    found = []
    for kept_bytes in (0, 4 * 11 * 24):
        monkeypatch.setattr("dinov2_hf.objectives.terms.assignments.KEPT_BYTES", kept_bytes)
        assign = sinkhorn_knopp if centering == "sinkhorn_knopp" else SoftmaxCentering(24)
        assign(Logits(prototypes[:5], prototypes), 0.5)  # moves the centre
        found.append(assign(Logits(features, prototypes), 0.5).rows())
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)
    assert len(Assignments(Logits(features[:0], prototypes), 0.5, torch.zeros(24)).rows()) == 0
