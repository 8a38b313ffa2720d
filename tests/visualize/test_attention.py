"""Attention maps of CLS."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.backbones import StockBackbone
from dinov2_hf.data import EvalTransform
from dinov2_hf.features import FeatureExtractor
from dinov2_hf.visualize import Picture, attention_maps, draw_attention, patch_features
from dinov2_hf.visualize.attention import attention_range
from dinov2_hf.visualize.pictures import model_input


@pytest.fixture
def picture():
    return Picture("name", np.random.default_rng(0).integers(0, 256, (3, 32, 48), dtype=np.uint8))


def test_maps_are_the_row_of_cls_without_cls_and_registers(backbone, tiny_model, picture):
    maps = attention_maps(backbone, picture)
    assert maps.shape == (2, 4, 6)
    with torch.no_grad():
        weights = tiny_model(model_input(backbone, picture), output_attentions=True).attentions[-1]
    assert weights.shape == (1, 2, 27, 27)
    for head in range(2):
        for row in range(4):
            for column in range(6):
                assert maps[head, row, column] == weights[0, head, 0, 3 + 6 * row + column]
    left_out = weights[0, :, 0, :3].sum(dim=1)
    torch.testing.assert_close(maps.sum(dim=(1, 2)), 1 - left_out)


def test_what_is_kept_of_an_image_holds_no_other_memory(backbone, picture):
    for values in (attention_maps(backbone, picture), patch_features(backbone, picture)):
        assert values.untyped_storage().nbytes() == values.numel() * 4 and values.is_contiguous()


def test_a_backbone_without_its_network_is_refused(backbone, picture):
    features = FeatureExtractor(backbone.features, backbone.transform, 32, 8, 2, backbone.device, "remote")
    with pytest.raises(ValueError, match="remote gives only features"):
        attention_maps(features, picture)


def test_a_model_without_cls_is_refused(picture):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=8, image_size=32
    )
    network = StockBackbone(SiglipVisionModel(config))
    with pytest.raises(ValueError, match="no CLS token"):
        attention_maps(FeatureExtractor.of(network, EvalTransform(36, 32, (0.5,) * 3, (0.5,) * 3)), picture)


def test_the_scale_starts_at_zero_and_one_patch_does_not_take_it():
    values = torch.full((20, 20), 0.002)
    values[3, 4] = 0.2
    assert attention_range(values) == (0.0, pytest.approx(0.002))


def test_sheet_has_the_image_the_mean_and_every_head(tmp_path):
    """One head looks at the left of a grey image, the other at its right."""
    picture = Picture("name", np.full((3, 32, 32), 128, np.uint8))
    maps = torch.zeros(2, 4, 4)
    maps[0, :, :2], maps[1, :, 2:] = 0.1, 0.05
    with Image.open(draw_attention([picture], [maps], tmp_path / "a.png")) as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    bright = (drawn.min(axis=2) < 200) & (drawn[..., 0] > 220)  # the end of the scale
    columns = np.array_split(bright[40:], 4, axis=1)  # image, mean, head 1, head 2
    counts = [part.sum() for part in columns]
    assert counts[0] == 0 and counts[1] > 0
    for part, side in ((columns[2], 0), (columns[3], 1)):
        halves = [half.sum() for half in np.array_split(part, 2, axis=1)]
        assert halves[side] > 4000 and halves[1 - side] < 0.05 * halves[side]


def test_many_heads_go_into_several_rows(tmp_path):
    picture = Picture("name", np.full((3, 16, 16), 128, np.uint8))
    maps = torch.rand(12, 2, 2, generator=torch.Generator().manual_seed(0))
    with Image.open(draw_attention([picture], [maps], tmp_path / "a.png")) as image:
        width, height = image.size
    assert width == 8 * 190 and 400 < height < 550  # 14 panels, 8 beside each other
