"""Maps of whole images: windows, scales and flips, heads on disk."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from dinov2_hf.backbones import Dinov2Model
from dinov2_hf.evaluation import load_dense_head, predict_map
from dinov2_hf.evaluation.dense_heads import HeadMeta, Inference, build_head, save_dense_head
from dinov2_hf.evaluation.dense_prediction import (
    block_features,
    forwards,
    keep_pace,
    predict_scores,
    scaled_size,
    sliding_scores,
    windows,
)
from dinov2_hf.features import FeatureExtractor

from .composed import MEAN, STD, colour_backbone, pixels_of, random_backbone

WHOLE = Inference()


def segmentation_head(inference=WHOLE, classes=3, blocks=(2,)):
    head = build_head(HeadMeta("segmentation", blocks, 3, 2, classes, tuple("abcdef"[:classes]), inference=inference))
    nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    return head.eval()


# --- whole images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, side, stride", [((20, 33), 8, 5), ((8, 8), 8, 3), ((7, 30), 12, 12), ((50, 9), 16, 10)])
def test_windows_cover_every_pixel_and_have_one_size(size, side, stride):
    found = windows(size, Inference(window=side, stride=stride))
    covered = np.zeros(size, dtype=bool)
    for top, left, bottom, right in found:
        assert (bottom - top, right - left) == tuple(min(side, length) for length in size)
        covered[top:bottom, left:right] = True
    assert covered.all()
    assert len(set(found)) == len(found)
    assert windows(size, Inference()) == [(0, 0, *size)]


def test_windows_are_averaged_as_one_by_one():
    backbone = colour_backbone()
    head = segmentation_head(Inference(window=8, stride=5))
    image = torch.randn(1, 3, 19, 26)
    total, counts = torch.zeros(1, 3, 19, 26), torch.zeros(19, 26)
    for top in (0, 5, 10, 11):
        for left in (0, 5, 10, 15, 18):
            part = image[:, :, top : top + 8, left : left + 8]
            scores = nn.functional.interpolate(head(block_features(backbone, head.meta, part)), (8, 8), mode="bilinear")
            total[:, :, top : top + 8, left : left + 8] += scores
            counts[top : top + 8, left : left + 8] += 1
    for batch in (1, 3, 64):
        torch.testing.assert_close(sliding_scores(backbone, head, image, batch), total / counts)


def test_a_window_over_everything_is_the_whole_image():
    backbone, image = colour_backbone(), torch.randn(1, 3, 18, 26)
    whole = sliding_scores(backbone, segmentation_head(), image, 4)
    torch.testing.assert_close(
        sliding_scores(backbone, segmentation_head(Inference(window=28, stride=9)), image, 4), whole
    )
    assert whole.shape == (1, 3, 18, 26)


def test_images_of_any_size_are_predicted_where_they_are():
    """Padded to patches, the scores of an image are those of the same pixels in the padded image."""
    backbone, head = colour_backbone(), segmentation_head()
    image = torch.randn(1, 3, 17, 22)  # to 20 and 24: 1 above, 2 below, 1 left and right
    padded = nn.functional.pad(image, (1, 1, 1, 2))
    whole = nn.functional.interpolate(head(block_features(backbone, head.meta, padded)), (20, 24), mode="bilinear")
    torch.testing.assert_close(sliding_scores(backbone, head, image, 4), whole[:, :, 1:18, 1:23])


def test_scales_and_flips_are_averaged_as_by_hand():
    backbone = colour_backbone()
    head = segmentation_head(Inference(16, 12, 8, (1.0, 1.5), True))
    pixels, size = pixels_of(24, 36), (24, 36)
    expected = torch.zeros(3, *size)
    unit = pixels[None] / 255
    for resized in ((16, 24), (24, 36)):
        image = nn.functional.interpolate(unit, resized, mode="bicubic", antialias=True).clamp(0, 1)
        image = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        for flip in (False, True):
            scores = sliding_scores(backbone, head, image.flip(3) if flip else image, 2)
            scores = nn.functional.interpolate(scores.flip(3) if flip else scores, size, mode="bilinear")
            expected += scores.softmax(dim=1)[0] / 4
    torch.testing.assert_close(predict_scores(backbone, head, pixels, size, 2), expected)


def test_sizes_keep_the_shape_and_bound_the_long_side():
    assert scaled_size((480, 640), 512) == (512, 683)
    assert scaled_size((480, 640), 512, 1.5) == (768, 1024)
    assert scaled_size((100, 1000), 512) == (205, 2048)
    assert scaled_size((480, 640), 0) == (480, 640)


def test_forwards_are_counted_as_they_are_done():
    backbone, calls = colour_backbone(), []
    counted = replace(
        backbone, features=lambda images, count: calls.append(len(images)) or backbone.features(images, count)
    )
    inference = Inference(16, 12, 8, (1.0, 1.5), True)
    for size in ((24, 36), (16, 90), (5, 7)):
        calls.clear()
        predict_scores(counted, segmentation_head(inference), pixels_of(*size), size, 2)
        assert forwards(size, inference, 2) == len(calls)


def test_processes_with_fewer_windows_keep_pace():
    """A sharded network waits for all processes at every forward."""
    calls = []

    class Accelerator:
        num_processes = 2

        def gather(self, done):
            return torch.cat((done, torch.tensor([7])))

    backbone = replace(colour_backbone(), features=lambda images, count: calls.append(images.shape))
    evaluation = SimpleNamespace(backbone=backbone, accelerator=Accelerator())
    keep_pace(evaluation, 4)
    assert len(calls) == 3
    keep_pace(evaluation, 7)
    assert len(calls) == 3
    whole = SimpleNamespace(backbone=replace(backbone, module=nn.Identity()), accelerator=Accelerator())
    keep_pace(whole, 0)
    assert len(calls) == 3


@torch.no_grad()
@pytest.mark.parametrize("final_norm", [True, False])
def test_blocks_are_those_asked_for_after_the_final_norm_or_before_it(final_norm):
    backbone = random_backbone(layers=4)
    images = torch.randn(1, 3, 16, 24)
    states = backbone.module(images, output_hidden_states=True).hidden_states
    found = block_features(backbone, HeadMeta("linear_depth", (2, 4), 48, 4, 8, final_norm=final_norm), images)
    for (cls, patches), block in zip(found, (2, 4), strict=True):
        tokens = backbone.module.layernorm(states[block]) if final_norm else states[block]
        torch.testing.assert_close(cls, tokens[:, 0])
        torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_head_before_the_final_norm_refuses_a_network_that_gives_none():
    class Plain(Dinov2Model):
        def features(self, pixels, layers=1):
            return super().features(pixels, layers)

    plain = Plain(random_backbone().module.config)
    backbone = FeatureExtractor.of(plain, random_backbone().transform)
    meta = HeadMeta("linear_depth", (4,), 48, 4, 8, final_norm=False)
    with pytest.raises(ValueError, match="Plain gives its features after the final norm only; use final_norm=true"):
        block_features(backbone, meta, torch.zeros(1, 3, 16, 16))


# --- heads on disk ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, outputs", [("segmentation", 3), ("linear_depth", 16), ("dpt_depth", 8)])
def test_saved_heads_predict_the_same_map(tmp_path, kind, outputs):
    backbone = random_backbone(layers=4, width=32)
    blocks = (4,) if kind == "segmentation" else (1, 2, 3, 4)
    inference = Inference(32, 24, 16, (1.0, 1.25), True) if kind == "segmentation" else Inference(flip=True)
    meta = HeadMeta(
        kind, blocks, 32, 4, outputs, tuple("abc") if kind == "segmentation" else (), (0.001, 10), inference
    )
    head = build_head(meta, seed=5).eval()
    save_dense_head(head, tmp_path / "deep" / "head.safetensors")
    loaded = load_dense_head(tmp_path / "deep" / "head.safetensors")
    assert loaded.meta == meta
    pixels = pixels_of(37, 41)
    found = predict_map(backbone, loaded, pixels)
    assert found.shape == (37, 41)
    assert torch.equal(found, predict_map(backbone, head, pixels.numpy()))
    assert found.dtype == (torch.int64 if kind == "segmentation" else torch.float32)


@pytest.mark.parametrize("kind", ["linear_depth", "dpt_depth"])
def test_head_of_an_earlier_release_takes_what_it_was_trained_on(tmp_path, kind):
    meta = HeadMeta(kind, (1, 2, 3, 4), 32, 4, 8, depth_range=(0.001, 10.0), final_norm=False, dpt_grid="coarse")
    path = tmp_path / "head.safetensors"
    save_dense_head(build_head(meta), path)
    with safe_open(path, "pt") as file:
        stored = json.loads(file.metadata()["dinov2_hf.dense_head"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    assert (stored.pop("final_norm"), stored.pop("dpt_grid")) == (False, "coarse")  # not there before
    save_file(tensors, path, metadata={"dinov2_hf.dense_head": json.dumps(stored)})
    old = load_dense_head(path).meta
    assert (old.final_norm, old.dpt_grid) == (True, "fine")


def test_files_and_backbones_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_dense_head(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("a text")
    with pytest.raises(ValueError, match="holds no head"):
        load_dense_head(tmp_path / "text")
    with pytest.raises(ValueError, match="2 blocks of width 3, and tiny has 4 of 48"):
        predict_map(random_backbone(), segmentation_head(), pixels_of(16, 16))
