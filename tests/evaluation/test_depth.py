import math

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image
from torch import nn

from dinov2_hf.config import load_config
from dinov2_hf.config.evaluations import DepthEvaluation, DepthTestConfig
from dinov2_hf.evaluation import load_dense_head, predict_map
from dinov2_hf.evaluation.dense_heads import DptDepthHead, HeadMeta, LinearDepthHead, build_head
from dinov2_hf.evaluation.depth import (
    depth_blocks,
    depth_loss,
    draw_tint,
    evaluate_depth,
    gradient_loss,
    learning_rate,
    sig_loss,
    tint,
)
from dinov2_hf.evaluation.metrics.depth import DEPTH_METRICS, DepthErrors, crop_mask, depth_errors

from .composed import composed, dense_evaluation, png, save_composed

QUICK = dict(crop=[48, 64], iterations=30, global_batch=4, mean_iterations=4, learning_rate=3e-2)
QUICK["final_norm"] = True  # before it the features of an untrained network are small, and heads learn slowly


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return save_composed(tmp_path_factory.mktemp("composed"), 16, 6)


@pytest.fixture(scope="module")
def mean_error(path):
    """The relative error of the mean depth of the training set."""
    depths = [
        np.stack([np.asarray(row["depth"]) for row in Dataset.load_from_disk(f"{path}/{split}")]) / 1000
        for split in ("train", "validation")
    ]
    return (abs(depths[0].mean() - depths[1]) / depths[1]).mean()


def values(results):
    return {result.metric: result.value for result in results}


def maps(batch=3, height=9, width=11, seed=0):
    """Depths, true depths and valid pixels `[B, H, W]`."""
    generator = torch.Generator().manual_seed(seed)
    depth, truth = (0.5 + 4 * torch.rand(batch, height, width, generator=generator) for _ in range(2))
    return depth, truth, torch.rand(batch, height, width, generator=generator) < 0.7


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_errors_are_the_hand_computed_ones():
    depth = torch.tensor([[2.0, 3.0, 9.0], [1.0, 4.0, 5.0]])
    truth = torch.tensor([[2.0, 2.0, 1.0], [2.0, 4.0, 0.0]])
    found = dict(zip(DEPTH_METRICS, depth_errors(depth, truth, (truth > 0) & (depth < 9)).tolist()))
    assert found["abs_rel"] == pytest.approx((0 + 1 / 2 + 1 / 2 + 0) / 4)
    assert found["rmse"] == pytest.approx(math.sqrt((0 + 1 + 1 + 0) / 4))
    assert found["log10"] == pytest.approx((math.log10(1.5) + math.log10(2)) / 4)
    assert found["sq_rel"] == pytest.approx((1 / 2 + 1 / 2) / 4)
    assert found["rmse_log"] == pytest.approx(math.sqrt((math.log(1.5) ** 2 + math.log(2) ** 2) / 4))
    assert [found[f"delta{k}"] for k in (1, 2, 3)] == [50, 75, 75]  # ratios 1, 1.5, 2, 1


def test_errors_are_averaged_over_images():
    depth, truth, valid = maps()
    truth = truth * valid
    expected = np.mean([depth_errors(*each).numpy() for each in zip(depth, truth, valid)], axis=0)
    flat = [[each.ravel().tolist() for each in part] for part in (depth, truth)]
    found = DepthErrors().compute(predictions=flat[0], references=flat[1])
    assert list(found) == list(DEPTH_METRICS)
    assert list(found.values()) == pytest.approx(expected.tolist(), rel=1e-5)


def test_an_image_without_a_valid_pixel_has_no_error():
    assert depth_errors(torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)).isnan().all()


def test_crops_are_those_of_the_benchmarks():
    expected = torch.zeros(480, 640, dtype=torch.bool)
    expected[45:471, 41:601] = True
    assert torch.equal(crop_mask((480, 640), "nyu"), expected)
    expected = torch.zeros(352, 1216, dtype=torch.bool)
    expected[int(0.40810811 * 352) : int(0.99189189 * 352), int(0.03594771 * 1216) : int(0.96405229 * 1216)] = True
    assert torch.equal(crop_mask((352, 1216), "garg"), expected)
    expected = torch.zeros(375, 1242, dtype=torch.bool)
    expected[int(0.3324324 * 375) : int(0.91351351 * 375), int(0.0359477 * 1242) : int(0.96405229 * 1242)] = True
    assert torch.equal(crop_mask((375, 1242), "eigen"), expected)
    assert crop_mask((7, 9), "none").all()


