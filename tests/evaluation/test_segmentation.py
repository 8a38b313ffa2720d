from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Features, Image
from torch import nn

from dinov2_hf.config import load_config
from dinov2_hf.config.evaluations import SegmentationEvaluation
from dinov2_hf.evaluation import load_dense_head, predict_map
from dinov2_hf.evaluation.dense_heads import HeadMeta, SegmentationHead
from dinov2_hf.evaluation.metrics.segmentation import MeanIoU, class_areas, class_iou, pixel_accuracy
from dinov2_hf.evaluation.segmentation import (
    distort,
    draw_distortion,
    evaluate_segmentation,
    learning_rate,
    segmentation_loss,
)

from .composed import CLASSES, dense_evaluation, png, random_backbone, save_composed

QUICK = dict(resize_size=64, crop_size=64, stride=40, iterations=30, global_batch=4, learning_rate=3e-2)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_composed(tmp_path_factory.mktemp("composed"), 16, 6)


def values(results):
    return {result.metric: result.value for result in results}


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_iou_is_the_hand_computed_one():
    labels = torch.tensor([[0, 0, 1], [1, 2, 2]])
    truth = torch.tensor([[0, 1, 1], [-1, 2, 0]])
    areas = class_areas(labels, truth, 5)
    assert areas.tolist() == [[1, 1, 1, 0, 0], [2, 1, 2, 0, 0], [2, 2, 1, 0, 0]]
    iou = class_iou(areas.numpy())
    assert iou[:3].tolist() == pytest.approx([100 / 3, 50, 50])
    assert np.isnan(iou[3:]).all()  # in neither of the two
    assert pixel_accuracy(areas.numpy()) == pytest.approx(60)


def test_iou_is_that_of_the_confusion_matrix_of_the_whole_set():
    rng = np.random.default_rng(0)
    truths = [rng.integers(-1, 4, (rng.integers(3, 9), 7)) for _ in range(5)]
    labels = [rng.integers(0, 5, truth.shape) for truth in truths]
    matrix = np.zeros((5, 5))
    for label, truth in zip(labels, truths):
        for found, true in zip(label.flat, truth.flat):
            if true >= 0:
                matrix[true, found] += 1
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - matrix.diagonal()
    expected = 100 * matrix.diagonal() / union
    areas = sum(class_areas(torch.from_numpy(a), torch.from_numpy(b), 5) for a, b in zip(labels, truths)).numpy()
    assert class_iou(areas) == pytest.approx(expected)
    flat = [[each.ravel().tolist() for each in maps] for maps in (labels, truths)]
    assert MeanIoU().compute(predictions=flat[0], references=flat[1])["mean_iou"] == pytest.approx(expected.mean())


def test_images_without_labels_count_for_nothing():
    areas = class_areas(torch.zeros(3, 3, dtype=torch.long), torch.full((3, 3), -1), 3)
    assert not areas.any()
    assert np.isnan(pixel_accuracy(areas.numpy()))


# --- the head --------------------------------------------------------------------------------------------------------


def test_the_head_is_batch_norm_and_a_linear_layer():
    head = SegmentationHead(HeadMeta("segmentation", (1, 2), 6, 2, 5))
    chunks = [[(torch.randn(n, 6), torch.randn(n, 6, 4, 3)) for _ in range(2)] for n in (3, 2)]
    stock = nn.Sequential(nn.BatchNorm2d(12), nn.Conv2d(12, 5, 1))
    stock[1].load_state_dict(head.linear.state_dict())
    for part in (head, stock):
        part.train()
    for _ in range(3):
        head.observe(chunks, torch.ones(5, dtype=torch.bool), Accelerator(cpu=True))
        found = torch.cat([head(chunk) for chunk in chunks])
        inputs = torch.cat([torch.cat([patches for _, patches in chunk], dim=1) for chunk in chunks])
        torch.testing.assert_close(found, stock(inputs))
    head.eval(), stock.eval()
    torch.testing.assert_close(head(chunks[0]), stock(inputs[:3]))


