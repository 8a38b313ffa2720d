"""What `benchmarks/soak.py` says of samples: slopes and what grows; and its tiny run of every objective."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dinov2_hf.config import RUNS, load_config
from dinov2_hf.objectives import OBJECTIVES

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    before = list(sys.path)
    yield SimpleNamespace(**runpy.run_path(str(SCRIPT)))
    sys.path[:] = before


@pytest.mark.parametrize("slope, grows", [(0.5, True), (0.0, False), (-0.5, False)])
def test_a_slope_is_found_in_noise_and_only_growth_is_called_growth(soak, slope, grows):
    updates = np.arange(0, 20_000, 20)
    values = 500 + slope * updates / 1000 + np.random.default_rng(0).normal(0, 1, len(updates))
    found = soak.slope_of(updates, values)
    assert found.low < slope < found.high and found.high - found.low < 0.1
    assert found.grows is grows and found.mean == pytest.approx(values.mean())


def test_the_interval_is_right_for_samples_that_depend_on_those_before_them(soak):
    """Noise that lasts for ten samples, as memory during an evaluation: 95 % of the intervals hold the slope."""
    rng, updates, inside = np.random.default_rng(0), np.arange(1000) * 20, 0
    for _ in range(400):
        noise = np.convolve(rng.normal(size=1009), np.ones(10), mode="valid")
        found = soak.slope_of(updates, noise + 0.2 * updates / 1000)
        inside += found.low <= 0.2 <= found.high
    assert 0.91 <= inside / 400 <= 0.98


def test_a_quantity_that_never_changes_has_slope_zero_and_few_samples_have_none(soak):
    assert soak.slope_of(np.arange(100), np.full(100, 18.0)) == (18.0, 0.0, 0.0, 0.0)
    assert soak.slope_of(np.arange(5), np.arange(5)).slope is None
    assert soak.slope_of(np.zeros(100), np.arange(100)).slope is None


def test_samples_of_the_warm_up_do_not_count(soak):
    names = soak.QUANTITIES
    samples = [
        {"seconds": second, "updates": 10 * second, **dict.fromkeys(names, min(second, 40))} for second in range(200)
    ]
    assert all(found.slope == 0 for found in soak.slopes_of(samples, 0.25).values())
    assert all(found.grows for found in soak.slopes_of(samples, 0.0).values())


def test_the_update_is_that_of_the_last_whole_line(soak, tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert soak.newest_update(file) is None
    file.write_text('{"step": 10, "loss": 1}\n{"step": 20, "lo')
    assert soak.newest_update(file) == 10


def test_disk_is_counted_for_checkpoints_and_all_else(soak, tmp_path):
    from dinov2_hf.runs import RunFolder

    run = RunFolder(tmp_path)
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    (run.checkpoints / "step-00000001" / "model").write_bytes(bytes(3_000_000))
    run.metrics_file.write_bytes(bytes(1_000_000))
    assert soak.disk_of(run) == {"checkpoints": 3.0, "other_files": 1.0}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_has_a_tiny_run_with_workers_checkpoints_and_evaluations(soak, objective, tmp_path):
    (tmp_path / "teacher" / "export").mkdir(parents=True)  # so that none is trained
    config = load_config(None, soak.tiny_arguments(objective, tmp_path, 3600), RUNS["dinov2"])
    assert config.objective == objective and config.data.num_workers == 2
    assert config.knn.enabled and "probe" in config.evaluations
    kept, made = config.train.keep_checkpoints, config.train.epochs / config.train.checkpoint_epochs
    assert made > 100 * kept