# --- losses ----------------------------------------------------------------------------------------------------------


def naive_sig_loss(depth, truth, valid, mean_alone=False):
    logs = [
        math.log(depth[y, x] + 1e-3) - math.log(truth[y, x] + 1e-3) for y, x in np.ndindex(*depth.shape) if valid[y, x]
    ]
    mean = sum(logs) / len(logs)
    variance = 0 if mean_alone else sum((value - mean) ** 2 for value in logs) / (len(logs) - 1)
    return math.sqrt(variance + 0.15 * mean**2)


def naive_gradient_loss(depth, truth, valid):
    total = 0
    for step in (1, 2, 4, 6):
        d, t, v = (each[::step, ::step] for each in (depth, truth, valid))
        logs = np.log(d + 1e-3) - np.log(t + 1e-3)
        found = 0
        for y, x in np.ndindex(*d.shape):
            if y + 2 < d.shape[0] and v[y, x] and v[y + 2, x]:
                found += abs(logs[y, x] - logs[y + 2, x])
            if x + 2 < d.shape[1] and v[y, x] and v[y, x + 2]:
                found += abs(logs[y, x] - logs[y, x + 2])
        total += found / v.sum()
    return total


def test_losses_are_those_of_naive_loops():
    depth, truth, valid = maps(height=15, width=17)
    arrays = [each.numpy() for each in (depth, truth, valid)]
    for alone in (False, True):
        expected = [naive_sig_loss(*each, alone) for each in zip(*arrays)]
        assert sig_loss(depth, truth, valid, alone).tolist() == pytest.approx(expected, rel=1e-4)
    expected = [naive_gradient_loss(*each) for each in zip(*arrays)]
    assert gradient_loss(depth, truth, valid).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_loss_sums_both_over_images_with_a_valid_pixel():
    depth, truth, valid = maps()
    truth = truth * valid
    truth[1] = 0
    truth[2, 0, 0] = 11.0  # beyond the largest depth
    config = DepthEvaluation(mean_iterations=5)
    total, count = depth_loss(depth.unsqueeze(1), truth, 9, config)
    known = (truth > 1e-3) & (truth < 10)
    expected = [
        sig_loss(depth[i : i + 1], truth[i : i + 1], known[i : i + 1])
        + 0.5 * gradient_loss(depth[i : i + 1], truth[i : i + 1], known[i : i + 1])
        for i in (0, 2)
    ]
    assert count == 2
    torch.testing.assert_close(total, torch.cat(expected).sum())
    early, _ = depth_loss(depth.unsqueeze(1), truth, 4, config)
    assert early < total


def test_losses_of_perfect_and_of_unknown_depths_have_a_finite_slope():
    _, truth, valid = maps()
    valid[0], valid[1, 0, 0] = False, True
    valid[1, 1:], valid[1, 0, 1:] = False, False  # a single pixel
    depth = truth.clone().requires_grad_()
    for alone in (False, True):
        (sig_loss(depth, truth, valid, alone) + gradient_loss(depth, truth, valid)).sum().backward()
        assert depth.grad.isfinite().all()
    assert sig_loss(depth, truth, valid)[0] == 0


def test_the_learning_rate_is_half_a_cosine_after_a_warm_up():
    config = DepthEvaluation()
    assert learning_rate(config, 0) == pytest.approx(1e-7)
    assert learning_rate(config, 12_800) == pytest.approx(1e-4 * 0.75)
    assert learning_rate(config, 38_399) == pytest.approx(0, abs=1e-9)