def test_padding_is_not_in_the_statistics():
    head = SegmentationHead(HeadMeta("segmentation", (1,), 6, 1, 5)).train()
    patches = torch.randn(4, 6, 3, 3)
    counts = torch.tensor([True, False, True, False])
    head.observe([[(torch.zeros(4, 6), patches)]], counts, Accelerator(cpu=True))
    found = head([(torch.zeros(4, 6), patches)])
    head.observe([[(torch.zeros(2, 6), patches[counts])]], torch.ones(2, dtype=torch.bool), Accelerator(cpu=True))
    torch.testing.assert_close(head([(torch.zeros(4, 6), patches)]), found)
    before = head.norm.running_mean.clone()
    head.observe([[(torch.zeros(4, 6), patches)]], torch.zeros(4, dtype=torch.bool), Accelerator(cpu=True))
    assert torch.equal(head.norm.running_mean, before)


def test_the_loss_is_a_sum_over_labelled_pixels():
    scores, labels = torch.randn(2, 4, 3, 5), torch.randint(-1, 4, (2, 3, 5))
    total, count = segmentation_loss(scores, labels)
    expected = [-scores[b, :, y, x].log_softmax(0)[labels[b, y, x]] for b, y, x in (labels >= 0).nonzero()]
    assert count == len(expected)
    torch.testing.assert_close(total, torch.stack(expected).sum())


def test_the_learning_rate_falls_in_a_straight_line_after_a_warm_up():
    config = SegmentationEvaluation()
    assert learning_rate(config, 0) == pytest.approx(1e-3 * 1e-6)
    assert learning_rate(config, 750) == pytest.approx(1e-3 * (1 - 750 / 40000) * (0.5 + 0.5e-6))
    assert learning_rate(config, 20_000) == pytest.approx(5e-4)


def test_distortion_is_done_image_by_image_as_drawn():
    images = torch.rand(3, 3, 6, 7)
    none = torch.tensor([0.0, 1, 1, 0, 1])
    parameters = torch.stack([none, torch.tensor([0.1, 1.3, 1, 0, 1]), torch.tensor([0.0, 1, 0.6, 0.05, 0.7])])
    found = distort(images, parameters)
    torch.testing.assert_close(found[0], images[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], ((images[1] + 0.1).clamp(0, 1) * 1.3).clamp(0, 1), atol=1e-5, rtol=1e-5)
    assert found[2].mean() < images[2].mean()
    torch.testing.assert_close(found[2:], distort(images[2:], parameters[2:]))
    grey = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(distort(grey, parameters[1:2]), ((grey + 0.1).clamp(0, 1) * 1.3).clamp(0, 1))


def test_distortions_are_drawn_each_with_a_half_and_within_their_ranges():
    drawn = np.stack([draw_distortion(np.random.default_rng(seed)) for seed in range(400)])
    changed = drawn != [0, 1, 1, 0, 1]
    assert changed.mean(axis=0) == pytest.approx([0.5, 0.25, 0.5, 0.5, 0.25], abs=0.08)
    assert not (changed[:, 1] & changed[:, 4]).any()  # one contrast, before or after
    assert abs(drawn[:, 0]).max() <= 32 / 255 and abs(drawn[:, 3]).max() <= 0.1
    assert drawn[:, [1, 2, 4]].min() >= 0.5 and drawn[:, [1, 2, 4]].max() <= 1.5


# --- the evaluation --------------------------------------------------------------------------------------------------


def test_linear_segmentation_beats_the_majority_class(path, tmp_path):
    evaluation = dense_evaluation(SegmentationEvaluation, path, output=tmp_path, classes=CLASSES, **QUICK)
    results = list(evaluate_segmentation(evaluation))
    found = values(results)
    maps = np.stack([np.asarray(row["annotation"]) for row in Dataset.load_from_disk(f"{path}/validation")])
    majority = max((maps == label).mean() for label in range(4)) * 100
    assert found["pixel_accuracy"] > majority + 5
    assert found["mean_iou"] > 2 * majority / 4
    by_class = [found[f"iou_{name}"] for name in CLASSES]
    assert found["mean_iou"] == pytest.approx(np.mean(by_class))
    for result in results:
        assert result.interval[0] <= result.value <= result.interval[1]

    head = load_dense_head(tmp_path / "head.safetensors")
    assert head.meta.classes == tuple(CLASSES)
    areas = 0
    for row in Dataset.load_from_disk(f"{path}/validation"):
        pixels = torch.from_numpy(np.array(row["image"])).permute(2, 0, 1)
        labels = torch.from_numpy(np.array(row["annotation"])).long()
        areas = areas + class_areas(predict_map(evaluation.backbone, head, pixels), labels, 4)
    assert np.nanmean(class_iou(areas.numpy())) == pytest.approx(found["mean_iou"], abs=1e-6)


