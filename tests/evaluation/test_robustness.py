import csv
import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow

from dinov2_hf.config import SourceConfig, load_config
from dinov2_hf.config.evaluations import RobustnessEvaluation
from dinov2_hf.config.evaluations.robustness import CORRUPTIONS
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation import evaluate_robustness
from dinov2_hf.evaluation.corruptions import corrupt
from dinov2_hf.evaluation.robustness import CorruptedTransform
from dinov2_hf.features import FeatureExtractor

from .coloured import COLORS, evaluation_of, images_of, mean_color, saved

NAMES = list(COLORS)


def sets_of(tmp_path, said=None, **more):
    """Training images of three colours, and test images that are shown as `NAMES * 4` and said to be `said`."""
    return saved(tmp_path / "set", train=images_of(NAMES * 8), test=images_of(NAMES * 4, said, seed=1), **more)


def results_of(path, **options):
    return {
        result.metric: result for result in evaluate_robustness(evaluation_of(RobustnessEvaluation, path, **options))
    }


def test_colours_are_learnt_and_survive_mild_blur_but_not_the_loss_of_contrast(tmp_path):
    path = sets_of(tmp_path)
    results = results_of(path, corruptions=["gaussian_blur", "contrast"], severities=[1, 5])
    assert results["accuracy"].value == 100 and results["accuracy_gaussian_blur"].value == 100
    # at severity 5 every colour is that of the image itself, since contrast is about the mean of each image
    assert results["accuracy_contrast"].value == 100
    assert results["mean_corruption_error"].value == 0
    assert "not normalised" in results["mean_corruption_error"].title


def dark_is_red(images, count):
    """A feature that brightness decides."""
    mean = images.mean(dim=(1, 2, 3))[:, None]
    return [(torch.cat((mean, -mean), dim=1), images)] * count


