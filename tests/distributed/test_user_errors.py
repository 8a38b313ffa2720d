"""A mistake under several processes: one line, not one of each process, and the launcher's report ends with it."""

import os
import subprocess
import sys

import pytest

from .conftest import ROOT

MESSAGE = "/nowhere does not exist; give a folder of images"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["-m", "dinov2_hf", "pretrain"], ["examples/pretrain.py"]], ids=["module", "example"]
)
def test_a_mistake_is_printed_once(command):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, *command, "/nowhere"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert done.stderr.count(f": error: {MESSAGE}") == 1, done.stderr
    assert MESSAGE in done.stderr.partition("Root Cause")[2]
    assert done.stderr.count("Traceback") == 1  # that of the launcher
