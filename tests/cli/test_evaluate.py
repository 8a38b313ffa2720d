"""`dinov2-hf evaluate`, as a person meets it."""

import json
import logging
import os
import re

import pytest
import torch
from huggingface_hub import ModelCard

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.cli import main
from dinov2_hf.config import DINOv2RunConfig
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation import evaluators
from dinov2_hf.runs import RunFacts
from dinov2_hf.weights import export_folder

CONFIG = Dinov2Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32, layerscale_value=1.0
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An export of a network without training."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "tiny" / "export"
    transform = EvalTransform(36, 32, [0.5] * 3, [0.25] * 3)
    config = DINOv2RunConfig()
    config.data.train.path = "photographs"
    config.train.output_dir = str(folder.parent)
    return export_folder(folder, Dinov2Model(CONFIG).eval(), {}, transform, config, RunFacts())


@pytest.fixture
def knn(model, image_folder, tmp_path):
    return ["evaluate", "knn", "--model", str(model), "--data", str(image_folder), "test.split=train"] + [
        "k=[1,5]",
        "num_workers=0",
        "precision=fp32",
    ]


def fails(capsys, *arguments):
    """What a command that ends with status 2 says."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("written", ["cache", "output"])
def test_a_full_disk_ends_an_evaluation_with_one_line(knn, tmp_path, capsys, caplog, small_disk, written):
    with small_disk():
        said = fails(capsys, *knn, f"--{written}", str(tmp_path / written))
    line = said.splitlines()[-1]  # after bars of progress
    assert f"error: {tmp_path / written}/" in line and " cannot be written: " in line and "Traceback" not in said
    lost = [message for message in caplog.messages if "the results, which cannot be saved" in message]
    assert len(lost) == (written == "output") and all("k-NN accuracy" in message for message in lost)


def test_an_export_has_the_mode_that_the_umask_asks_for(model):
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in model.iterdir()} == {0o666 & ~umask}


def test_figures_are_printed_as_a_table_and_left_in_the_output_folder(knn, image_folder, tmp_path, capsys, caplog):
    (tmp_path / "copy").symlink_to(image_folder)
    with caplog.at_level(logging.INFO, "dinov2_hf"):
        main([*knn, "--output", str(tmp_path / "results"), "--test", str(tmp_path / "copy")])
    assert f"test: {tmp_path / 'copy'}: 24 images, 2 classes" in caplog.messages
    printed = capsys.readouterr().out
    # each image is its own nearest neighbour
    assert re.search(r"\| k-NN accuracy \(%\), k = 1 \| +100 \| +86\.\d+ to 100 \|", printed), printed
    report = json.loads((tmp_path / "results" / "results.json").read_text())
    assert report["protocol"] == "knn" and report["model"] == "tiny"
    assert report["settings"]["train"]["path"] == str(image_folder) and report["settings"]["k"] == [1, 5]
    assert [result["metric"] for result in report["results"]] == ["accuracy_k1", "accuracy_k5"]
    table = (tmp_path / "results" / "results.md").read_text()
    assert table.startswith("# knn: tiny") and printed.strip().splitlines()[2] in table


def test_features_are_kept_for_the_next_evaluation(knn, tmp_path, capsys):
    main([*knn, "--cache", str(tmp_path / "cache")])
    first = capsys.readouterr().out
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*.safetensors")}
    assert len(shards) == 1  # references and queries are the same images
    main([*knn, "--cache", str(tmp_path / "cache")])
    assert capsys.readouterr().out.split("\n\n")[0] == first.split("\n\n")[0]
    assert shards == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*.safetensors")}


def test_model_card_takes_the_figures_and_replaces_those_of_an_earlier_time(knn, model, tmp_path):
    for _ in range(2):
        main([*knn, "--output", str(tmp_path / "results"), "--card", str(model)])
    card = ModelCard.load(model / "README.md")
    assert [(entry.metric_type, entry.metric_name) for entry in card.data.eval_results] == [
        ("accuracy", "k-NN accuracy (%), k = 1"),
        ("accuracy", "k-NN accuracy (%), k = 5"),
    ]
    assert card.data.eval_results[0].metric_value == 100.0
    assert str(tmp_path) not in (model / "README.md").read_text()


def test_every_evaluator_is_listed_with_its_keys(capsys):
    main(["evaluate", "list"])
    listed = capsys.readouterr().out
    for name, evaluator in evaluators().items():
        assert f"{name} " in listed and evaluator.title in listed
        main(["evaluate", name, "--keys"])
        told = capsys.readouterr().out
        first = told.index("train.path=")
        explained = told[first:].strip().splitlines()
        keys = [line for line in explained if not line.startswith(" ")]
        assert any(line.startswith("test.split=") for line in keys)
        for key, text in zip(explained, explained[1:]):  # every key has its explanation below it
            assert key.startswith(" ") or text.startswith("    "), (name, key)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evaluate", "kn"], "'kn' is not an evaluator; choose one of copy_detection, "),
        (["evaluate", "knn", "--data", "x"], "--model is missing"),
        (
            ["evaluate", "knn", "--model", "nowhere/else/here", "--data", "x", "precision=fp32"],
            "model=nowhere/else/here",
        ),
        (["evaluate", "knn", "kk=[1]"], "kk in the command line is not a config key; did you mean k?"),
        (["evaluate", "knn", "k=[0]"], "k=0 is below 1; use 1 or more"),
        (["evaluate", "knn", "--model", "x", "--card", "y"], "--card takes its metrics from --output; give both"),
    ],
)
def test_what_a_user_can_mend_is_said_in_one_line(capsys, arguments, message):
    assert message in fails(capsys, *arguments).splitlines()[-1]


def test_set_that_is_not_there_is_named(knn, capsys):
    assert "/nothing/here does not exist; give a folder of images" in fails(capsys, *knn, "test.path=/nothing/here")


def test_crop_that_the_patch_does_not_divide_is_refused(knn, capsys):
    assert "crop_size=33 is not a multiple of model.patch_size=8; use 32 or 40" in fails(capsys, *knn, "crop_size=33")
