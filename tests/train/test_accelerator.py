"""What the accelerator of a run is set up with."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
from torch import nn

from dinov2_hf.objectives import DINOHead
from dinov2_hf.train import accelerator
from dinov2_hf.train.accelerator import wrap_what_is_there

PAGE_FAULTS = """
import ctypes, resource, sys
def touch():
    bytearray(b"1") * 2**26, bytearray(b"1") * 2**25
for _ in range(5):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_after(prepare: str) -> int:
    """Page faults of ten large blocks in a new process, which imports nothing that allocates memory of its own."""
    code = PAGE_FAULTS.replace("def touch", f"{prepare}\ndef touch", 1)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_freed_memory_is_used_again_without_page_faults():
    if sys.platform != "linux":
        return
    constants = f"_M_TRIM_THRESHOLD, _M_MMAP_MAX = {accelerator._M_TRIM_THRESHOLD}, {accelerator._M_MMAP_MAX}"
    function = inspect.getsource(accelerator.keep_freed_memory)
    # every pass faults its 96 MB in, in pages of 4 KB or more
    assert faults_after("") > 5 * 96 * 2**20 / 4096 / 2
    assert faults_after(f"{constants}\n{function}\nkeep_freed_memory()") < 100


@pytest.mark.parametrize(("heads", "wrapped"), [(True, ["Dinov2Layer", "DINOHead"]), (False, ["Dinov2Layer"])])
def test_heads_are_wrapped_where_there_are_any(heads, wrapped):
    """A run that distils features has none, and accelerate refuses classes that a model lacks."""
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=["Dinov2Layer", "DINOHead"])
    model = nn.ModuleList([nn.Linear(2, 2)] + [DINOHead(4, 8, hidden_dim=4, bottleneck_dim=6)] * heads)
    wrap_what_is_there(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), model)
    assert plugin.transformer_cls_names_to_wrap == wrapped
    wrap_what_is_there(SimpleNamespace(state=SimpleNamespace()), model)
