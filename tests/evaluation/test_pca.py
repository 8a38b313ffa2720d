import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.evaluation import plot_patch_pca, principal_colors
from dinov2_hf.models import Dinov2Config, Dinov2Model


@pytest.fixture
def features():
    """Patch features `[5, 6, 7, 16]` whose variance falls from one axis to the next."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 6, 7, 16, generator=generator) * torch.logspace(1, -1, 16) + 3


def test_colours_are_between_0_and_1_and_use_the_whole_range(features):
    colors = principal_colors(features)
    assert colors.shape == (5, 6, 7, 3)
    assert colors.min() == 0 and colors.max() == 1
    flat = colors.flatten(0, -2)
    for channel in range(3):
        # cut at the 2nd and the 98th percentile
        assert (flat[:, channel] == 0).float().mean().item() == pytest.approx(0.02, abs=0.005)
        assert (flat[:, channel] == 1).float().mean().item() == pytest.approx(0.02, abs=0.005)


def test_colours_do_not_depend_on_the_order_of_images(features):
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(principal_colors(features[order]), principal_colors(features)[order], rtol=0, atol=1e-4)


def test_colours_do_not_depend_on_the_order_of_patches(features):
    order = torch.randperm(210, generator=torch.Generator().manual_seed(1))
    flat = features.flatten(0, 2)
    torch.testing.assert_close(principal_colors(flat[order]), principal_colors(flat)[order], rtol=0, atol=1e-4)


def test_colours_do_not_depend_on_scale_and_offset(features):
    changed = features * 50 - torch.arange(16)
    torch.testing.assert_close(principal_colors(changed), principal_colors(features), rtol=0, atol=1e-4)


def test_turned_features_have_the_same_colours_or_inverted_ones(features):
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(2)))
    before, after = principal_colors(features).flatten(0, 2), principal_colors(features @ turn).flatten(0, 2)
    for channel in range(3):
        same = (after[:, channel] - before[:, channel]).abs().max()
        inverted = (after[:, channel] + before[:, channel] - 1).abs().max()
        assert min(same, inverted) < 1e-3


def test_channels_are_the_axes_of_largest_variance_in_that_order():
    generator = torch.Generator().manual_seed(0)
    latent = torch.linalg.qr(torch.randn(400, 3, generator=generator) - 0.01)[0]
    latent = latent - latent.mean(dim=0)
    features = torch.zeros(400, 8)
    features[:, [5, 1, 6]] = torch.linalg.qr(latent)[0] * torch.tensor([9.0, 3.0, 1.0])
    colors = principal_colors(features)
    for channel, axis in enumerate([5, 1, 6]):
        pair = torch.stack([colors[:, channel], features[:, axis]])
        assert torch.corrcoef(pair)[0, 1] > 0.98  # growing with the axis: its loading is made positive


def test_a_few_outliers_do_not_take_the_whole_range(features):
    flat = features.flatten(0, 2)
    flat[7] += 1e4 * torch.ones(16)
    colors = principal_colors(flat)
    spread = torch.quantile(colors, 0.75, dim=0) - torch.quantile(colors, 0.25, dim=0)
    assert spread.min() > 0.2
    assert colors.min() >= 0 and colors.max() <= 1


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_equal_features_have_finite_colours(value):
    colors = principal_colors(torch.full((2, 3, 3, 8), value))
    assert colors.shape == (2, 3, 3, 3)
    assert colors.min() >= 0 and colors.max() <= 1  # false for NaN


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_fewer_patches_than_components_still_have_three_channels(tokens):
    colors = principal_colors(torch.randn(1, 1, tokens, 8, generator=torch.Generator().manual_seed(0)))
    assert colors.shape == (1, 1, tokens, 3)
    assert colors.min() >= 0 and colors.max() <= 1


def test_half_precision_features_have_nearly_the_same_colours(features):
    torch.testing.assert_close(principal_colors(features.half()), principal_colors(features), rtol=0, atol=0.02)


@pytest.mark.parametrize("count", [1, 5])
def test_picture_of_any_number_of_images_is_written(count, tmp_path):
    torch.manual_seed(0)
    backbone = Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=16)
    ).eval()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, 16, 24), dtype=np.uint8)
    titles = [f"image {index}" for index in range(count)]
    images = torch.from_numpy(pixels).float() / 255
    path = plot_patch_pca(backbone, images, pixels, tmp_path / "pca.png", titles)
    assert path == tmp_path / "pca.png"
    with Image.open(path) as picture:
        width, height = picture.size
        drawn = np.asarray(picture.convert("RGB"))
    assert width == 1600 and height == 210 * -(-count // 4)
    # more than a blank page, and the first image is among what is drawn
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100
    first = pixels[0].transpose(1, 2, 0)[8, 12]
    assert (np.abs(drawn.astype(int) - first).max(axis=2) <= 2).any()