def test_tints_are_gamma_brightness_and_channels_of_half_of_the_images():
    drawn = np.stack([draw_tint(np.random.default_rng(seed), 3, 0.25) for seed in range(300)])
    changed = (drawn != 1).any(axis=1)
    assert changed.mean() == pytest.approx(0.5, abs=0.1)
    assert abs(drawn[:, [0, 2, 3, 4]] - 1).max() <= 0.1 < abs(drawn[:, 1] - 1).max() <= 0.25
    images = torch.rand(2, 3, 4, 5)
    found = tint(images, torch.tensor([[1.0, 1, 1, 1, 1], [0.9, 1.2, 0.9, 1, 1.1]]))
    torch.testing.assert_close(found[0], images[0])
    expected = (images[1] ** 0.9 * 1.2 * torch.tensor([0.9, 1, 1.1]).view(3, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(found[1], expected)


# --- heads -----------------------------------------------------------------------------------------------------------


def features(blocks, batch=2, width=16, grid=(5, 6)):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(batch, width, generator=generator), torch.randn(batch, width, *grid, generator=generator))
        for _ in range(blocks)
    ]


def test_the_linear_head_is_the_published_one():
    """Tokens and CLS are enlarged before the linear layer there, and the bins summed one by one."""
    head = LinearDepthHead(HeadMeta("linear_depth", (1, 2), 16, 2, 12, depth_range=(0.5, 8.0)))
    inputs = [torch.cat((p, c[:, :, None, None].expand_as(p)), dim=1) for c, p in features(2)]
    inputs = torch.cat([nn.functional.interpolate(part, scale_factor=4, mode="bilinear") for part in inputs], dim=1)
    scores = head.linear(inputs).relu() + 0.1
    bins = torch.linspace(0.5, 8.0, 12)
    expected = sum(scores[:, k] / scores.sum(dim=1) * bins[k] for k in range(12))
    found = head(features(2))
    assert found.shape == (2, 1, 20, 24)
    torch.testing.assert_close(found[:, 0], expected, atol=1e-4, rtol=1e-4)
    assert 0.5 <= found.min() and found.max() <= 8


@pytest.mark.parametrize("rule", ["coarse", "fine"])
@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 3)])
def test_the_dpt_head_takes_grids_of_any_size(grid, rule):
    head = DptDepthHead(HeadMeta("dpt_depth", (1, 2, 3, 4), 16, 4, 8, depth_range=(0.1, 10.0), dpt_grid=rule))
    found = head(features(4, grid=grid))
    sides = [side + side % 2 if rule == "coarse" else side for side in grid]
    assert found.shape == (2, 1, 16 * sides[0], 16 * sides[1])
    assert found.min() >= 0.1
    found.sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_dpt_head_fuses_odd_grids_as_published():
    """There the map of a finer block is resized to what comes from below: 13 rows of patches give 224 of depths."""
    head = DptDepthHead(HeadMeta("dpt_depth", (1, 2, 3, 4), 16, 4, 8, depth_range=(0.1, 10.0), dpt_grid="coarse"))
    blocks = features(4, grid=(13, 9))
    fused = None
    for place, block in enumerate((3, 2, 1, 0)):
        cls, patches = blocks[block]
        both = torch.cat((patches, cls[:, :, None, None].expand_as(patches)), dim=1)
        each = head.resize[block](head.project[block](head.readout[block](both)))
        each, fusion = head.lateral[block](each), head.fusion[place]
        if fused is None:
            fused = each
        else:
            fused = fused + fusion.lateral(nn.functional.interpolate(each, fused.shape[2:], mode="bilinear"))
        fused = fusion.unit(fused)
        size = [2 * side for side in fused.shape[2:]]
        fused = fusion.project(nn.functional.interpolate(fused, size, mode="bilinear", align_corners=True))
    output = head.first(head.fused(fused))
    output = nn.functional.interpolate(output, scale_factor=2, mode="bilinear", align_corners=True)
    expected = head.last(output).relu() + 0.1
    assert expected.shape == (2, 1, 224, 160)
    torch.testing.assert_close(head(blocks), expected)


def test_the_defaults_are_the_published_features_and_grid(path, tmp_path):
    options = dict(iterations=1, head="dpt", dpt_channels=4, crop=[24, 24], global_batch=1, flip=False)
    list(evaluate_depth(dense_evaluation(DepthEvaluation, path, output=tmp_path, **options)))
    meta = load_dense_head(tmp_path / "head.safetensors").meta
    assert (meta.final_norm, meta.dpt_grid) == (False, "coarse")


