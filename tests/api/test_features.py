"""Features and evaluation from Python."""

import os

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from PIL import Image as Pillow
from transformers import AutoModel

import dinov2_hf.features
from dinov2_hf import evaluate, extract_features, load_backbone
from dinov2_hf.cli import main

from .test_training import as_dataset, files_in


@pytest.fixture(scope="module")
def expected(trained, image_folder):
    """Features of the photographs, in the order of their paths, one by one."""
    backbone = trained.backbone()
    pixels = [torch.from_numpy(backbone.transform.pixels(file.read_bytes()).copy()) for file in files_in(image_folder)]
    found = [backbone.features(backbone.transform.normalize(image[None]), 1)[0] for image in pixels]
    return torch.cat([cls for cls, _ in found]), torch.cat([patches for _, patches in found])


MODELS = {
    "a run": lambda run: run.folder,
    "an export": lambda run: str(run.export()),
    "a stock model": lambda run: AutoModel.from_pretrained(run.export()),
    "a backbone": lambda run: dinov2_hf.Dinov2Model.from_pretrained(run.export()),
    "a loaded backbone": lambda run: run.backbone(device="cpu"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_each_kind_of_model_gives_the_features_of_the_run(kind, trained, image_folder, expected):
    found = extract_features(MODELS[kind](trained), image_folder, parts=("cls", "patches"), image_size=32, batch_size=7)
    torch.testing.assert_close(found["cls"], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["patches"], expected[1], rtol=1e-4, atol=1e-4)
    assert found.parts["cls"].shape == (24, 1, 32) and len(found) == 24 and not found.broken
    assert found.names == [str(file) for file in files_in(image_folder)]


def arrays(folder):
    return [np.asarray(Pillow.open(file)) for file in files_in(folder)]


IMAGES = {
    "a dataset": as_dataset,
    "paths": files_in,
    "pictures": lambda folder: [Pillow.open(file) for file in files_in(folder)],
    "arrays": arrays,
    "tensors": lambda folder: [torch.from_numpy(array.copy()) for array in arrays(folder)],
    "a generator": lambda folder: (file.read_bytes() for file in files_in(folder)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_each_kind_of_images_gives_the_features_of_the_folder(kind, trained, image_folder, expected):
    found = extract_features(trained.export(), IMAGES[kind](image_folder))
    # the stored photographs are decoded by simplejpeg, and by Pillow where pictures are handed in: one grey value apart
    decoded = kind in ("pictures", "arrays", "tensors")
    torch.testing.assert_close(found["cls"], expected[0], rtol=0, atol=0.1 if decoded else 1e-4)
    named = kind in ("paths", "a dataset")
    names = [str(file) for file in files_in(image_folder)] if named else [f"image {n} of images" for n in range(24)]
    assert found.names == names


def test_images_that_cannot_be_decoded_are_left_out_and_listed(trained, image_folder, tmp_path):
    files = [*files_in(image_folder)[:2], tmp_path / "missing.jpg", None]
    found = extract_features(trained.export(), files)
    assert found.index.tolist() == [0, 1] and found["cls"].shape == (2, 32)
    assert {item.name for item in found.broken} == {str(tmp_path / "missing.jpg"), "image 3 of images"}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda model: extract_features(model, 7), TypeError, "images is an object of the type int"),
        (lambda model: extract_features(model, []), ValueError, "images has no images"),
        (lambda model: extract_features(model, [7]), ValueError, "image 0 of images is an object of the type int"),
        (lambda model: extract_features(model, ["x"], image_size=33), ValueError, "image_size=33 is not a multiple"),
        (lambda model: extract_features("nowhere/at/all", ["x"]), FileNotFoundError, "model=nowhere/at/all"),
        (lambda model: load_backbone(model, device="nonsense"), ValueError, "device=nonsense cannot be used"),
    ],
)
def test_what_a_caller_can_fix_is_said_in_one_line(call, error, message, trained):
    with pytest.raises(error, match=message) as caught:
        call(str(trained.export()))
    assert "\n" not in str(caught.value)


def test_features_leave_generators_and_environment_as_they_were(trained, image_folder):
    before = torch.get_rng_state(), dict(os.environ), torch.get_num_threads()
    extract_features(trained.export(), image_folder, device="cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (dict(os.environ), torch.get_num_threads()) == before[1:]


def test_name_of_0_5_still_works():
    with pytest.warns(DeprecationWarning, match="is called gather_features now"):
        assert dinov2_hf.features.extract_features is dinov2_hf.features.gather_features
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dinov2_hf.features.nothing  # noqa: B018


KNN = {"k": [3], "crop_size": 32, "resize_size": 32, "num_workers": 0, "precision": "fp32"}


def test_evaluation_gives_the_numbers_of_the_command(trained, image_folder, tmp_path, capsys):
    report = evaluate(trained.folder, "knn", image_folder, keys=KNN | {"test.split": "train"}, output_dir=tmp_path)
    texts = [f"{key}={value}" for key, value in KNN.items()]
    main(["evaluate", "knn", "--model", str(trained.folder), "--data", str(image_folder), "test.split=train", *texts])
    assert report.table() in capsys.readouterr().out
    (value,) = (value for name, value in report.metrics.items() if name == "accuracy_k3")
    assert 0 <= value <= 100 and (tmp_path / "results.json").is_file()
    assert trained.evaluate("knn", image_folder, keys=KNN | {"test.split": "train"}).metrics == report.metrics


def test_datasets_are_evaluated_like_their_files(trained, image_folder):
    expected = evaluate(trained.folder, "knn", image_folder, keys=KNN | {"test.split": "train"}).metrics
    data = as_dataset(image_folder)
    assert evaluate(trained.folder, "knn", data, data, keys=KNN).metrics == expected
    both = DatasetDict({"train": data, "validation": data})
    assert evaluate(trained.folder, "knn", both, keys=KNN).metrics == expected


@pytest.mark.parametrize(
    "data, keys, message",
    [
        ("dataset", {}, "data is a datasets.Dataset, which has one split; give the images to evaluate on as test"),
        ("both", {"test.split": "test"}, "split='test' is not in memory:test; it has train, validation"),
        ("no labels", {}, "memory:train .*lacks a column of the type ClassLabel"),
        ("list", {}, "memory:train is an object of the type list, which has no columns; give a datasets.Dataset"),
        ("dataset", {"kk": 3}, "kk .* is not a config key; did you mean k"),
    ],
)
def test_sets_that_cannot_be_evaluated_are_refused(data, keys, message, trained, image_folder):
    dataset = as_dataset(image_folder)
    sets = {
        "dataset": (dataset, None),
        "both": (DatasetDict({"train": dataset, "validation": dataset}), None),
        "no labels": (dataset.remove_columns("label"),) * 2,
        "list": (files_in(image_folder),) * 2,
    }
    with pytest.raises(ValueError, match=message):
        evaluate(trained.export(), "knn", *sets[data], keys=KNN | keys)
