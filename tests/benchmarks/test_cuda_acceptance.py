"""The acceptance of a CUDA card, as far as a CPU can prove it: every section runs, at its smallest sizes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..patience import HANGS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "cuda_acceptance.py"

NUMBERS = {
    "environment": {
        "machine": ["torch", "cores"],
        "products": ["tflops"],
        "memory": ["tb_per_second"],
        "launches": ["us", "host_us"],
        "attention": ["forward_ms", "both_ms"],
    },
    "parity": {"six updates": ["loss", "gradient_norm", "student", "teacher"]},
    "synchronisations": {"waits": ["waits"]},
    "step": {"peak": ["tflops"], "updates": ["ms", "host_ms", "images_per_second", "share_of_peak"]},
    "kernels": {"by kind": ["count", "ms"], "whole": ["count", "ms", "wall_ms", "busy"]},
    "losses": {"chunks": ["targets_ms", "ms"]},
    "health": {"effective rank": ["ms"], "updates": ["ms"]},
    "determinism": {"twice": ["differing", "of"]},
    "resume": {"runs": ["continued_from", "killed_differing", "second_differing", "of"]},
    "compilation": {"updates": ["first_s", "ms", "graphs", "breaks"], "changing masks": ["seconds", "graphs"]},
    "published": {"updates": ["note"]},
    "attention": {"implementations": ["output_error", "gradient_error", "ms"]},
    "half_precision": {"updates": ["first_loss", "last_loss", "nan_skipped"]},
    "data": {
        "loader": ["images_per_second", "per_worker"],
        "batch on the device": ["copy_ms", "ms"],
        "whole run": ["images_per_second", "loss", "checkpoint_s"],
    },
    "features": {"extraction": ["images_per_second", "forward_images_per_second", "stock", "difference"]},
    "sharded": {"runs": ["from", "to", "seconds"]},
    "tests": {"tests": ["tests_passed", "tests_failed"]},
}
"""For each section, in its order, the tables and the columns that a reader looks for."""
CUDA_ONLY = {("kernel", "cudnn"), ("kernel", "efficient"), ("implementation", "flash_attention_2")}


def accept(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=HANGS,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The folder of a dry run of all sections, and its lines by section."""
    folder = tmp_path_factory.mktemp("acceptance") / "out"
    done = accept("--tiny", "--budget", 900, "--output", folder)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return folder, lines


@pytest.mark.parametrize("section", NUMBERS)
def test_a_section_runs_through_and_gives_its_numbers(dry_run, section):
    folder, lines = dry_run
    log = (folder / "log.txt").read_text()
    statuses = [line for line in lines if line["section"] == "acceptance" and line["name"] == section]
    assert [status["status"] for status in statuses] == ["ok"], log
    rows = [line for line in lines if line["section"] == section]
    failed = [row for row in rows if "error" in row and not CUDA_ONLY & set(row.items() - {("error", row["error"])})]
    assert failed == [], log
    assert [row for row in rows if row.get("passed") is False] == []
    for table, columns in NUMBERS[section].items():
        found = [row for row in rows if row["table"] == table]
        assert found, table
        assert set(columns) <= set().union(*found), table


def test_sections_come_in_their_order_and_the_summary_has_all_of_them(dry_run):
    folder, lines = dry_run
    assert [line["name"] for line in lines if line["section"] == "acceptance"] == list(NUMBERS)
    summary = (folder / "summary.md").read_text()
    for section, tables in NUMBERS.items():
        for table in tables:
            assert f"## {section}: {table}\n" in summary
    assert "| resume | ok |" in summary


def test_the_run_that_was_killed_twice_ends_with_the_weights_of_the_undisturbed_one(dry_run):
    (row,) = [line for line in dry_run[1] if line["section"] == "resume"]
    assert row["continued_from"] == 2 and row["codes"] == "0, 0, -9, -9, 0"
    assert row["killed_differing"] == 0 and row["of"] > 100


def test_a_section_that_fails_takes_no_other_with_it(tmp_path):
    done = accept("--tiny", "--only", "published,attention", "--published", tmp_path, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    statuses = {line["name"]: line["status"] for line in lines if line["section"] == "acceptance"}
    assert statuses == {"published": "failed", "attention": "ok"}
    assert f"--published={tmp_path} is not a tree" in (tmp_path / "log.txt").read_text()


def test_sections_without_time_are_skipped_and_said_to_be(tmp_path):
    done = accept("--tiny", "--only", "parity,resume", "--budget", 0, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert "| parity | skipped | 0.0 |" in summary and "| resume | skipped | 0.0 |" in summary


def test_a_process_that_does_not_end_in_its_time_is_killed_and_told_from_one_that_failed(tmp_path):
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from acceptance.processes import start, wait
    finally:
        sys.path.remove(str(SCRIPT.parent))
    slow = start(time.sleep, 600, log=tmp_path / "log.txt")
    assert wait([slow], 0) == [None] and not slow.is_alive()
    assert wait([start(int, "x", log=tmp_path / "log.txt")], 60) == [1]
    assert "invalid literal" in (tmp_path / "log.txt").read_text()


def test_a_summary_is_made_of_the_lines_of_a_run_that_was_cut(tmp_path):
    lines = [
        {"section": "step", "table": "updates", "case": "S64", "ms": 64.5, "passed": True},
        {"section": "step", "table": "updates", "case": "L64", "error": "OutOfMemoryError: a | b"},
        {"section": "resume", "table": "runs", "killed_differing": 3, "passed": False},
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = accept("--summarise", tmp_path / "results.jsonl")
    assert done.returncode == 0, done.stderr
    assert "| S64 | 64.5 | yes |  |" in done.stdout
    assert "- step, updates: case L64, error OutOfMemoryError: a | b" in done.stdout
    assert "- resume, runs: killed_differing 3, passed False" in done.stdout
    assert "| L64 |  |  | OutOfMemoryError: a / b |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "parity,speed"], "speed is not a section; there are environment, parity"),
        ([], "torch finds no CUDA card; --tiny runs"),
        (["--summarise", str(ROOT / "setup.py")], "line 1 is not a result of this script"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(arguments, said, tmp_path):
    done = accept(*arguments, "--output", tmp_path / "out")
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
