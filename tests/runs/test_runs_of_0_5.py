"""Runs of dinov2_hf 0.5 go on from their checkpoints to what 0.5 itself exported at their end."""

import tarfile
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dinov2_hf.runs import RunFolder
from dinov2_hf.train import Trainer, build_accelerator
from dinov2_hf.weights import open_weights

DATA = Path(__file__).parent / "data" / "runs_0_5.tar.xz"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images and runs as 0.5 left them, with the checkpoint after 2 of 4 updates."""
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dinov2_hf.train.accelerator._available_cores", lambda: 1)
    yield tmp_path / "runs"
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name, term", [("registers", "loss/koleo"), ("features", "loss/cls_cosine")])
def test_run_of_0_5_resumes_and_ends_as_it_did_there(folder, name, term):
    run = RunFolder(folder / name)
    config, expected = run.read_config(), load_file(run.export() / "model.safetensors")
    (checkpoint,) = run.find_checkpoints()
    weights = open_weights(str(checkpoint))
    assert weights.step == 2 and weights.build().width == 8
    losses = {line["step"]: line["loss"] for line in run.read_metrics()}
    trainer = Trainer.from_config(config, build_accelerator(config.train), resume="auto")
    assert trainer.step == 2
    found = trainer.run()[""]["backbone"].state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-4, msg=key)
    lines = run.read_metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["loss"] for line in lines] == pytest.approx([losses[step] for step in (1, 2, 3, 4)], abs=1e-4)
    assert all(term in line and term.removeprefix("loss/") not in line for line in lines)
