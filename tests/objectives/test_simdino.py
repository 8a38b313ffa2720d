"""The objective of SimDINO: a naive twin in NumPy, values and gradients; known values; batches at the edges."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dinov2_hf.backbones import Tokens
from dinov2_hf.config import load_config
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import SimDINO, find_objective
from dinov2_hf.objectives.diagnostics import feature_std
from dinov2_hf.objectives.terms import coding_rate, coding_rate_loss

from ..tiny import TINY_OBJECTIVES

VALUES = SimpleNamespace(teacher_momentum=0.9)
FAMILIES = {
    "vit": [],
    "dinov2": ["model.family=dinov2", "model.num_register_tokens=2"],
    "resnet": [
        *("model.family=resnet", "model.depths=[1,1,1]", "model.hidden_sizes=[16,16,32]", "model.embedding_size=8"),
        *("crops.global_size=64", "crops.local_size=32"),
    ],
}


def unit(rng, *shape):
    features = rng.standard_normal(shape)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


# The twin: loops over pairs and images, in float64, with gradients by hand


def naive_rate(features, eps):
    """Of one view `[B, d]`, by the eigenvalues, and its gradient `alpha Z (I + alpha Z^T Z)^-1`."""
    batch, width = features.shape
    alpha = width / (batch * eps)
    inside = np.eye(width) + alpha * features.T @ features
    return 0.5 * np.log(np.linalg.eigvalsh(inside)).sum(), alpha * features @ np.linalg.inv(inside)


def naive_loss(student, teacher, masked, weights, num_images, eps, features, scale):
    """Loss and gradients of the student's crops `[V, B, d]` and masked patches `[M, d]`."""
    (views, batch, width), (patches, targets) = student.shape, masked
    gradient, of_patches = np.zeros_like(student), np.zeros_like(patches)
    pairs = [(v, t) for v in range(views) for t in range(2) if v != t]
    loss = 0.0
    for v, t in pairs:
        for b in range(batch):
            loss += scale["dino"] * (1 - student[v, b] @ teacher[t, b]) / (batch * len(pairs))
            gradient[v, b] -= scale["dino"] * teacher[t, b] / (batch * len(pairs))
    for m, weight in enumerate(weights):
        loss += scale["ibot"] * weight * (1 - patches[m] @ targets[m]) / num_images
        of_patches[m] -= scale["ibot"] * weight * targets[m] / num_images
    factor = scale["coding_rate"] * (1 / width + 1 / batch) / 2
    for v in range(2):
        mean = features == "mean"
        rate, slope = naive_rate((student[v] + teacher[v]) / 2 if mean else student[v], eps)
        loss -= factor * rate
        gradient[v] -= factor * slope * (0.5 if mean else 1)
    return loss, gradient, of_patches


class Recorder(torch.nn.Module):
    """Stands for a head: gives projections that a test made, in the order of the calls."""

    def __init__(self, projections):
        super().__init__()
        self.projections = projections

    def forward(self, features):
        assert len(features) == len(self.projections)
        return self.projections


@pytest.mark.parametrize("num_local", [0, 3])
@pytest.mark.parametrize("features", ["student", "mean"])
def test_loss_and_gradients_equal_those_of_a_naive_twin(tiny_config, num_local, features):
    rng, batch, width, masked = np.random.default_rng(0), 5, 8, 7
    scale = {"dino": 0.7, "ibot": 0.4, "coding_rate": 1.3}
    config = tiny_config(
        *("objective=simdino", f"crops.num_local={num_local}", "coding_rate.eps=0.2"),
        *(f"{name}.loss_weight={weight}" for name, weight in scale.items()),
        f"coding_rate.features={features}",
    )
    student, teacher = unit(rng, 2 + num_local, batch, width), unit(rng, 2, batch, width)
    patches, targets, weights = unit(rng, masked, width), unit(rng, masked, width), rng.random(masked)
    expected = naive_loss(student, teacher, (patches, targets), weights, 2 * batch, 0.2, features, scale)

    model = SimDINO(config)
    given = torch.tensor(np.concatenate((student.reshape(-1, width), patches)), dtype=torch.float32)
    given.requires_grad_(True)
    model.student["dino_head"] = Recorder(given)
    projected = torch.tensor(np.concatenate((teacher.reshape(-1, width), targets)), dtype=torch.float32)
    model.teacher["dino_head"] = Recorder(projected)
    tokens, local = Tokens(torch.zeros(2 * batch, 32), torch.zeros(masked, 32)), torch.zeros(num_local * batch, 32)
    seen = SimpleNamespace(mask_weights=torch.tensor(weights, dtype=torch.float32))
    found = model.student_terms(tokens, local, seen, model.targets(tokens, seen, VALUES))
    declared = model.terms_of(config)
    assert found.keys() == declared.keys()
    loss = sum(declared[name].weight * term for name, term in found.items())
    loss.backward()
    assert loss.item() == pytest.approx(expected[0], rel=1e-6)
    gradient = np.concatenate((expected[1].reshape(-1, width), expected[2]))
    np.testing.assert_allclose(given.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)


