"""Fifty damages drawn at random: a run continues as if nothing had been, or says in one line why it does not."""

import runpy
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from dinov2_hf.train import build_accelerator

from .damages import Fuzz

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fuzz(finished, tiny_config_in):
    return Fuzz(finished, tiny_config_in, build_accelerator(tiny_config_in(finished).train))


def test_damaged_run_continues_with_the_weights_that_were_written_or_is_refused_in_one_line(fuzz, tmp_path):
    """Every tenth that continues trains to the end, too."""
    results = Counter()
    for seed in range(50):
        work = tmp_path / str(seed)
        work.mkdir()
        _, result = fuzz.try_one(seed, work, to_the_end=seed % 10 == 0)
        results[result if result.startswith("continued") else "refused"] += 1
        shutil.rmtree(work)
    assert results["continued from update 2"] > 5 and results["continued from update 4"] > 2 and results["refused"] > 5


@pytest.mark.parametrize("damage", ["newest", "all"])
def test_whole_command_on_a_damaged_run(finished, tiny_overrides, tmp_path, monkeypatch, capfd, damage):
    """Ends like the uninterrupted run, with a warning, or with one line and status 2."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for step in (4, 6) if damage == "newest" else (2, 4, 6):
        (run / "checkpoints" / f"step-{step:08d}" / "__0_0.distcp").write_bytes(b"")
    arguments = [*tiny_overrides, f"train.output_dir={run}", "train.keep_checkpoints=3"]
    monkeypatch.setattr(sys, "argv", ["examples/pretrain.py", *arguments])
    status = 0
    try:
        runpy.run_path(str(ROOT / "examples" / "pretrain.py"), run_name="__main__")
    except SystemExit as ended:
        status = ended.code
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    if damage == "all":
        assert status == 2 and "error: no checkpoint in " in errors.splitlines()[-1]
        return
    assert status == 0
    ours, theirs = (folder / "checkpoints/step-00000006/provenance.json" for folder in (run, finished))
    assert ours.read_text() == theirs.read_text()  # the digest of the weights among other things
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["damaged-00000004", "damaged-00000006", *(f"step-{step:08d}" for step in (2, 4, 6))]