@pytest.mark.slow
def test_multi_scale_segmentation_runs_on_four_blocks(path):
    options = QUICK | dict(iterations=12, blocks=4, scales=[1.0, 1.32], flip=True, scale_range=[1.0, 3.0])
    results = list(evaluate_segmentation(dense_evaluation(SegmentationEvaluation, path, **options)))
    assert results[0].value > 25
    assert "4 blocks, multi-scale" in results[0].title
    assert [result.metric for result in results[2:]] == ["iou_0", "iou_1", "iou_2", "iou_3"]


def test_the_size_of_the_forwards_changes_nothing(path):
    options = QUICK | dict(iterations=4, photometric=False)
    found = [
        values(evaluate_segmentation(dense_evaluation(SegmentationEvaluation, path, batch_size=size, **options)))
        for size in (4, 3, 1)
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-3)
    assert found[2] == pytest.approx(found[0], abs=1e-3)


def of_maps(folder, maps):
    images = [png(np.zeros((16, 16, 3), np.uint8))] * len(maps)
    features = Features({"image": Image(), "annotation": Image()})
    part = Dataset.from_dict({"image": images, "annotation": [png(each) for each in maps]}, features=features)
    DatasetDict(train=part, validation=part).save_to_disk(str(folder))
    return str(folder)


def test_images_without_labels_are_learnt_around(tmp_path):
    labelled = np.zeros((16, 16), np.uint8)
    labelled[:, 8:] = 1
    path = of_maps(tmp_path / "set", [labelled, np.full((16, 16), 255, np.uint8)])
    options = QUICK | dict(iterations=2, resize_size=16, crop_size=16, stride=16)
    results = list(evaluate_segmentation(dense_evaluation(SegmentationEvaluation, path, **options)))
    assert np.isfinite([result.value for result in results]).all()


def test_sets_that_teach_nothing_are_refused(tmp_path):
    nothing = of_maps(tmp_path / "nothing", [np.full((16, 16), 255, np.uint8)])
    one = of_maps(tmp_path / "one", [np.zeros((16, 16), np.uint8)])
    options = QUICK | dict(iterations=2, resize_size=16, crop_size=16, stride=16)
    with pytest.raises(ValueError, match="have 1 class; there is nothing to tell apart"):
        list(evaluate_segmentation(dense_evaluation(SegmentationEvaluation, one, **options)))
    with pytest.raises(ValueError, match="has a pixel to learn from"):
        list(evaluate_segmentation(dense_evaluation(SegmentationEvaluation, nothing, num_classes=3, **options)))
    with pytest.raises(ValueError, match="no pixel of .* has a class; is ignore_label=255 right?"):
        evaluation = dense_evaluation(SegmentationEvaluation, one, num_classes=3, **options)
        evaluation.config.test = replace(evaluation.config.test, path=nothing)
        list(evaluate_segmentation(evaluation))


def test_more_blocks_than_there_are_are_refused(path):
    with pytest.raises(ValueError, match="blocks=5 of a model of 4"):
        list(
            evaluate_segmentation(dense_evaluation(SegmentationEvaluation, path, random_backbone(), **QUICK, blocks=5))
        )


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["stride=600"], "stride=600 leaves gaps"),
        (["scales=[]"], "leaves nothing to predict"),
        (["num_classes=3", "classes=[a,b]"], "num_classes=3 and 2 names"),
        (["classes=[a,a]"], "a name twice"),
        (["num_classes=1"], "two or more"),
        (["iterations=1000"], "warmup_iterations=1500 is not below iterations=1000"),
    ],
)
def test_impossible_settings_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides, SegmentationEvaluation)


@pytest.mark.parametrize("name, blocks, crop", [("segmentation_linear", 1, 512), ("segmentation_ms", 4, 640)])
def test_shipped_configs_hold_the_published_values(name, blocks, crop):
    config = load_config(f"configs/evaluate/{name}.yaml", ["train.path=/x", "test.path=/x"], SegmentationEvaluation)
    assert (config.blocks, config.crop_size, config.resize_size) == (blocks, crop, crop)
    assert config.flip == (name == "segmentation_ms") and config.num_classes == 150 and config.reduce_zero_label
    assert config.scales == ([1.0] if blocks == 1 else [1.0, 1.32, 1.73, 2.28, 3.0])
    assert config.scale_range == ([0.5, 2.0] if blocks == 1 else [1.0, 3.0])
