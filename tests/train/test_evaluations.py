"""Evaluations during a run, as the command line sets them."""

import json
from pathlib import Path

import pytest
import torch

from dinov2_hf.cli import main
from dinov2_hf.config import load_config
from dinov2_hf.config.evaluations import KnnEvaluation as Knn
from dinov2_hf.evaluation import evaluations_of, load_evaluations
from dinov2_hf.runs import read_metrics
from dinov2_hf.train import Callback, build_accelerator

from .running import train


@pytest.fixture
def linear(image_folder, tmp_path):
    """The file of a linear probe of seconds."""
    path = tmp_path / "linear.yaml"
    path.write_text(
        f"train: {{path: {image_folder}}}\ntest: {{path: {image_folder}, split: train}}\n"
        "learning_rates: [0.1]\nblocks: [1, 2]\niterations: 5\nglobal_batch: 8\nnum_workers: 0\n"
    )
    return path


def test_file_of_an_evaluation_is_a_path_a_path_beside_the_config_file_or_a_recipe(tmp_path, linear, monkeypatch):
    text = "evaluations: {probe: {protocol: linear, config: linear.yaml}, knn: {protocol: knn, config: knn}}\n"
    (tmp_path / "run.yaml").write_text(text + "data: {train: {path: /images}}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    given = {}
    for name, keys in (("beside", []), ("keys", ["evaluations.probe.config=../linear.yaml"])):
        given[name] = load_evaluations(load_config("../run.yaml", keys))
    assert given["beside"] == given["keys"]
    assert given["keys"]["probe"].learning_rates == [0.1] and given["keys"]["knn"].k == load_config("knn", [], Knn).k
    with pytest.raises(FileNotFoundError, match="'nowhere.yaml' does not exist"):
        load_evaluations(load_config("../run.yaml", ["evaluations.probe.config=nowhere.yaml"]))


def test_figures_of_every_evaluation_are_logged_under_its_name_on_its_own_cadence(tiny_config, image_folder, linear):
    config = tiny_config(
        f"knn.reference.path={image_folder}",
        f"knn.query.path={image_folder}",
        "knn.query.split=train",
        "knn.epochs=1",
        "knn.resize_size=40",
        "knn.crop_size=32",
        "evaluations.probe.protocol=linear",
        f"evaluations.probe.config={linear}",
        "evaluations.probe.epochs=2",
    )
    accelerator = build_accelerator(config.train)
    train(config, accelerator=accelerator, callbacks=evaluations_of(config, accelerator))
    lines = read_metrics(Path(config.train.output_dir))
    assert [line["step"] for line in lines if "knn_accuracy" in line] == [0, 2, 4, 6]
    probed = [line for line in lines if "probe.accuracy" in line]
    assert [line["step"] for line in probed] == [0, 4, 6]
    assert {"probe.accuracy_1_cls", "probe.accuracy_2_cls", "probe.accuracy_2_cls_mean"} <= probed[0].keys()
    assert all(0 <= line["probe.accuracy"] <= 100 for line in probed)


def test_student_is_measured_beside_its_average_where_asked(tiny_config, image_folder):
    """At first both are equal; an average that stands still then stays where it is."""
    config = tiny_config(
        f"knn.reference.path={image_folder}",
        f"knn.query.path={image_folder}",
        *("knn.query.split=train", "knn.resize_size=40", "knn.crop_size=32", "knn.epochs=1", "knn.student=true"),
        *("teacher.momentum=1", "optim.warmup_epochs=0", "optim.base_lr=10"),
    )
    accelerator = build_accelerator(config.train)
    callbacks = evaluations_of(config, accelerator)
    seen = []

    def cls(features):
        seen.append(features(torch.ones(1, 3, 32, 32))[-1].cls)
        return {}

    trainer = train(config, accelerator=accelerator, callbacks=[*callbacks, Callback(1, cls, student=True)])
    lines = [line for line in read_metrics(Path(config.train.output_dir)) if "knn_accuracy" in line]
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert lines[0]["knn_accuracy"] == lines[0]["knn_accuracy/student"]
    assert {line["knn_accuracy"] for line in lines} == {lines[0]["knn_accuracy"]}
    assert {line["knn_accuracy/student"] for line in lines} != {lines[0]["knn_accuracy"]}
    averages, students = seen[::2], seen[1::2]
    assert torch.equal(averages[-1], averages[0]) and torch.equal(students[0], averages[0])
    trainer.objective.eval()
    with torch.no_grad():
        last = trainer.objective.student["backbone"](torch.ones(1, 3, 32, 32)).last_hidden_state[:, 0]
    torch.testing.assert_close(students[-1], last)
    assert not torch.allclose(last, averages[0], atol=1e-3)
    assert not any("/student" in name for line in lines for name in line if not name.startswith("knn_accuracy"))


def test_an_evaluation_in_the_run_gives_what_the_command_gives_for_its_export(
    tiny_config, image_folder, linear, tmp_path
):

    config = tiny_config("evaluations.probe.protocol=linear", f"evaluations.probe.config={linear}")
    accelerator = build_accelerator(config.train)
    trainer = train(config, accelerator=accelerator, callbacks=evaluations_of(config, accelerator))
    last = read_metrics(Path(config.train.output_dir))[-1]
    main(
        [
            "evaluate",
            "linear",
            "--config",
            str(linear),
            "--model",
            str(trainer.folder),
            "precision=fp32",
            f"output_dir={tmp_path / 'probe'}",
        ]
    )
    report = json.loads((tmp_path / "probe" / "results.json").read_text())
    for result in report["results"]:
        assert last[f"probe.{result['metric']}"] == pytest.approx(result["value"])


def test_evaluator_that_does_not_exist_is_refused_before_the_run(tiny_config, linear):
    config = tiny_config("evaluations.probe.protocol=liner", f"evaluations.probe.config={linear}")
    with pytest.raises(ValueError, match="evaluations.probe.protocol='liner' is not an evaluator; .*linear"):
        evaluations_of(config, build_accelerator(config.train))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["evaluations.probe.protocol=linear"], "evaluations.probe.config is not set"),
        (
            ["evaluations.probe.config=a.yaml", "evaluations.probe.epochs=0"],
            "evaluations.probe.epochs=0.0 is not positive",
        ),
        (["evaluations.probe.file=a.yaml"], "evaluations.probe.file.*did you mean evaluations.probe"),
        (["evaluations.1st.config=a.yaml"], "evaluations has one named '1st'"),
    ],
)
def test_impossible_settings_are_refused(tiny_overrides, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, [*tiny_overrides, *overrides])
