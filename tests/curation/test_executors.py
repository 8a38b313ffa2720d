"""The same result by whom the stages are run: Ray, SLURM, the processes of `accelerate launch`."""

import os
import stat
import subprocess
import sys

import pytest

from dinov2_hf.curation.tables import read_json

from .made import ROOT, result_of

SBATCH = """#!{python}
# Runs every task of an array at once, as sbatch would some time, and prints the number of the job.
import os, re, subprocess, sys
script = sys.argv[-1]
array = re.search(r"#SBATCH --array=0-(\\d+)", open(script).read())
for task in range(int(array[1]) + 1 if array else 1):
    environment = os.environ | {{"SLURM_NODELIST": "localhost"}}
    environment |= {{"SLURM_ARRAY_TASK_ID": str(task)}} if array else {{}}
    subprocess.run(["bash", script], env=environment, check=True, stdout=sys.stderr)
with open("{log}", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
print("Submitted batch job", len(open("{log}").readlines()))
"""
SCONTROL = """#!/bin/bash
echo localhost
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


def test_ray_gives_the_result_of_the_local_executor(run, tmp_path):
    ray = pytest.importorskip("ray")
    _, local = run(only="filter")
    expected = result_of(local)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        kind = ["executor.kind=ray", "executor.tasks=2", "executor.mem_per_cpu_gb=1", f"output_dir={tmp_path / 'ray'}"]
        lines, folder = run(*kind, only="filter")
    finally:
        ray.shutdown()
    assert lines[0].startswith("filter: 56 images, 56 kept")
    assert result_of(folder) == expected


def test_slurm_queues_jobs_in_order_that_give_the_result_of_the_local_executor(run, tmp_path, monkeypatch):
    """With an sbatch of our own that runs what it is given."""
    _, local = run(only="filter")
    expected = result_of(local)
    programs, log = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    sbatch = SBATCH.format(python=sys.executable, log=log)
    for name, text in {"sbatch": sbatch, "srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod((programs / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    kind = ["executor.kind=slurm", "executor.partition=main", "executor.tasks=2", "executor.cpus_per_task=3"]
    lines, folder = run(*kind, f"output_dir={tmp_path / 'slurm'}", only="filter")
    assert lines == ["filter: queued up to job 3"]
    assert result_of(folder) == expected
    assert read_json(folder / "stages/filter/counts.json")["counts"]["kept"] == 56
    dependencies = [line for line in log.read_text().splitlines() if "--dependency=afterok" in line]
    assert dependencies and "afterok:1" in dependencies[0]
    script = (folder / "stages/filter/logs/filter-2/launch_script.slurm").read_text()
    for option in ("--partition=main", "--cpus-per-task=3", "--mem-per-cpu=4G", "--array=0-1%2"):
        assert f"#SBATCH {option}" in script


def test_two_processes_embed_what_one_embeds(run, overrides, tmp_path):
    for stage in ("filter", "hashes", "embed"):
        lines, folder = run(only=stage)
    expected = result_of(folder)
    for stage in ("filter", "hashes"):
        run(f"output_dir={tmp_path / 'two'}", only=stage)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-m", "dinov2_hf.cli", "curate", "--stage", "embed", *overrides, f"output_dir={tmp_path / 'two'}"]
    environment = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = os.environ | environment | {"ACCELERATE_USE_CPU": "1"}
    done = subprocess.run([*launch, *command], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(2 processes)" in done.stdout and done.stdout.count("embed:") == 1
    found = result_of(tmp_path / "two")
    assert {name for name in found} == set(expected)
    assert found == expected
