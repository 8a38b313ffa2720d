import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow

from dinov2_hf.config import SourceConfig, load_config
from dinov2_hf.config.evaluations import CopyDetectionEvaluation
from dinov2_hf.config.evaluations.retrieval import COPIES
from dinov2_hf.data.decode import open_image
from dinov2_hf.evaluation import evaluate_copy_detection
from dinov2_hf.evaluation.descriptors import PlainImages
from dinov2_hf.evaluation.edited_copies import Copies, make_copy
from dinov2_hf.features import FeatureExtractor

from .coloured import COLORS, evaluation_of, images_of, saved

NAMES = list(COLORS)


def results_of(evaluate, *arguments, **options):
    return {result.metric: result for result in evaluate(evaluation_of(*arguments, **options))}


def encoded(pixels):
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def photograph(seed, size=(60, 80)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Pillow.fromarray(coarse).resize(size[::-1], Pillow.Resampling.BICUBIC)


def copy_sets(tmp_path, **more):
    """Four originals, and five distractors, none like another."""
    splits = {}
    for name, seeds in {"test": range(4), "train": range(10, 15)}.items():
        rows = {"image": [encoded(np.asarray(photograph(seed))) for seed in seeds], "label": [str(s) for s in seeds]}
        splits[name] = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Value("string")}))
    return saved(tmp_path / "copies", **splits, **more)


def layout(images, count):
    """What is where, 4 x 4, as CLS."""
    small = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
    return [(small, images + 4)] * count


LAYOUT = FeatureExtractor(layout, None, 48, 4, 1, torch.device("cpu"))


def test_originals_of_mild_copies_are_found_among_distractors(tmp_path):
    path = copy_sets(tmp_path)
    options = {"descriptor": "cls", "copies": ["jpeg", "flip"]}
    results = results_of(evaluate_copy_detection, CopyDetectionEvaluation, path, LAYOUT, **options)
    assert list(results) == [
        "mean_average_precision_jpeg",
        "micro_average_precision_jpeg",
        "mean_average_precision_flip",
        "micro_average_precision_flip",
    ]
    assert results["mean_average_precision_jpeg"].value == 100
    assert results["micro_average_precision_jpeg"].value == 100
    assert results["mean_average_precision_flip"].value < 100  # layout is what a flip changes
    assert results == results_of(
        evaluate_copy_detection, CopyDetectionEvaluation, path, LAYOUT, num_workers=2, **options
    )


def test_copies_of_a_user_are_found_by_the_label_of_their_original(tmp_path):
    path = copy_sets(tmp_path)
    options = {"descriptor": "cls", "copies": []}
    options["train"] = SourceConfig(path, "test", label_column="label")
    copies = Dataset.from_dict(
        {"image": [encoded(np.asarray(photograph(s).rotate(2))) for s in (3, 1, 99)], "label": ["3", "1", "none"]},
        features=Features({"image": Image(), "label": Value("string")}),
    )
    options["test"] = SourceConfig(saved(tmp_path / "user", test=copies), "test", label_column="label")
    results = results_of(evaluate_copy_detection, CopyDetectionEvaluation, None, LAYOUT, **options)
    assert set(results) == {"mean_average_precision", "micro_average_precision"}
    assert results["mean_average_precision"].value == 100
    assert "2 of 3 queries" in results["mean_average_precision"].title


def test_originals_among_the_distractors_are_refused(tmp_path):
    path = copy_sets(tmp_path)
    same = SourceConfig(path, "test")
    with pytest.raises(ValueError, match="have to be other images"):
        results_of(evaluate_copy_detection, CopyDetectionEvaluation, path, LAYOUT, train=same)


def test_copies_can_be_made_without_distractors_and_whitened(tmp_path):
    path = copy_sets(tmp_path)
    options = {
        "train": SourceConfig(),
        "copies": ["jpeg"],
        "whitening": SourceConfig(path, "train"),
        "whitening_dim": 3,
    }
    results = results_of(evaluate_copy_detection, CopyDetectionEvaluation, path, LAYOUT, **options)
    assert results["mean_average_precision_jpeg"].value == 100


@pytest.mark.parametrize("kind", COPIES)
def test_copies_differ_from_the_original_and_are_made_again_the_same(kind, tmp_path):
    images = PlainImages(SourceConfig(copy_sets(tmp_path), "test"), "test")
    first, again, other = (Copies(images, kind, seed, 3) for seed in (0, 0, 1))
    data = first.read(1)[0]
    assert data == again.read(1)[0] and data != images.read(1)[0]
    assert first.fingerprint == again.fingerprint != other.fingerprint
    if kind not in ("flip", "jpeg"):  # which leave nothing to chance
        assert data != other.read(1)[0]
    grey, _ = open_image(Copies(images, kind, 0, 1).read(1)[0], 1).decode()
    assert len(grey) == 1
    for size in ((1, 1), (3, 40)):
        assert min(make_copy(photograph(0, size), kind, np.random.default_rng(0)).size) >= 1


