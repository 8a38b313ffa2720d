"""What the accelerator of a run is set up with."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dinov2_hf.backbones import find_family
from dinov2_hf.config import load_config
from dinov2_hf.objectives import FeatureTeacher, find_objective
from dinov2_hf.train import accelerator
from dinov2_hf.train.accelerator import shard_by_blocks

from ..tiny import TINY, TINY_FEATURES

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
    function = "".join(map(inspect.getsource, (accelerator._set_malloc, accelerator.keep_freed_memory)))
    # every pass faults its 96 MB in, in pages of 4 KB or more
    assert faults_after("") > 5 * 96 * 2**20 / 4096 / 2
    assert faults_after(f"{constants}\n{function}\nkeep_freed_memory()") < 100


@pytest.mark.parametrize(
    ("overrides", "wrapped"), [(TINY, ["DINOHead", "Dinov2Layer"]), (TINY_FEATURES, ["Dinov2Layer"])]
)
def test_classes_of_blocks_and_heads_that_are_there_are_sharded(overrides, wrapped):
    """A run that distils features has no heads, and accelerate refuses classes that a model lacks."""
    config = load_config(None, [*overrides, "data.train.path=x"] + ["distill.teacher=x"] * (overrides is TINY_FEATURES))
    backbone = find_family("dinov2").build(config.model, 32, 0.0)
    teacher = FeatureTeacher(backbone, config.colors.mean, config.colors.std)
    objective = find_objective(config)(config, {"distill.teacher": teacher})
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=["Other"])
    shard_by_blocks(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)), objective)
    assert plugin.transformer_cls_names_to_wrap == wrapped
    shard_by_blocks(SimpleNamespace(state=SimpleNamespace()), objective)
