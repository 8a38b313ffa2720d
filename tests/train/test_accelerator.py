"""What the accelerator of a run is set up with."""

import os
import subprocess
import sys

PAGE_FAULTS = """
import resource, sys, torch
from dinov2_hf.train.accelerator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def touch():
    torch.ones(2**24), torch.ones(2**23)
for _ in range(5):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ | environment
    )


def test_freed_memory_is_used_again_without_page_faults():
    if sys.platform != "linux":
        return
    faults = {mode: int(run(PAGE_FAULTS, mode).stdout) for mode in ("default", "keep")}
    assert faults["default"] > 5 * 96 * 2**20 / 4096 / 2  # every pass faults its 96 MB in, in pages of 4 KB or more
    assert faults["keep"] < 100
