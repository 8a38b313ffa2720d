"""What the comparison of two recordings of `benchmarks/seeded_runs.py` counts as equal."""

import copy
import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "seeded_runs.py"


@pytest.fixture
def recording():
    run = {
        "metrics": [{"step": 1, "loss": 2.5, "dino_global": 1.5, "tiny.ibot": 1.0, "teacher_temp": 0.04}],
        "configs": {"export/config.json": {"hidden_size": 32}},
        "exports": {"export/model.safetensors": {"embeddings.cls_token": "a1", "layernorm.weight": "b2"}},
        "checkpoints": {"step-00000001": {"model.student.x": "c3", "model.teacher.x": "d4"}},
        "weights": {"step-00000001": "e5"},
    }
    return {"settings": {"torch": "2"}, "runs": {"sinkhorn": run}}


@pytest.fixture
def compare(recording, tmp_path, monkeypatch, capsys):
    """Compares the recording with what `change` makes of its run; gives the exit status and what is printed."""

    def run(change):
        other = copy.deepcopy(recording)
        change(other["runs"]["sinkhorn"])
        for name, value in (("a", recording), ("b", other)):
            (tmp_path / name).write_text(json.dumps(value))
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--compare", str(tmp_path / "a"), str(tmp_path / "b")])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return int(ended.value.code), capsys.readouterr().out

    return run


def rename(run):
    line = run["metrics"][0]
    for name in ("dino_global", "tiny.ibot"):
        line[f"loss/{name}"] = line.pop(name)


def rename_tensors(run):
    run["checkpoints"]["step-00000001"] = {"model.student.y": "c3", "model.teacher.y": "d4"}
    run["weights"] = {"step-00000001": "f6"}


EQUAL = {
    "the same": (lambda run: None, "sinkhorn: equal"),
    "terms under loss/": (rename, "sinkhorn: equal"),
    "a metric that was dropped": (lambda run: run["metrics"][0].pop("teacher_temp"), "only in A: teacher_temp"),
    "a new metric": (lambda run: run["metrics"][0].update({"gram": 1.0}), "only in B: gram"),
    "renamed tensors of a checkpoint": (rename_tensors, "the same tensors under other names"),
}
DIFFERENT = {
    "a number": (lambda run: run["metrics"][0].update(loss=2.500001), "update 1: loss 2.5 and 2.500001"),
    "a number under a new name": (
        lambda run: (rename(run), run["metrics"][0].update({"loss/tiny.ibot": 2.0})),
        "loss/tiny.ibot 1.0 and 2.0",
    ),
    "a term that was dropped": (lambda run: run["metrics"][0].pop("tiny.ibot"), "loss/tiny.ibot is missing in B"),
    "a line of metrics": (lambda run: run["metrics"].append({"step": 2}), "1 and 2 lines"),
    "an exported config": (
        lambda run: run["configs"]["export/config.json"].update(image_size=32),
        "export/config.json: 1 of 2 differ: image_size",
    ),
    "an exported tensor": (
        lambda run: run["exports"]["export/model.safetensors"].update({"layernorm.weight": "c"}),
        "export/model.safetensors: 1 of 2 differ: layernorm.weight",
    ),
    "a file of an export": (lambda run: run["exports"].clear(), "export/model.safetensors is only in A"),
    "a checkpointed tensor": (
        lambda run: run["checkpoints"]["step-00000001"].update({"model.teacher.x": "c"}),
        "step-00000001: 1 of 2 differ: model.teacher.x",
    ),
    "a checkpoint": (lambda run: run["checkpoints"].update(more={}), "checkpoints: step-00000001 and "),
    "the digest of the weights": (lambda run: run["weights"].update({"step-00000001": "f6"}), "provenance.json"),
    "a run that failed": (lambda run: run.update(failed=["no space"]), "failed in B"),
}


@pytest.mark.parametrize("what", EQUAL)
def test_recordings_are_equal_apart_from_names(what, compare):
    change, printed = EQUAL[what]
    status, output = compare(change)
    assert status == 0
    assert printed in output


@pytest.mark.parametrize("what", DIFFERENT)
def test_each_difference_is_found_and_named(what, compare):
    change, printed = DIFFERENT[what]
    status, output = compare(change)
    assert status == 1
    assert printed in output