# Known values of the coding rate


@pytest.mark.parametrize(("width", "eps"), [(8, 0.05), (64, 0.5)])
def test_coding_rate_of_orthonormal_and_of_equal_features(width, eps):
    orthonormal = torch.linalg.qr(torch.randn(2, width, width)).Q
    rates = coding_rate(orthonormal, eps)
    assert rates.tolist() == pytest.approx([width / 2 * math.log(1 + 1 / eps)] * 2, rel=1e-6)
    equal = orthonormal[:, :1].expand(2, 5, width)
    assert coding_rate(equal, eps).tolist() == pytest.approx([math.log(1 + width / eps) / 2] * 2, rel=1e-6)
    assert coding_rate_loss(orthonormal, eps).item() == pytest.approx(-math.log(1 + 1 / eps), rel=1e-6)


def test_coding_rate_is_largest_where_features_are_orthogonal_and_of_one_per_image():
    """Repeating the images changes nothing, and turning all features together neither."""
    features = torch.nn.functional.normalize(torch.randn(1, 6, 4), dim=-1)
    rate = coding_rate(features, 0.1)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    torch.testing.assert_close(coding_rate(features.repeat(1, 3, 1), 0.1), rate)
    torch.testing.assert_close(coding_rate(features @ rotation, 0.1), rate)
    assert rate < coding_rate(torch.eye(4)[None], 0.1)


def test_coding_rate_is_exact_where_float32_is_not():
    """Nearly equal features of a large width: the determinant is that of float64, and so are the gradients."""
    features = torch.nn.functional.normalize(torch.ones(1, 64, 256) + 1e-3 * torch.randn(1, 64, 256), dim=-1)
    features.requires_grad_(True)
    expected, slope = naive_rate(features[0].detach().double().numpy(), 0.001)
    rate = coding_rate(features, 0.001)
    rate.sum().backward()
    assert rate.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(features.grad[0].numpy(), slope, rtol=1e-4, atol=1e-6)


