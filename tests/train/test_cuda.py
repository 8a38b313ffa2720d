"""What an update does on a CUDA device, judged without one.

`benchmarks/cuda_model.py` runs the update on fake CUDA tensors and reports kernels and waits for the device. It needs a
stub that g++ builds; without g++ those tests are skipped. Compilation is counted on the CPU.

A new objective is one more entry of `OBJECTIVES`.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from dinov2_hf.backbones import find_family
from dinov2_hf.config import load_config, save_config
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import find_objective
from dinov2_hf.objectives.prototypes import build_heads
from dinov2_hf.train import TrainingStep, build_accelerator
from dinov2_hf.train.schedules import StepValues

from ..tiny import TINY, TINY_FEATURES, TINY_OBJECTIVES

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    kernels: int
    """Bound on the kernels of an update of the tiny model that is not logged."""
    overrides: tuple[str, ...] = ()


DISTILLED = ("model.drop_path_rate=0", "distill.teacher=preset:tiny", "colors.mean=[0.5,0.4,0.3]")
OBJECTIVES = {
    "dinov2": Run(1550),
    "dino": Run(1200),
    "ibot": Run(1340),
    "simdino": Run(1190, ("ibot.loss_weight=1",)),
    "distill_prototypes": Run(1450, DISTILLED),
    "distill_features": Run(735, DISTILLED),
}
VARIANTS = {
    "dinov2_in_fp16_with_centering": Run(1540, ("train.precision=fp16", "teacher.centering=softmax")),
    "dino_in_fp32_with_batch_norm": Run(1140, ("train.precision=fp32", "dino.batch_norm=true")),
    "dinov2_in_bf16_accumulated_and_checkpointed": Run(
        3420, ("train.gradient_accumulation_steps=2", "model.gradient_checkpointing=true")
    ),
    "dinov2_with_lars_and_clipping_of_each_parameter": Run(
        1640,
        ("optim.optimizer=lars", "optim.clip_by=parameter", "optim.freeze_last_layer_by=gradients"),
    ),
    "dinov2_with_controlled_entropy_and_a_queue": Run(
        1700, ("teacher.target_entropy=0.8", "teacher.sinkhorn_queue=64")
    ),
    "dinov2_with_sgd_and_a_copied_teacher": Run(1535, ("optim.optimizer=sgd", "teacher.update=previous_update")),
}
"""Other ways through the same update."""
RUNS = OBJECTIVES | VARIANTS
VALUES = StepValues(
    lr=1e-4,
    last_layer_lr=1e-4,
    backbone_lr_scale=1.0,
    weight_decay=0.04,
    teacher_momentum=0.99,
    teacher_temp=0.07,
    teacher_patch_temp=0.07,
)


def configure(name, *overrides):
    objective = next(known for known in OBJECTIVES if name == known or name.startswith(f"{known}_"))
    keys = TINY_OBJECTIVES.get(objective, TINY_FEATURES if objective == "distill_features" else TINY)
    fixed = [f"objective={objective}", "data.train.path=noise", "train.precision=bf16"]
    return load_config(None, [*keys, *fixed, *RUNS[name].overrides, *overrides])


@pytest.fixture(scope="module")
def modelled(tmp_path_factory):
    """What the model says of each objective and variant, by name."""
    folder = tmp_path_factory.mktemp("configs")
    command = [sys.executable, "benchmarks/cuda_model.py", "--whole", "--json"]
    for name in RUNS:
        save_config(configure(name), folder / f"{name}.yaml")
        command += ["--config", str(folder / f"{name}.yaml")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ran.returncode == 3:
        pytest.skip(f"did not run: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    return {Path(result["case"]).stem: result for result in results}


@pytest.mark.parametrize("name", RUNS)
def test_update_that_is_not_logged_waits_for_the_device_nowhere(modelled, name):
    assert modelled[name]["synchronizations"] == []


@pytest.mark.parametrize("name", RUNS)
def test_update_launches_no_more_kernels_than_its_bound(modelled, name):
    assert modelled[name]["kernels"] <= RUNS[name].kernels, modelled[name]["kernels_by_part"]


@pytest.fixture
def traced():
    """Compiled layers run as they were traced: graphs and guards are the same, and no code is generated.

    Every value of an integer gets a graph of its own, and the number of graphs has no limit that would hide some.
    """
    torch._dynamo.reset()
    counters.clear()
    strict = torch._dynamo.config.patch(specialize_int=True, recompile_limit=1000)
    with strict, torch.compiler.set_stance("default", force_backend="eager"):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_changing_numbers_of_masked_patches_compile_nothing(traced, tmp_path, name):
    overrides = ("model.compile=true", "train.precision=fp32", "crops.num_local=0", f"train.output_dir={tmp_path}")
    config = configure(name, *overrides)
    step = TrainingStep(build(config), config, build_accelerator(config.train))
    for index, masked in enumerate((30, 37)):  # at the second number the compiler sees that it changes
        step(lambda: make_batch(masked), VALUES, index)  # noqa: B023 - called at once
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    with torch._dynamo.config.patch(error_on_recompile=True):  # names the guard
        for index, masked in enumerate((0, 1, 52)):
            step(lambda: make_batch(masked), VALUES, index)  # noqa: B023
    assert counters["stats"]["unique_graphs"] == graphs


def build(config):
    """The objective of a run, with teachers of fresh weights."""
    kind = find_objective(config)
    teachers = {}
    for key, teacher in kind.teachers_of(config).items():
        backbone = find_family("dinov2").build(config.model, config.crops.global_size, 0.0)
        weights = SimpleNamespace(attention=None, normalization=([0.2, 0.3, 0.4], [0.5, 0.5, 0.5]))
        weights.build = lambda **_: backbone  # noqa: B023 - called at once
        weights.heads = lambda: {n: head.state_dict() for n, head in build_heads(config, backbone.width).items()}  # noqa: B023
        teachers[key] = teacher.build(weights)
    return kind(config, teachers)


def make_batch(masked):
    """4 images, of which so many patches are masked."""
    masks = torch.zeros(8 * 16, dtype=torch.bool)
    masks[torch.randperm(len(masks))[:masked]] = True
    masks = masks.view(8, 16)
    return SSLBatch(torch.randn(8, 3, 32, 32), torch.empty(0, 3, 16, 16), masks, *SSLBatch.flatten_masks(masks))