def grey_set(values, names):
    label = ClassLabel(names=["dark", "light"])
    rows = []
    for value in values:
        buffer = io.BytesIO()
        Pillow.fromarray(np.full((12, 12, 3), value, np.uint8)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({"image": rows, "label": names}, features=Features({"image": Image(), "label": label}))


@pytest.fixture
def greys(tmp_path):
    """Dark is about 60, light about 160: brightness adds 25.5 a severity, so that from 3 on the dark 50 is light."""
    train = grey_set([50, 60, 70, 150, 160, 170] * 2, [0, 0, 0, 1, 1, 1] * 2)
    test = grey_set([50, 50, 160, 160], [0, 0, 1, 1])
    return saved(tmp_path / "greys", train=train, test=test)


GREY = FeatureExtractor(dark_is_red, None, 2, 4, 1, torch.device("cpu"))


def test_figures_are_those_counted_by_hand(greys, tmp_path):
    options = {"corruptions": ["brightness", "contrast"], "c": 100.0}
    evaluation = evaluation_of(RobustnessEvaluation, greys, GREY, tmp_path / "out", **options)
    results = {result.metric: result for result in evaluate_robustness(evaluation)}
    assert results["accuracy"].value == 100
    # dark images, half of all, are wrong at 50 + 76.5, 50 + 102 and 50 + 127.5: 2 of 4 at three of five severities
    assert results["accuracy_brightness"].value == pytest.approx(70)
    assert results["accuracy_contrast"].value == 100
    assert results["mean_corruption_error"].value == pytest.approx(15)
    low, high = results["accuracy_brightness"].interval
    assert low == pytest.approx(40) and high == pytest.approx(100)  # all dark, or all light
    with open(tmp_path / "out" / "corruptions.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["corruption", "severity", "accuracy"]
    assert [float(row[2]) for row in rows[1:]] == [100, 100, 50, 50, 50] + [100] * 5


def test_errors_are_divided_by_those_of_the_baseline(greys):
    baseline = {"brightness": 60.0, "contrast": 50.0, "fog": 1.0}
    evaluation = evaluation_of(
        RobustnessEvaluation, greys, GREY, corruptions=["brightness", "contrast"], baseline=baseline, c=100.0
    )
    result = [result for result in evaluate_robustness(evaluation) if result.metric == "mean_corruption_error"][0]
    assert result.value == pytest.approx((30 / 60 + 0 / 50) / 2 * 100)
    assert "baseline" in result.title


def test_shifted_sets_are_scored_among_their_own_classes(tmp_path):
    """Greenish images pass for green where green is a class, and not in a set of red and blue alone."""
    green = images_of(["green"] * 6, ["blue"] * 6, names=["blue", "red"], seed=2)
    path = sets_of(tmp_path)
    shifted = saved(tmp_path / "shifted", test=green)
    source = {"odd": SourceConfig(shifted, "test")}
    whole = saved(tmp_path / "whole", test=images_of(["green"] * 6, ["blue"] * 6, seed=2))
    source["whole"] = SourceConfig(whole, "test")
    results = results_of(path, corruptions=[], shifted=source)
    assert results["accuracy_on_whole"].value == 0
    # nearer to blue (20, 20, 200) or to red is the same but for noise: never green, so that some are right or wrong
    assert results["accuracy_on_odd"].dataset == "odd" and "2 of the 3 classes" in results["accuracy_on_odd"].title
    assert set(results) == {"accuracy", "accuracy_on_odd", "accuracy_on_whole"}


def test_classes_are_matched_by_name_whatever_their_order(tmp_path):
    path = sets_of(tmp_path)
    turned = saved(tmp_path / "turned", test=images_of(NAMES * 3, names=["blue", "green", "red"], seed=3))
    results = results_of(path, corruptions=[], shifted={"turned": SourceConfig(turned, "test")})
    assert results["accuracy_on_turned"].value == 100


def test_names_of_classes_that_no_image_has_do_not_matter(tmp_path):
    path = sets_of(tmp_path)
    more = images_of(["red", "blue"], names=["red", "violet", "blue"], seed=3)
    results = results_of(
        path, corruptions=[], shifted={"more": SourceConfig(saved(tmp_path / "more", test=more), "test")}
    )
    assert results["accuracy_on_more"].value == 100 and "2 of the 3" in results["accuracy_on_more"].title


def test_unknown_classes_are_refused_naming_them(tmp_path):
    path = sets_of(tmp_path)
    other = images_of(["red"], ["violet"], names=["violet"])
    with pytest.raises(ValueError, match="violet.*matched by their names"):
        results_of(path, corruptions=[], shifted={"other": SourceConfig(saved(tmp_path / "o", test=other), "test")})


def test_broken_images_do_not_count(tmp_path):
    test = images_of(NAMES, ["blue", "green", "blue"], broken=(0,), seed=1)  # the wrong one is broken
    path = saved(tmp_path / "set", train=images_of(NAMES * 8, broken=(1,)), test=test)
    results = results_of(path, corruptions=["gaussian_blur"], severities=[1])
    assert results["accuracy"].value == 100 and results["accuracy_gaussian_blur"].value == 100


def test_sets_without_a_readable_image_and_lists_of_labels_are_refused(tmp_path):
    path = saved(tmp_path / "set", train=images_of(NAMES * 4), test=images_of(NAMES, broken=(0, 1, 2)))
    with pytest.raises(ValueError, match="no image of .* can be decoded"):
        results_of(path, corruptions=[])
    path = saved(
        tmp_path / "lists", train=images_of(NAMES, [["red"], ["green", "blue"], ["blue"]]), test=images_of(NAMES)
    )
    with pytest.raises(ValueError, match="lists of labels"):
        results_of(path, corruptions=[])


# ---- the transform


def encoded(seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_pixels_are_corrupted_after_the_crop_and_by_the_image():
    plain = EvalTransform(36, 32, [0.5] * 3, [0.25] * 3)
    transform = CorruptedTransform(plain, "impulse_noise", 3, 0)
    first, again, other = transform.pixels(encoded()), transform.pixels(encoded()), transform.pixels(encoded(1))
    assert first.shape == (3, 32, 32) and np.array_equal(first, again)
    changed = first != plain.pixels(encoded())
    assert changed.mean() == pytest.approx(0.09, abs=0.02)
    assert not np.array_equal(changed, other != plain.pixels(encoded(1)))
    pixels = torch.from_numpy(first)[None]
    assert torch.equal(transform.normalize(pixels), plain.normalize(pixels))


def test_every_corruption_has_features_of_its_own_in_the_cache(tmp_path):
    path = sets_of(tmp_path)
    backbone = FeatureExtractor(mean_color, None, 3, 8, 4, torch.device("cpu"), fingerprint=lambda: "colours")
    options = {"corruptions": ["contrast", "fog"], "severities": [1, 4], "cache_dir": str(tmp_path / "cache")}

    def run(seed=0):
        return list(evaluate_robustness(evaluation_of(RobustnessEvaluation, path, backbone, seed=seed, **options)))

    first = run()
    assert len(list((tmp_path / "cache").iterdir())) == 2 + 4  # training and clean images, four corruptions
    assert [result.value for result in run()] == [result.value for result in first]
    assert len(list((tmp_path / "cache").iterdir())) == 6
    run(seed=1)
    assert len(list((tmp_path / "cache").iterdir())) == 10


def test_workers_do_not_change_the_figures(tmp_path):
    path = sets_of(tmp_path)
    options = {"corruptions": ["gaussian_noise", "frost"], "severities": [5]}
    assert results_of(path, **options) == results_of(path, num_workers=2, **options)


# ---- the configuration


def test_defaults_are_those_of_the_benchmark():
    config = RobustnessEvaluation().check()
    assert config.corruptions == list(CORRUPTIONS) and len(CORRUPTIONS) == 15
    assert config.severities == [1, 2, 3, 4, 5]
    for name in config.corruptions:
        corrupt(np.zeros((3, 8, 8), np.uint8), name, 1)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["corruptions=[rain]"], "corruptions='rain' is not one of"),
        (["severities=[0]"], "use some of 1, 2, 3, 4, 5"),
        (["severities=[]"], "leaves no corrupted image"),
        (["severities=[1,1]"], "names one twice"),
        (["corruptions=[fog,fog]"], "names one twice"),
        (["baseline.fog=50"], "baseline lacks the error of .*zoom_blur"),
        (["corruptions=[fog]", "baseline.fog=0"], r"baseline.fog=0.* is not in \(0, 100\]"),
        (["corruptions=[fog]", "baseline.fog=50", "baseline.rain=50"], "baseline='rain'"),
        (["shifted.sketch.split=test"], "shifted.sketch.path is not set"),
        (["c=0"], "c=0.0 is not positive"),
    ],
)
def test_impossible_values_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides, RobustnessEvaluation)


def test_shifted_sets_and_baseline_are_given_by_key():
    config = load_config(
        None, ["shifted.sketch.path=/s", "corruptions=[fog]", "baseline.fog=81.9"], RobustnessEvaluation
    )
    assert config.shifted["sketch"].path == "/s" and config.baseline == {"fog": 81.9}
