"""Training and evaluation from Python on several processes."""

import re

import pytest

from dinov2_hf import evaluate, open_run

from ..distributed.conftest import ROOT, launch  # noqa: F401 - a fixture


@pytest.mark.slow
def test_each_process_gets_the_run_and_the_same_report(launch, image_folder, tmp_path):  # noqa: F811
    script = ROOT / "tests" / "api" / "on_processes.py"
    text = launch(2, script, image_folder, tmp_path / "run", environment={"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"})
    first, second = re.findall(r"^rank \d: (.*)$", text, re.MULTILINE)
    assert first == second
    run = open_run(tmp_path / "run")
    assert repr(run) in first and run.exports and "2 updates" in repr(run)
    keys = {"test.split": "train", "k": [3], "crop_size": 32, "num_workers": 0, "precision": "fp32"}
    assert str(evaluate(run.folder, "knn", image_folder, keys=keys).metrics) in first
