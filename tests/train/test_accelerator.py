"""What the accelerator of a run is set up with."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from torch import nn

from dinov2_hf.objectives import DINOHead
from dinov2_hf.train.accelerator import wrap_what_is_there

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


@pytest.mark.parametrize(("heads", "wrapped"), [(True, ["Dinov2Layer", "DINOHead"]), (False, ["Dinov2Layer"])])
def test_heads_are_wrapped_where_there_are_any(heads, wrapped):
    """A run that distils features has none, and accelerate refuses classes that a model lacks."""
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=["Dinov2Layer", "DINOHead"])
    model = nn.ModuleList([nn.Linear(2, 2)] + [DINOHead(4, 8, hidden_dim=4, bottleneck_dim=6)] * heads)
    wrap_what_is_there(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), model)
    assert plugin.transformer_cls_names_to_wrap == wrapped
    wrap_what_is_there(SimpleNamespace(state=SimpleNamespace()), model)
