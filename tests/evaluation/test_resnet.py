"""Evaluations of patches of a ResNet: those of its last map, and the refusal of heads on several blocks."""

import pytest
import torch

from dinov2_hf import evaluate
from dinov2_hf.backbones import ResNetConfig, ResNetModel
from dinov2_hf.data import EvalTransform
from dinov2_hf.features import FeatureExtractor

from .composed import save_composed

COMMON = {"num_workers": 0, "precision": "fp32", "iterations": 2, "warmup_iterations": 1, "global_batch": 2}


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 16], embedding_size=8)
    return FeatureExtractor.of(ResNetModel(config), EvalTransform(64, 64, [0.5] * 3, [0.25] * 3), "resnet")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_composed(tmp_path_factory.mktemp("composed"), 4, 2)


SEGMENTATION = {"resize_size": 64, "crop_size": 64, "stride": 40}
DEPTH = {"crop": [64, 64], "mean_iterations": 1}


@pytest.mark.parametrize(
    ("protocol", "keys", "metric"),
    [("segmentation", SEGMENTATION | {"blocks": 1}, "mean_iou"), ("depth", DEPTH | {"head": "linear"}, "rmse")],
)
def test_heads_on_the_last_map_are_trained(backbone, path, protocol, keys, metric):
    report = evaluate(backbone, protocol, path, keys=COMMON | keys)
    assert any(name.startswith(metric) for name in report.metrics), report.metrics


@pytest.mark.parametrize(
    ("protocol", "keys"), [("segmentation", SEGMENTATION | {"blocks": 4}), ("depth", DEPTH | {"head": "linear4"})]
)
def test_heads_on_several_blocks_are_refused_in_one_line(backbone, path, protocol, keys):
    with pytest.raises(ValueError, match="layers=4.*ResNetModel gives the features of its last stage only") as refused:
        evaluate(backbone, protocol, path, keys=COMMON | keys)
    assert "\n" not in str(refused.value)