def test_the_dpt_head_has_the_published_widths():
    head = DptDepthHead(HeadMeta("dpt_depth", (3, 6, 9, 12), 768, 12, 256, depth_range=(0.001, 10.0)))
    assert [each.out_channels for each in head.project] == [96, 192, 384, 768]
    # convolutions of the published head of a width of 768, counted by hand
    readout = 4 * (2 * 768 * 768 + 768)
    project = sum(768 * width + width for width in (96, 192, 384, 768))
    resize = 96 * 96 * 16 + 96 + 192 * 192 * 4 + 192 + 768 * 768 * 9 + 768
    lateral = sum(width * 256 * 9 for width in (96, 192, 384, 768))
    fusion = 7 * 2 * 256 * 256 * 9 + 4 * (256 * 256 + 256)
    output = 256 * 256 * 9 + 256 + 256 * 128 * 9 + 128 + 128 * 32 * 9 + 32 + 32 + 1
    assert sum(each.numel() for each in head.parameters()) == readout + project + resize + lateral + fusion + output


def test_dpt_reads_cls_and_all_of_its_blocks():
    head = DptDepthHead(HeadMeta("dpt_depth", (1, 2, 3, 4), 16, 4, 8, depth_range=(0.1, 10.0)))
    plain = features(4)
    for block in range(4):
        for part in (0, 1):
            changed = [list(each) for each in plain]
            changed[block][part] = changed[block][part] + 1
            assert not torch.equal(head(changed), head(plain)), (block, part)


