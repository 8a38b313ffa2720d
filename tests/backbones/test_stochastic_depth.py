"""Efficient stochastic depth against its naive twin, which computes everything and masks."""

import pytest
import torch
from torch import nn

from dinov2_hf.backbones.transformer import layer
from dinov2_hf.backbones.transformer.packing import Group, Packing
from dinov2_hf.backbones.transformer.stochastic_depth import add_residual_of_kept, draw_kept


def masked(tokens, branch, packing, layer_scale, kept):
    """Runs the branch on every sample and multiplies what is dropped by 0."""
    factors = []
    for group, indices in zip(packing.groups, kept):
        factor = torch.zeros(group.batch)
        factor[indices] = group.batch / len(indices)
        factors.append(factor.repeat_interleave(group.length))
    return tokens + layer_scale(branch(tokens, packing)) * torch.cat(factors).unsqueeze(1)


def test_efficient_equals_masked_given_the_same_kept_samples(tiny, monkeypatch):
    """Through a whole model: values and gradients."""
    crops = [torch.randn(5, 3, 32, 32), torch.randn(7, 3, 16, 16)]
    results = []
    for function in (add_residual_of_kept, masked):
        monkeypatch.setattr(layer, "add_residual_of_kept", function)
        model = tiny(drop_path_rate=0.4).train()
        torch.manual_seed(3)  # draws the same kept samples
        outputs = model.forward_packed(crops)
        sum(output.square().sum() for output in outputs).backward()
        results.append((outputs, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (outputs, gradients), (expected, expected_gradients) = results
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, wanted in expected_gradients.items():
        scale = max(wanted.abs().max().item(), 1.0)
        torch.testing.assert_close(gradients[name] / scale, wanted / scale, atol=1e-5, rtol=1e-5)


def test_branch_sees_the_kept_samples_alone():
    packing = Packing((Group(10, 3), Group(4, 2)))
    tokens = torch.arange(38.0).unsqueeze(1)
    kept = draw_kept(packing, 0.4, tokens.device)
    seen = []

    def branch(part, part_packing):
        seen.append((part, part_packing))
        return torch.ones_like(part)

    result = add_residual_of_kept(tokens, branch, packing, nn.Identity(), kept)
    assert [len(indices) for indices in kept] == [6, 2]
    assert seen[0][1].groups == (Group(6, 3), Group(2, 2))
    change = (result - tokens).flatten()
    first, second = change[:30].view(10, 3), change[30:].view(4, 2)
    for rows, indices, factor in ((first, kept[0], 10 / 6), (second, kept[1], 2.0)):
        expected = torch.zeros(len(rows))
        expected[indices] = factor
        torch.testing.assert_close(rows, expected.unsqueeze(1).expand_as(rows))
    torch.testing.assert_close(seen[0][0].flatten()[:18].view(6, 3)[:, 0], kept[0] * 3.0)


def test_expectation_is_that_of_the_full_branch():
    torch.manual_seed(0)
    packing = Packing((Group(8, 1),))
    tokens = torch.zeros(8, 1)
    total = sum(
        add_residual_of_kept(
            tokens, lambda x, _: torch.ones_like(x), packing, nn.Identity(), draw_kept(packing, 0.5, tokens.device)
        )
        for _ in range(2000)
    )
    assert (total / 2000).flatten().tolist() == pytest.approx([1.0] * 8, abs=0.1)


@pytest.mark.parametrize("batch", [1, 2])
def test_at_least_one_sample_is_kept(batch):
    kept = draw_kept(Packing((Group(batch, 4),)), 0.9, torch.device("cpu"))
    assert len(kept[0]) == 1


def test_evaluation_drops_nothing(tiny):
    model = tiny(drop_path_rate=0.8).eval()
    pixels = torch.randn(2, 3, 32, 32)
    reference = tiny(drop_path_rate=0.0).eval()
    torch.testing.assert_close(model(pixels).last_hidden_state, reference(pixels).last_hidden_state)
