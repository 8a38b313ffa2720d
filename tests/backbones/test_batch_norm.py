"""Batch norm over processes: in one process it is that of torch. tests/distributed has the twin over two."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dinov2_hf.backbones.batch_norm import SyncBatchNorm, average_running_statistics

SHAPES = {"rows": (13, 6), "maps": (5, 6, 3, 4)}


def pair(dtype=torch.float32):
    """Ours and torch's with the same weights, away from their start."""
    ours, theirs = SyncBatchNorm(6), nn.BatchNorm2d(6)
    with torch.no_grad():
        for value in (ours.weight, ours.bias, ours.running_mean):
            value.normal_()
        ours.running_var.uniform_(0.5, 2)
    theirs.load_state_dict(ours.state_dict())
    theirs._check_input_dim = lambda input: None
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_process_is_exactly_batch_norm_of_torch(shape, training):
    """Two updates: outputs, gradients and running statistics to the last bit."""
    results = []
    inputs = [torch.randn(shape) * 3 + 1 for _ in range(2)]
    for norm in pair():
        norm.train(training)
        found = []
        for values in inputs:
            values = values.clone().requires_grad_()
            output = norm(values)
            (output.square() * output.detach().sin()).sum().backward()
            found += [output, values.grad]
        results.append([*found, norm.weight.grad, norm.bias.grad, *norm.buffers()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_names_in_the_state_dict_are_those_of_torch():
    ours, theirs = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_recomputed_forward_counts_a_batch_once():
    """And the test would notice where torch renames what says that this is a backward pass."""
    results = []
    values = torch.randn(13, 6)
    for recompute in (False, True):
        torch.manual_seed(0)
        norm, _ = pair()
        inputs = values.clone().requires_grad_()
        output = checkpoint(norm, inputs, use_reentrant=False) if recompute else norm(inputs)
        output.square().sum().backward()
        results.append([inputs.grad, norm.weight.grad, *norm.buffers()])
    assert results[0][-1] == results[1][-1] == 1
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_batch_that_is_not_finite_leaves_running_statistics_as_they_were():
    norm, _ = pair()
    before = [norm.running_mean.clone(), norm.running_var.clone()]
    values = torch.randn(13, 6)
    values[3, 2] = torch.inf
    norm(values)
    for kept, now in zip(before, (norm.running_mean, norm.running_var)):
        assert torch.equal(kept[2], now[2]) and not torch.isclose(kept, now)[[0, 1, 3, 4, 5]].any()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_half_precision_is_normalised_in_float32(weights):
    ours, theirs = pair()
    values = torch.randn(64, 6).bfloat16()
    expected = theirs(values.float())
    if weights is not torch.float32:
        ours.weight.data, ours.bias.data = ours.weight.to(weights), ours.bias.to(weights)  # as FSDP2 gathers them
    found = ours(values)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.02)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(values).float(), theirs.eval()(values.float()), atol=0.05, rtol=0.02)


def test_model_in_half_precision_is_evaluated():
    ours, theirs = (norm.eval() for norm in pair())
    values = torch.randn(4, 6, 2, 2)
    found = ours.bfloat16()(values.bfloat16())
    torch.testing.assert_close(found.float(), theirs(values), atol=0.1, rtol=0.05)


def test_no_sample_gives_no_output_and_no_change():
    norm, _ = pair()
    before = [value.clone() for value in norm.buffers()]
    output = norm(torch.zeros(0, 6, requires_grad=True))
    output.sum().backward()
    assert output.shape == (0, 6) and norm.weight.grad.abs().sum() == 0
    assert all(torch.equal(old, new) for old, new in zip(before, norm.buffers()))


@pytest.mark.parametrize("shape, message", [((1, 6), "more than one value"), ((4, 5), "takes"), ((6,), "takes")])
def test_impossible_inputs_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        SyncBatchNorm(6)(torch.randn(shape))


def test_averaged_running_statistics_follow_the_student():
    average, student = nn.Sequential(pair()[0]), nn.Sequential(pair()[0])
    expected = 0.9 * average[0].running_var + 0.1 * student[0].running_var
    student[0].num_batches_tracked.fill_(7)
    average_running_statistics(average, student, 0.9)
    torch.testing.assert_close(average[0].running_var, expected)
    assert average[0].num_batches_tracked == 7