def test_half_precision_features_give_a_float32_rate():
    features = torch.nn.functional.normalize(torch.randn(2, 6, 4), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        rate = coding_rate(features, 0.1)
    torch.testing.assert_close(rate, coding_rate(features, 0.1), rtol=0, atol=0)
    assert coding_rate(features.bfloat16(), 0.1).dtype == torch.float32


# Batches, families and weights


def make_batch(images=3, local=2, side=32, stride=8, masked=True, equal=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patches = (side // stride) ** 2
    masks = (torch.rand(2 * images, patches, generator=generator) < 0.4) & masked
    masks[0] = False
    crops = [
        torch.randn(1 if equal else count, 3, size, size, generator=generator).expand(count, 3, size, size)
        for count, size in ((2 * images, side), (local * images, side // 2))
    ]
    return SSLBatch(*crops, masks, *SSLBatch.flatten_masks(masks))


def build(family, *overrides):
    keys = [key for key in TINY_OBJECTIVES["simdino"] if family != "resnet" or not key.startswith("model.")]
    config = load_config(None, ["objective=simdino", *keys, *FAMILIES[family], "data.train.path=/images", *overrides])
    return find_objective(config)(config).train()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("equal", [False, True])
def test_loss_and_gradients_are_finite_for_each_family_and_batch(family, images, equal):
    """A batch of one image, and one whose images are all the same."""
    model = build(family)
    side, stride = (64, 16) if family == "resnet" else (32, 8)
    output = model(make_batch(images, side=side, stride=stride, masked=False, equal=equal), VALUES, diagnose=True)
    output.loss.backward()
    assert output.terms.keys() == {"dino_global", "dino_local", "coding_rate"}
    assert output.diagnostics.keys() == {"rankme", "teacher_student_cosine", "projection_std"}
    assert all(torch.isfinite(value) for value in (output.loss, *output.diagnostics.values()))
    gradients = {name: value.grad for name, value in model.student.named_parameters() if value.grad is not None}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert gradients["dino_head.mlp.0.weight"].any()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert not any("last_layer" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"dino_global", "dino_local", "coding_rate"}),
        (["ibot.loss_weight=1"], {"dino_global", "dino_local", "ibot", "coding_rate"}),
        (["dino.loss_weight=0", "ibot.loss_weight=1"], {"ibot", "coding_rate"}),
        (["dino.loss_weight=0", "ibot.loss_weight=1", "coding_rate.loss_weight=0"], {"ibot"}),
        (["coding_rate.loss_weight=0"], {"dino_global", "dino_local"}),
        (["crops.num_local=0"], {"dino_global", "coding_rate"}),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_terms_can_be_switched_off(overrides, expected, masked):
    model = build("vit", *overrides)
    config = model.config
    output = model(make_batch(local=config.crops.num_local, masked=masked and config.masks[0] > 0), VALUES)
    output.loss.backward()
    assert output.terms.keys() == expected == SimDINO.terms_of(config).keys()
    weighted = sum(SimDINO.terms_of(config)[name].weight * term for name, term in output.terms.items())
    torch.testing.assert_close(output.loss.detach(), weighted)
    assert all(torch.isfinite(value.grad).all() for value in model.student.parameters() if value.grad is not None)
    if "ibot" in expected:
        assert (output.terms["ibot"] > 0) == masked


def test_standard_deviation_of_projections_is_one_where_they_spread_and_zero_where_they_are_equal():
    axes = torch.cat((torch.eye(16), -torch.eye(16)))
    assert feature_std(axes).item() == pytest.approx(1.0, rel=1e-6)
    assert feature_std(axes[:1].expand(8, 16)).item() == 0.0
    assert feature_std(axes[:1]).item() == 0.0  # one image


def test_coding_rate_keeps_apart_what_the_distance_would_make_equal():
    """A student trained on noise: without the coding rate its projections become equal."""
    spread = {}
    for weight in (0, 1):
        torch.manual_seed(0)
        model = build("vit", f"coding_rate.loss_weight={weight}", "model.drop_path_rate=0")
        optimizer = torch.optim.Adam(model.student.parameters(), lr=1e-2)
        for step in range(30):
            batch = make_batch(8, masked=False, seed=step)
            optimizer.zero_grad()
            output = model(batch, VALUES, diagnose=True)
            output.loss.backward()
            optimizer.step()
            model.update_averages(VALUES)
        spread[weight] = output.diagnostics["projection_std"].item()
    assert spread[0] < 0.01 and spread[1] > 0.2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["coding_rate.eps=0"], "coding_rate.eps=0"),
        (["coding_rate.loss_weight=-1"], "coding_rate.loss_weight=-1"),
        (["coding_rate.features=teacher"], "coding_rate.features='teacher' is not one of student, mean"),
        (["dino.loss_weight=0"], "dino.loss_weight=0 and ibot.loss_weight=0 leave nothing to learn"),
        (["dino.bottleneck_dim=0"], "dino.bottleneck_dim=0"),
    ],
)
def test_values_that_make_no_objective_are_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build("vit", *given)


def test_masked_patches_of_a_network_that_takes_no_masks_are_refused():
    with pytest.raises(ValueError, match="model.family=resnet takes no masks.*ibot.loss_weight=0"):
        build("resnet", "ibot.loss_weight=1")