def test_crops_have_a_fifth_of_the_area_and_flips_are_mirrored():
    picture, rng = photograph(0, (100, 200)), np.random.default_rng(0)
    width, height = make_copy(picture, "crop", rng).size
    assert width / height == pytest.approx(2, rel=0.03) and width * height == pytest.approx(0.2 * 20000, rel=0.03)
    assert np.array_equal(np.asarray(make_copy(picture, "flip", rng)), np.asarray(picture)[:, ::-1])


def test_models_of_other_channels_have_no_copies(tmp_path):
    images = PlainImages(SourceConfig(copy_sets(tmp_path), "test"), "test")
    with pytest.raises(ValueError, match="1 or 3 channels, and the model takes 4"):
        Copies(images, "flip", 0, 4)


def test_broken_originals_have_no_copies(tmp_path):
    train = images_of(NAMES, noise=0)
    path = saved(tmp_path, train=train, test=images_of(["red", "blue", "green"], broken=(1,), seed=1))
    results = results_of(evaluate_copy_detection, CopyDetectionEvaluation, path, descriptor="cls", copies=["flip"])
    assert results["mean_average_precision_flip"].value > 0
    assert "queries" not in results["mean_average_precision_flip"].title


@pytest.mark.parametrize("value, message", [("paint", "copies='paint' is not one of strong"), ("flip,flip", "twice")])
def test_impossible_copies_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, [f"copies=[{value}]"], CopyDetectionEvaluation)


# ---- Copydays


@pytest.fixture
def copydays(tmp_path):
    """Three originals and copies of two of them in the folders of the published archives."""
    folder = tmp_path / "copydays"
    for subset in ("original", "strong", "jpegqual/3", "crops/10"):
        (folder / subset).mkdir(parents=True)
    for seed in range(3):
        picture = photograph(seed)
        picture.save(folder / "original" / f"20{seed:02}00.jpg", quality=95)
        picture.save(folder / "jpegqual/3" / f"20{seed:02}00.jpg", quality=3)
    for seed, number in ((0, 1), (0, 2), (2, 1)):
        photograph(seed).rotate(2 * number).save(folder / "strong" / f"20{seed:02}0{number}.jpg", quality=80)
    return str(folder)


def test_subsets_of_copydays_are_found_by_the_first_four_letters_of_their_names(copydays, tmp_path):
    options = {"descriptor": "cls", "subsets": ["strong", "jpegqual/3"], "test": SourceConfig(copydays)}
    options["train"] = SourceConfig(copy_sets(tmp_path), "train")  # distractors
    results = results_of(evaluate_copy_detection, CopyDetectionEvaluation, None, LAYOUT, **options)
    assert {name: round(result.value, 6) for name, result in results.items()} == {
        "mean_average_precision_strong": 100,
        "micro_average_precision_strong": 100,
        "mean_average_precision_jpegqual_3": 100,
        "micro_average_precision_jpegqual_3": 100,
    }
    assert "queries" not in results["mean_average_precision_strong"].title


def test_copies_of_copydays_without_an_original_are_left_out_and_counted(copydays, tmp_path):
    (tmp_path / "copydays" / "original" / "200000.jpg").unlink()
    options = {"descriptor": "cls", "subsets": ["strong"], "test": SourceConfig(copydays), "train": SourceConfig()}
    results = results_of(evaluate_copy_detection, CopyDetectionEvaluation, None, LAYOUT, **options)
    assert results["mean_average_precision_strong"].title.endswith("1 of 3 queries")


def test_folders_of_copydays_that_are_missing_are_named(copydays, tmp_path):
    options = {"subsets": ["crops/10"], "test": SourceConfig(copydays), "train": SourceConfig()}
    with pytest.raises(FileNotFoundError, match="crops/10 has no images; give the folder in which the archives"):
        results_of(evaluate_copy_detection, CopyDetectionEvaluation, None, LAYOUT, **options)
    options["test"] = SourceConfig(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="original has no images"):
        results_of(evaluate_copy_detection, CopyDetectionEvaluation, None, LAYOUT, **options)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["subsets=[weak]"], "subsets='weak' is not one of Copydays; use strong, jpegqual/N or crops/N"),
        (["subsets=[strong]", "copies=[flip]"], "are not made where subsets="),
        (["subsets=[strong]", "train.path=/d", "test.path=/d"], "have to be other images than the originals"),
    ],
)
def test_impossible_subsets_are_refused(overrides, message):
    with pytest.raises(ValueError, match="subsets=|originals") as caught:
        load_config(None, overrides, CopyDetectionEvaluation)
    assert message in str(caught.value)
