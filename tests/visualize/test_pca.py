import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.data import EvalTransform
from dinov2_hf.visualize import Picture, draw_pca, find_foreground, pca_colors, plot_patch_pca, principal_colors
from dinov2_hf.visualize.pca import _otsu, principal_components

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def ring(height, width, top, left, rows, columns):
    """Flags of an object in an image."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def scene(masks, seed=0, distance=6.0, noise=0.5):
    """Features `[h, w, 16]` of objects at one place and background at another."""
    generator = torch.Generator().manual_seed(seed)
    background, thing = torch.randn(2, 16, generator=generator)
    return [
        torch.where(mask[..., None], distance * thing, distance * background)
        + noise * torch.randn(*mask.shape, 16, generator=generator)
        for mask in masks
    ]


@pytest.mark.parametrize("seed", range(8))  # of which half have the object on the low side of the component
def test_objects_in_the_middle_are_the_foreground_whatever_the_sign_of_the_component(seed):
    masks = [ring(8, 9, 2, 2, 4, 4), ring(7, 12, 1, 3, 5, 6), ring(9, 6, 3, 2, 2, 3)]
    for found, mask in zip(find_foreground(scene(masks, seed)), masks):
        assert torch.equal(found, mask)


def test_a_small_object_is_found():
    masks = [ring(16, 16, 7, 7, 2, 2), ring(16, 16, 3, 9, 2, 2)]  # 1.6 % of the patches: zero lies in the background
    for found, mask in zip(find_foreground(scene(masks)), masks):
        assert torch.equal(found, mask)


def test_an_object_that_fills_the_image_and_touches_its_border_is_found():
    masks = [ring(8, 8, 1, 0, 7, 7), ring(8, 8, 0, 1, 8, 6)]
    for found, mask in zip(find_foreground(scene(masks)), masks):
        assert torch.equal(found, mask)


def test_patches_that_are_all_the_same_are_foreground():
    assert all(mask.all() for mask in find_foreground([torch.ones(3, 4, 8), torch.ones(2, 2, 8)]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2)])
def test_images_that_are_all_border_have_a_foreground(shape):
    features = torch.randn(*shape, 8, generator=torch.Generator().manual_seed(0))
    (mask,) = find_foreground([features])
    assert mask.shape == shape and mask.any()


def test_the_threshold_is_that_of_all_divisions_with_the_largest_variance_between_the_parts():
    values = torch.randn(60, generator=torch.Generator().manual_seed(0)).exp()

    def between(threshold):
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(values.sort().values[:-1].tolist(), key=between)
    assert torch.equal(values > _otsu(values), values > best)


def test_components_are_the_projections_on_the_axes_of_a_singular_value_decomposition(features):
    flat = features.flatten(0, 2)
    centred = flat - flat.mean(dim=0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    expected, found = centred @ axes[:3].T, principal_components(flat, 3)
    for axis in range(3):
        sign = torch.sign((expected[:, axis] * found[:, axis]).sum())
        torch.testing.assert_close(found[:, axis], sign * expected[:, axis], rtol=1e-3, atol=1e-3)


def test_colours_of_the_foreground_do_not_depend_on_the_background():
    masks = [ring(8, 9, 2, 2, 4, 4), ring(7, 12, 1, 3, 5, 6)]
    first = scene(masks)
    second = [torch.where(mask[..., None], part, -3 * part + 1) for part, mask in zip(first, masks)]
    for one, other, mask in zip(pca_colors(first, masks), pca_colors(second, masks), masks):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert torch.equal(one[..., 3] == 1, mask) and torch.equal(one[..., 3] == 0, ~mask)


def test_colours_are_shared_by_images_of_different_sizes():
    features = scene([ring(4, 5, 1, 1, 2, 2), ring(6, 3, 1, 1, 2, 1)])
    colors = pca_colors(features)
    assert [tuple(part.shape) for part in colors] == [(4, 5, 4), (6, 3, 4)]
    joined = principal_colors(torch.cat([part.flatten(0, 1) for part in features]))
    torch.testing.assert_close(torch.cat([part.flatten(0, 1)[:, :3] for part in colors]), joined)


def test_an_image_without_foreground_is_transparent():
    features = torch.randn(2, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    masks = [torch.ones(4, 4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)]
    first, second = pca_colors(features, masks)
    assert (first[..., 3] == 1).all() and (second == 0).all()


@pytest.mark.parametrize("count", [1, 3, 11])
def test_sheet_shows_every_image_above_the_colours_of_its_patches(count, tmp_path):
    """Each image is of one colour, and so are its patches."""
    tints = [(index * 20 + 30, 255 - index * 20, 90) for index in range(count)]
    pictures = [
        Picture("name", np.full((3, 16, 24), 0, np.uint8) + np.array(tint, np.uint8)[:, None, None]) for tint in tints
    ]
    colors = [torch.tensor([1 - value / 255 for value in tint] + [1.0]).expand(2, 3, 4) for tint in tints]
    drawn = read(draw_pca(pictures, colors, tmp_path / "new" / "pca.png"))
    for tint in tints:
        photograph, patches = (
            np.abs(drawn - np.array(wanted)).max(axis=2) <= 2 for wanted in (tint, [255 - value for value in tint])
        )
        assert photograph.sum() > 2000 and patches.sum() > 2000
        assert np.argwhere(photograph)[:, 0].mean() < np.argwhere(patches)[:, 0].mean()


def test_features_of_a_run_are_drawn(tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [Picture(f"class {index}", rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)) for index in range(3)]
    drawn = read(plot_patch_pca(tiny_model, EvalTransform(36, 32, MEAN, STD), pictures, tmp_path / "pca.png"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)
