"""A finished run, the same for all tests here."""

import pytest
import torch
from accelerate.state import AcceleratorState

from dinov2_hf.config import load_config
from dinov2_hf.train import Trainer, build_accelerator


@pytest.fixture
def run(runs, tiny_overrides, tmp_path_factory, monkeypatch):
    """Six updates, checkpoints at 4 and 6, student and teacher with other weights. To be read only."""
    if not runs:
        monkeypatch.setattr("dinov2_hf.train.accelerator._available_cores", lambda: 1)
        folder = tmp_path_factory.mktemp("run")
        colors = ["colors.mean=[0.5,0.4,0.3]", "colors.std=[0.2,0.3,0.4]"]
        config = load_config(None, [*tiny_overrides, *colors, f"train.output_dir={folder}"])
        trainer = Trainer.from_config(config, build_accelerator(config.train))
        trainer.run()
        AcceleratorState._reset_state(reset_partial_state=True)
        state = trainer.objective.state_dict()
        moved = (state["student.backbone.layernorm.weight"], state["teacher.backbone.layernorm.weight"])
        assert trainer.step == 6 and not torch.equal(*moved)
        runs["tiny"] = trainer
    return runs["tiny"]


@pytest.fixture(scope="session")
def runs():
    return {}
