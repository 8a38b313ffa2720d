"""The projection head."""

import pytest
import torch

from dinov2_hf.objectives import DINOHead


def test_logits_are_cosines_with_the_prototypes():
    torch.manual_seed(0)
    head = DINOHead(16, 32, hidden_dim=24, bottleneck_dim=8)
    features = torch.randn(5, 16)
    projected = head.mlp(features)
    expected = torch.nn.functional.cosine_similarity(projected.unsqueeze(1), head.last_layer.weight_v, dim=2)
    torch.testing.assert_close(head(features).logits, expected)


def test_projected_features_have_unit_length_and_give_the_logits():
    """Values and gradients of the logits that one could make of features and prototypes."""
    torch.manual_seed(0)
    head = DINOHead(16, 32, hidden_dim=24, bottleneck_dim=8)
    with torch.no_grad():
        head.last_layer.weight_g.uniform_(0.5, 2)
    features, weights = torch.randn(5, 16), torch.randn(5, 32)
    bottleneck, prototypes = head(features)
    losses = (head(features).logits * weights).sum(), (bottleneck @ prototypes.T * weights).sum()
    torch.testing.assert_close(*losses)
    for expected, found in zip(*(torch.autograd.grad(loss, list(head.parameters())) for loss in losses), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(bottleneck.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(prototypes.norm(dim=1), head.last_layer.weight_g[:, 0])


def test_prototypes_stay_float32_where_features_are_not():
    head = DINOHead(16, 32, hidden_dim=24, bottleneck_dim=8)
    with torch.autocast("cpu", torch.bfloat16):
        features, prototypes = head(torch.randn(5, 16))
    assert features.dtype == torch.bfloat16 and prototypes.dtype == torch.float32


def test_length_of_a_direction_does_not_matter():
    torch.manual_seed(0)
    head = DINOHead(16, 32, hidden_dim=24, bottleneck_dim=8)
    features = torch.randn(5, 16)
    before = head(features).logits
    with torch.no_grad():
        head.last_layer.weight_v.mul_(7)
    torch.testing.assert_close(head(features).logits, before)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_head_has_as_many_linear_layers_as_asked_for(num_layers):
    head = DINOHead(16, 32, hidden_dim=24, bottleneck_dim=8, num_layers=num_layers)
    assert sum(isinstance(module, torch.nn.Linear) for module in head.mlp) == num_layers
    assert head(torch.randn(3, 16)).logits.shape == (3, 32)


def test_no_features_give_no_logits():
    head = DINOHead(16, 32, hidden_dim=24, bottleneck_dim=8)
    logits = head(torch.zeros(0, 16)).logits
    assert logits.shape == (0, 32)
    logits.sum().backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in head.parameters())


def test_zero_features_stay_finite():
    head = DINOHead(16, 32, hidden_dim=24, bottleneck_dim=8)
    features = torch.zeros(2, 16, requires_grad=True)
    head(features).logits.sum().backward()
    assert torch.isfinite(features.grad).all()


def test_weights_start_as_in_the_published_code():
    """Linear layers: truncated normal of 0.02, biases 0; directions of prototypes: uniform; lengths: 1."""
    torch.manual_seed(0)
    head = DINOHead(200, 300, hidden_dim=250, bottleneck_dim=100)
    linear = [module for module in head.mlp if isinstance(module, torch.nn.Linear)]
    assert [module.weight.std().item() for module in linear] == pytest.approx([0.02] * 3, rel=0.03)
    assert all(module.bias.abs().max() == 0 for module in linear)
    directions, lengths = head.last_layer.weight_v, head.last_layer.weight_g
    assert directions.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.03) and directions.abs().max() <= 0.1
    assert torch.equal(lengths, torch.ones(300, 1))
