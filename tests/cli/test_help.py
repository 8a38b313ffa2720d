"""Starting the command: what is imported before anything is done."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "accelerate", "datasets", "numpy"}

HELP = """
import runpy, sys
sys.argv = ["dinov2-hf", *sys.argv[1:]]
try:
    runpy.run_module("dinov2_hf.cli", run_name="__main__")
finally:
    print("IMPORTED", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "--help"]])
def test_help_is_shown_without_torch_or_transformers(arguments):
    done = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: dinov2-hf")
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())
