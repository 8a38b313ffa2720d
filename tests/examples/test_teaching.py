"""The examples that teach, as a user runs them, with small settings."""

import ast
import runpy
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from ..reader import SMALL
from ..registries import importing_from

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = ("pretrain", "distill")
TEACHING = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in COMMANDS)
LENGTH = [key for key in SMALL if key.startswith(("train.", "data.", "optim."))]
HEAD = [key for key in SMALL if key.startswith("dino.")]


@pytest.fixture
def run_example(tmp_path, monkeypatch, capsys):
    """Runs an example in an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with importing_from(EXAMPLES):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", TEACHING)
def test_example_is_short_and_says_what_it_shows_and_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert 30 <= len(text.splitlines()) <= 100
    said = ast.get_docstring(ast.parse(text))
    assert f"    python examples/{name}.py" in said and ("minute" in said or "seconds" in said)


def test_training_loop_shows_its_updates(run_example, small_set):
    shown = run_example("training_loop", "--data", small_set, "--updates", 2, *SMALL[:-5], "train.batch_size=4")
    assert "global crops [8, 3, 32, 32], masks [8, 16]" in shown
    assert shown.count("update ") == 2 and "dino_global" in shown and "effective rank" in shown


@pytest.mark.slow
def test_own_dataset_trains_on_objects_of_python(run_example):
    shown = run_example("own_dataset", *SMALL)
    assert "of 3068 photographs" in shown
    for name in ("shoes_and_hats", "gradients"):
        assert Path(f"runs/own_dataset/{name}/export/model.safetensors").is_file() and f"{name}: loss" in shown


@pytest.mark.slow
def test_own_term_is_in_the_loss(run_example, small_set):
    shown = run_example("own_term", "--data", small_set, *SMALL)
    assert "without the term" in shown and "with the term" in shown and shown.count("loss/spread") == 2


@pytest.mark.slow
def test_own_objective_is_trained_and_exported(run_example, small_set):
    shown = run_example("own_objective", "--data", small_set, *LENGTH)
    assert "loss/contrast" in shown and Path("runs/own_objective/export/config.json").is_file()


@pytest.mark.slow
def test_own_backbone_is_trained_and_gives_features(run_example, small_set):
    shown = run_example("own_backbone", "--data", small_set, *LENGTH, *HEAD, "model.width=16")
    assert "CLS [40, 16], patches [40, 16, 8, 8]" in shown


@pytest.mark.slow
def test_features_find_neighbours_and_the_accuracy(run_example, small_set, small_run):
    shown = run_example("features", "--model", small_run.folder, "--data", small_set)
    assert "CLS [12, 32]" in shown and "its neighbours are" in shown and "k-NN accuracy" in shown


@pytest.mark.slow
def test_fine_tuned_classifier_is_read_by_stock_transformers(run_example, small_set, small_run):
    shown = run_example("finetune", "--model", small_run.export(), "--data", small_set, "--epochs", 1)
    assert "accuracy on 12 photographs" in shown and "Dinov2" in shown and "ForImageClassification" in shown


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(run_example, small_set, monkeypatch):
    for name, value in {"DATA": small_set, "OUTPUT": "runs/notebook", "KEYS": " ".join(SMALL)}.items():
        monkeypatch.setenv(name, str(value))
    keys = f"{' '.join(SMALL)} knn.reference.path={small_set} knn.query.path={small_set}"
    monkeypatch.setenv("KEYS", keys)
    shown = run_example("notebook")
    assert "loss/ibot" in shown and "cosine" in shown and "k-NN accuracy" in shown and "exports:" in shown
