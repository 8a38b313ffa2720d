"""A distillation of several students: each can be inspected and exported by its name."""

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dinov2_hf import Dinov2Config
from dinov2_hf.cli import main
from dinov2_hf.config import load_config
from dinov2_hf.train import Trainer, build_accelerator

WIDE = ["preset=tiny", "hidden_size=48", "num_hidden_layers=1", "num_attention_heads=3", "patch_size=8"]


@pytest.fixture
def distillation(run, tiny_overrides, tmp_path, monkeypatch):
    monkeypatch.setattr("dinov2_hf.train.accelerator._available_cores", lambda: 1)
    overrides = [*tiny_overrides, f"distill.teacher={run.folder}", f"train.output_dir={tmp_path / 'distilled'}"]
    overrides += [f"students.wide.{setting}" for setting in [*WIDE, "num_register_tokens=2", "drop_path_rate=0.1"]]
    config = load_config(
        None, [*overrides, "model.drop_path_rate=0.1", "train.epochs=1", "objective=distill_prototypes"]
    )
    trainer = Trainer.from_config(config, build_accelerator(config.train))
    trainer.run()
    yield trainer
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("student", ["", "wide"])
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_every_student_and_its_average_are_exported(distillation, tmp_path, student, network):
    output = tmp_path / "export"
    options = ["--student", student] * bool(student) + ["--network", network]
    main(["export", str(distillation.folder), str(output), *options])
    trained = distillation.objective.networks[student]
    networks = trained.average if network == "teacher" else trained.student
    found, expected = load_file(output / "model.safetensors"), networks["backbone"].state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert Dinov2Config.from_pretrained(output).hidden_size == (48 if student else 32)
    heads = load_file(output / "heads.safetensors")
    assert torch.equal(heads["ibot_head.last_layer.weight_v"], networks["ibot_head"].last_layer.weight_v)


def test_inspect_names_the_students(distillation, capsys):
    main(["inspect", str(distillation.folder)])
    report = capsys.readouterr().out
    assert "checkpoint of a run, distilled without labels from" in report
    assert "further students  wide (--student NAME)" in report
    assert "examples/distill.py" in report and "wide.loss" not in report


def test_student_that_is_not_there_is_refused_with_those_that_are(distillation, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(distillation.folder), str(tmp_path / "export"), "--student", "wider"])
    assert "has no student 'wider'; its further students: wide" in capsys.readouterr().err