def test_heads_of_one_seed_are_equal():
    meta = HeadMeta("dpt_depth", (1, 2, 3, 4), 16, 4, 8, depth_range=(0.1, 10.0))
    first, again, other = (build_head(meta, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_blocks_are_the_published_ones():
    assert depth_blocks(12, "linear") == (12,)
    assert depth_blocks(12, "linear4") == (3, 6, 9, 12)
    assert depth_blocks(24, "dpt") == (5, 12, 18, 24)
    assert depth_blocks(40, "dpt") == (10, 20, 30, 40)
    assert depth_blocks(6, "dpt") == (1, 3, 4, 6)
    with pytest.raises(ValueError, match="head=dpt takes four blocks, and the model has 3; use head=linear"):
        depth_blocks(3, "dpt")


# --- the evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", pytest.param("linear4", marks=pytest.mark.slow)])
def test_linear_heads_beat_the_mean_depth(path, mean_error, head, tmp_path):
    evaluation = dense_evaluation(DepthEvaluation, path, head=head, output=tmp_path, **QUICK)
    results = list(evaluate_depth(evaluation))
    found = values(results)
    assert list(found) == list(DEPTH_METRICS)
    assert found["abs_rel"] < 0.85 * mean_error
    assert found["delta1"] < found["delta2"] < found["delta3"] <= 100
    for result in results:
        assert result.interval[0] <= result.value <= result.interval[1]

    saved = load_dense_head(tmp_path / "head.safetensors")
    assert saved.meta.kind == "linear_depth" and saved.meta.depth_range == (0.001, 10.0)
    errors = []
    for row in Dataset.load_from_disk(f"{path}/validation"):
        depth = predict_map(evaluation.backbone, saved, torch.from_numpy(np.array(row["image"])).permute(2, 0, 1))
        truth = torch.from_numpy(np.array(row["depth"]).astype(np.float32) / 1000)
        errors.append(depth_errors(depth, truth, truth > 0))
    assert torch.stack(errors).mean(dim=0)[0].item() == pytest.approx(found["abs_rel"], abs=1e-5)


@pytest.mark.slow
def test_dpt_beats_the_mean_depth(path, mean_error):
    options = QUICK | dict(head="dpt", dpt_channels=8, learning_rate=5e-3, crop=[32, 48], iterations=25)
    found = values(evaluate_depth(dense_evaluation(DepthEvaluation, path, **options)))
    assert found["abs_rel"] < 0.85 * mean_error


def test_transfer_is_evaluated_without_training(path, tmp_path):
    composed(3, seed=7, depth_unit=1 / 4000).save_to_disk(str(tmp_path / "other"))
    other = DepthTestConfig(str(tmp_path / "other"), depth_scale=1 / 4000)
    again = DepthTestConfig(path, "validation")
    wrong = DepthTestConfig(path, "validation", eval_crop="garg")
    options = QUICK | dict(iterations=3, flip=False, transfer={"other": other, "again": again, "cut": wrong})
    results = list(evaluate_depth(dense_evaluation(DepthEvaluation, path, **options)))
    found = values(results)
    assert found["abs_rel_on_again"] == found["abs_rel"] != found["abs_rel_on_cut"]
    assert 0 < found["abs_rel_on_other"] < 1
    assert [result.dataset for result in results[8::8]] == ["other", "again", "cut"]


def test_median_scaling_takes_the_scale_away(path):
    options = QUICK | dict(iterations=1, flip=False)
    plain, scaled = (
        values(evaluate_depth(dense_evaluation(DepthEvaluation, path, median_scaling=scaling, **options)))
        for scaling in (False, True)
    )
    assert scaled["rmse"] < plain["rmse"]


def test_predicted_depths_stay_in_the_range():
    head = DptDepthHead(HeadMeta("dpt_depth", (1, 2, 3, 4), 16, 4, 8, depth_range=(0.1, 10.0)))
    scores = torch.tensor([[[[0.0, 3.0, 40.0]]]])
    assert head.decide(head.average(scores)[0]).tolist() == [[pytest.approx(0.1), 3, 10]]


def of_depths(folder, depths):
    image = png(np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8))
    features = Features({"image": Image(), "depth": Image()})
    part = Dataset.from_dict({"image": [image] * len(depths), "depth": [png(each) for each in depths]}, features)
    DatasetDict(train=part, validation=part).save_to_disk(str(folder))
    return str(folder)


def test_images_without_depth_are_left_out_and_sets_without_any_refused(tmp_path, caplog):
    known, unknown = np.full((16, 16), 2000, np.uint16), np.zeros((16, 16), np.uint16)
    far = np.full((16, 16), 60_000, np.uint16)
    options = QUICK | dict(iterations=2, crop=[16, 16])
    some = of_depths(tmp_path / "some", [known, unknown, far])
    for scaling in (True, False):
        evaluation = dense_evaluation(DepthEvaluation, some, median_scaling=scaling, **options)
        assert np.isfinite([result.value for result in evaluate_depth(evaluation)]).all()
    assert "left out 2 images" in caplog.text
    with pytest.raises(ValueError, match="has a pixel to learn from"):
        list(evaluate_depth(dense_evaluation(DepthEvaluation, of_depths(tmp_path / "none", [unknown, far]), **options)))
    with pytest.raises(ValueError, match="min_depth=0.001 and max_depth=10.0 metres; is depth_scale=1.0 right"):
        list(evaluate_depth(dense_evaluation(DepthEvaluation, some, test={"depth_scale": 1.0}, **options)))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["head=deep"], "head='deep' is not one of linear, linear4, dpt"),
        (["crop=[4]"], r"crop=\[4\] is not \[height, width\]"),
        (["crop_size=224"], "use crop"),
        (["min_depth=20"], "min_depth=20.0 is not below max_depth=10.0"),
        (["test.eval_crop=half"], "test.eval_crop='half' is not one of none, nyu, eigen, garg"),
        (["transfer.sun.split=test"], "transfer.sun.path is not set"),
        (["train.depth_scale=0"], "train.depth_scale=0.0 is not positive"),
    ],
)
def test_impossible_settings_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides, DepthEvaluation)


@pytest.mark.parametrize("name, far, crop", [("depth_nyu", 10, [416, 544]), ("depth_kitti", 80, [352, 704])])
def test_shipped_configs_hold_the_published_values(name, far, crop):
    config = load_config(f"configs/evaluate/{name}.yaml", ["train.path=/x", "test.path=/x"], DepthEvaluation)
    assert (config.max_depth, config.crop, config.iterations, config.warmup_iterations) == (far, crop, 38_400, 12_800)
    assert config.flip and config.learning_rate == 1e-4 and config.weight_decay == 0.01
    assert config.test.eval_crop == ("nyu" if far == 10 else "garg")
    assert config.train.depth_scale == config.test.depth_scale == (1e-3 if far == 10 else 1 / 256)
