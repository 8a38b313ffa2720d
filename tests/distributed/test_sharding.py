"""One process, two with DDP and two with FSDP2, on the same global batches: the same run."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov2_hf.config import load_saved_config
from dinov2_hf.objectives import find_objective

STEPS, IMAGES = 5, 8
VIT = [
    "model.preset=tiny",
    "model.hidden_size=32",
    "model.num_hidden_layers=3",
    "model.num_attention_heads=2",
    "model.patch_size=8",
    "model.num_register_tokens=2",
    "model.drop_path_rate=0",
    "model.layerscale_value=0.1",
]
RESNET = [
    "model.family=resnet",
    "model.depths=[1,1,1]",
    "model.hidden_sizes=[16,16,32]",
    "model.embedding_size=8",
    "crops.global_size=64",
    "crops.local_size=32",
    "ibot.loss_weight=0",
]
CONFIGS = {
    "sinkhorn_knopp": [],
    "softmax": ["teacher.centering=softmax", "ibot.separate_head=false"],
    "accumulated": ["train.gradient_accumulation_steps=2"],
    "checkpointed": ["model.gradient_checkpointing=true"],
    "compiled": ["model.compile=true"],
    "clipped": [
        *("optim.clip_by=parameter", "optim.clip_grad=0.02", "optim.freeze_last_layer_by=gradients"),
        *("optim.lr_rule=linear", "teacher.update=previous_epoch", "train.epoch_length=4"),
        *("optim.warmup_epochs=0.5", "optim.freeze_last_layer_epochs=0.5"),
    ],
    "sgd": ["optim.optimizer=sgd", "teacher.update=previous_update"],
    "lars": ["optim.optimizer=lars", "optim.clip_by=parameter", "optim.clip_grad=0.001", "optim.base_lr=2"],
    "distilled": ["objective=distill_prototypes", "distill.teacher=made"],
    "controlled": ["teacher.target_entropy=0.8", "teacher.sinkhorn_queue=32"],
    "distilled, controlled": ["objective=distill_prototypes", "distill.teacher=made", "teacher.sinkhorn_queue=16"]
    + ["teacher.target_entropy=0.8"],
    "resnet": RESNET,
    "resnet checkpointed": [*RESNET, "model.gradient_checkpointing=true"],
    "resnet lars": [*RESNET, "optim.optimizer=lars", "optim.base_lr=2"],
    "dino": ["objective=dino", "dino.batch_norm=true", "dino.norm_last_layer=false", "optim.clip_grad=0.3"]
    + ["optim.optimizer=sgd", "optim.base_lr=1"],  # AdamW moves what batch norm takes out again by rounding noise
    "resnet dino": ["objective=dino", "dino.batch_norm=true", *(key for key in RESNET if not key.startswith("ibot."))]
    + ["optim.optimizer=lars", "optim.base_lr=2"],
    "ibot": ["objective=ibot", "ibot.separate_teacher_head=true", "train.gradient_accumulation_steps=2"],
    "simdino": ["objective=simdino", "ibot.loss_weight=1", "train.gradient_accumulation_steps=2"],
    "resnet simdino": ["objective=simdino", *RESNET, "coding_rate.features=mean"],
}
BARE = ("koleo.", "dino.num_prototypes", "ibot.")
NOT_READ = {
    "dino": ("koleo.", "ibot."),
    "resnet dino": ("koleo.", "ibot."),
    "ibot": ("koleo.", "ibot.hidden_dim", "ibot.bottleneck_dim"),
    "simdino": BARE,
    "resnet simdino": BARE,
}
"""Keys that an objective does not read, by the name of its configuration; nor does the family `vit` these:"""
NOT_OF_VIT = ("model.num_register_tokens", "model.layerscale_value")


def make_batch(config, number, rank, world_size):
    """This rank's images of the global batch `number`."""
    from dinov2_hf.data import SSLBatch

    generator = torch.Generator().manual_seed(number)
    crops = config.crops

    def share(views, size):
        whole = torch.randn(views, IMAGES, 3, size, size, generator=generator)
        return whole.chunk(world_size, dim=1)[rank].flatten(0, 1)

    global_crops, local_crops = share(2, crops.global_size), share(crops.num_local, crops.local_size)
    patches = (crops.global_size // config.model.stride) ** 2
    masks = torch.rand(2, IMAGES, patches, generator=generator) < 0.3
    masks[:, ::3] = False
    masks &= config.masks[0] > 0
    masks = masks.chunk(world_size, dim=1)[rank].flatten(0, 1)
    return SSLBatch(global_crops, local_crops, masks, *SSLBatch.flatten_masks(masks))


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def worker(folder: str) -> None:
    """Trains a few steps of each configuration in `folder`; the main process saves what the test compares."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState, GradientState

    for config in sorted(Path(folder).glob("*/config.yaml")):
        train(config.parent)
        AcceleratorState._reset_state()
        GradientState._reset_state()
    PartialState().wait_for_everyone()
    os._exit(0)  # once in some fifty launches a thread of gloo outlives the interpreter, and aborts the process


def train(folder: Path) -> None:
    from dinov2_hf.backbones import find_family
    from dinov2_hf.objectives import PrototypeTeacher
    from dinov2_hf.objectives.prototypes import build_heads
    from dinov2_hf.train import build_accelerator
    from dinov2_hf.train.schedules import build_schedules, values_at
    from dinov2_hf.train.step import TrainingStep

    config = load_saved_config(folder / "config.yaml")
    accelerator = build_accelerator(config.train)
    torch.manual_seed(0)
    kind, teachers = find_objective(config), {}
    for key in kind.teachers_of(config):
        wider = replace(config.model, hidden_size=48)
        backbone = find_family("dinov2").build(wider, config.crops.global_size, 0.0)
        heads = build_heads(config, backbone.width)
        teachers[key] = PrototypeTeacher(backbone, config.colors.mean, config.colors.std, heads)
    model = kind(config, teachers)
    step = TrainingStep(model, config, accelerator)
    schedules = build_schedules(config, model.schedules_of(config), IMAGES)
    numbers = iter(range(100))
    outputs = {}
    for index in range(STEPS):
        scalars = step(
            lambda: make_batch(config, next(numbers), accelerator.process_index, accelerator.num_processes),
            values_at(schedules, index),
            index,
            diagnose=True,
        )
        for name, value in scalars.items():
            outputs[f"{index}.{name}"] = accelerator.reduce(value, reduction="mean").reshape(1)
    outputs |= {f"parameter.{name}": whole(value) for name, value in step.model.state_dict().items()}
    step.model.eval()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for average in (True, False):
        outputs[f"features.{average}"] = step.model.features(pixels, average=average)[-1].cls
    modules = [module for network in (step.model, *step.model.frozen) for module in network.modules()]
    sharded = sum(type(module).__name__.startswith("FSDP") for module in modules)
    outputs["sharded_units"] = torch.tensor([sharded])
    if accelerator.is_main_process:
        name = f"{accelerator.num_processes}-{accelerator.distributed_type.value}.safetensors"
        save_file({key: value.contiguous() for key, value in outputs.items()}, folder / name)


@pytest.fixture(scope="module")
def launched(request, launch, fsdp2, tmp_path_factory, image_folder):
    """Folder of what each selected configuration gave on one process, on two and on two that shard."""
    from dinov2_hf.config import load_config, save_config

    folder = tmp_path_factory.mktemp("sharding")
    overrides = [
        "crops.global_size=32",
        "crops.local_size=16",
        "crops.num_local=2",
        "dino.num_prototypes=24",
        "dino.hidden_dim=16",
        "dino.bottleneck_dim=8",
        "ibot.num_prototypes=20",
        "ibot.hidden_dim=16",
        "ibot.bottleneck_dim=8",
        "ibot.separate_head=true",
        "koleo.distributed=true",
        "optim.warmup_epochs=0.02",
        "optim.freeze_last_layer_epochs=0.02",
        "optim.base_lr=0.02",
        f"data.train.path={image_folder}",
        "train.epoch_length=100",
        "train.precision=fp32",
    ]
    selected = {item.callspec.params["runs"] for item in request.session.items if item.path == Path(__file__)}
    for name in selected:
        model = [] if name.startswith("resnet") else VIT
        not_read = NOT_READ[name] + NOT_OF_VIT if name in NOT_READ else ()
        given = [key for key in [*model, *overrides] if not key.startswith(not_read)]
        config = load_config(None, [*given, f"train.output_dir={folder / name / 'run'}", *CONFIGS[name]])
        (folder / name).mkdir()
        save_config(config, folder / name / "config.yaml")
    launch(1, __file__, folder)
    launch(2, __file__, folder)
    launch(2, __file__, folder, environment=fsdp2)
    return folder


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name == "compiled" else ()) for name in CONFIGS],
)
def runs(request, launched):
    found = {path.stem: load_file(path) for path in (launched / request.param).glob("*.safetensors")}
    one = found.pop(next(name for name in found if name.startswith("1-")))
    assert len(found) == 2
    return one, found


def test_losses_norms_and_health_equal_those_of_one_process(runs, request, launched):
    one, others = runs
    names = [name for name in one if name[0].isdigit()]
    config = load_saved_config(launched / request.node.callspec.params["runs"] / "config.yaml")
    terms = find_objective(config).terms_of(config)
    targets = {"dino_global": "dino", "ibot": "ibot"}
    targets = [target for term, target in targets.items() if term in terms and config.objective != "simdino"]
    assert {name.split(".", 1)[1] for name in names} >= {
        "loss",
        *(f"loss/{term}" for term in terms),
        "grad_norm/backbone",
        "grad_norm/dino_head",
        "rankme",
        "grad_norm_of/stage_1" if config.model.family == "resnet" else "grad_norm_of/layer_00",
        *(["projection_std"] if config.objective == "simdino" else []),
        *(f"{sign}/{target}" for sign in ("target_entropy", "target_kl", "prototypes_used") for target in targets),
    }
    for kind, other in others.items():
        for name in names:
            assert other[name].item() == pytest.approx(one[name].item(), rel=1e-5, abs=1e-5), (kind, name)


def test_parameters_and_centres_equal_those_of_one_process(runs):
    one, others = runs
    names = [name for name in one if name.startswith("parameter.") and not name.endswith("key.bias")]
    assert any(name.startswith(("parameter.teacher.", "parameter.average.")) for name in names)
    for kind, other in others.items():
        for name in names:
            torch.testing.assert_close(
                other[name], one[name], atol=1e-5, rtol=1e-5, msg=lambda text, what=(kind, name): f"{what}: {text}"
            )


def test_features_of_student_and_average_equal_those_of_one_process(runs):
    one, others = runs
    assert not torch.allclose(one["features.True"], one["features.False"], atol=1e-4)
    for kind, other in others.items():
        for name in ("features.True", "features.False"):
            torch.testing.assert_close(other[name], one[name], atol=1e-4, rtol=1e-4, msg=f"{kind} {name}")


def test_every_layer_and_head_is_a_unit_of_student_and_teacher(runs):
    one, others = runs
    heads = 2 if any("ibot_head" in name for name in one) else 1
    units = {name: int(other["sharded_units"]) for name, other in others.items()}
    assert int(one["sharded_units"]) == 0
    # and the root, with embeddings and final norms; in distillation student, average and the frozen teacher
    distilled = any(name.startswith("parameter.average.") for name in one)
    assert sorted(units.values()) == [0, 3 * (3 + heads) + 2 if distilled else 2 * (3 + heads) + 1]


if __name__ == "__main__":
    worker(sys.argv[1])
