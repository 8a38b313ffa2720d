"""Every shipped config parses, holds the published values, and every launch file is one that accelerate understands."""

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import OffloadPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from dinov2_hf import backbones, objectives
from dinov2_hf.cli import build_program, curate, evaluate, train
from dinov2_hf.cli.arguments import describe_sections, overrides_of
from dinov2_hf.cli.running import parse
from dinov2_hf.config import RUNS, load_config, value_at
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.config.recipes import find_recipe, list_recipes
from dinov2_hf.evaluation import evaluators, find_evaluator
from dinov2_hf.train.schedules import build_schedules

ROOT = Path(__file__).parents[1]
DISTILL = sorted((ROOT / "configs/distill").glob("*.yaml"))
PRETRAIN = sorted((ROOT / "configs/pretrain").glob("*.yaml"))
ACCELERATE = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
EVALUATE = sorted((ROOT / "configs/evaluate").glob("*.yaml"))
DISTRIBUTED = ROOT / "docs/distributed.md"


def names(paths):
    return [path.stem for path in paths]


def load(name):
    keys = [] if name == "quickstart" else ["data.train.path=/images"]
    return load_config(name, keys + ["init.path=/first"] * name.startswith("highres"))


def head(path):
    return re.match(r"(?:#.*\n)+", path.read_text())[0]


# --- configs/pretrain ------------------------------------------------------------------------------------------------

# dinov2/configs/train/vitl16_short.yaml over dinov2/configs/ssl_default_config.yaml of facebookresearch/dinov2
SHORT = {
    "model.preset": "large",
    "model.patch_size": 16,
    "model.num_register_tokens": 0,
    "model.use_swiglu_ffn": None,
    "model.layerscale_value": 1e-5,
    "model.drop_path_rate": 0.3,
    "model.drop_path_schedule": "uniform",
    "dino.loss_weight": 1.0,
    "dino.num_prototypes": 65536,
    "dino.hidden_dim": 2048,
    "dino.bottleneck_dim": 256,
    "dino.num_layers": 3,
    "ibot.loss_weight": 1.0,
    "ibot.separate_head": False,
    "ibot.mask_probability": 0.5,
    "ibot.mask_ratio": [0.1, 0.5],
    "koleo.loss_weight": 0.1,
    "teacher.centering": "softmax",
    "teacher.momentum": 0.992,
    "teacher.final_momentum": 1.0,
    "teacher.warmup_temp": 0.04,
    "teacher.temp": 0.07,
    "teacher.warmup_temp_epochs": 30,
    "crops.global_size": 224,
    "crops.local_size": 96,
    "crops.num_local": 8,
    "crops.global_scale": [0.32, 1.0],
    "crops.local_scale": [0.05, 0.32],
    "optim.base_lr": 0.004,
    "optim.min_lr": 1e-6,
    "optim.warmup_epochs": 10,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.betas": [0.9, 0.999],
    "optim.clip_grad": 3.0,
    "optim.layerwise_decay": 0.9,
    "optim.patch_embed_lr_mult": 0.2,
    "optim.freeze_last_layer_epochs": 1,
    "train.batch_size": 64,
    "train.gradient_accumulation_steps": 1,
    "train.epochs": 100,
    "train.epoch_length": 1250,
}
# dinov2/configs/train/vitl14.yaml over the same; the paper's table 16 agrees in drop rate, batch, warm-up and lengths
LARGE = SHORT | {
    "model.patch_size": 14,
    "model.use_swiglu_ffn": True,
    "model.drop_path_rate": 0.4,
    "dino.num_prototypes": 131072,
    "dino.bottleneck_dim": 384,
    "ibot.separate_head": True,
    "ibot.num_prototypes": 131072,
    "ibot.hidden_dim": 2048,
    "ibot.bottleneck_dim": 256,  # 384 is set for the DINO head only
    "ibot.num_layers": 3,
    "teacher.centering": "sinkhorn_knopp",
    "teacher.momentum": 0.994,
    "crops.local_size": 98,
    "optim.base_lr": 2e-4,
    "optim.warmup_epochs": 80,
    "optim.weight_decay_end": 0.2,
    "optim.layerwise_decay": 1.0,
    "train.batch_size": 32,
    "train.epochs": 500,
}
# dinov2/configs/train/vitg14.yaml
GIANT = LARGE | {"model.preset": "giant", "train.batch_size": 12}
# dinov2/configs/eval/vit{l,g}14_reg4_pretrain.yaml
REGISTERS = {"model.num_register_tokens": 4}
# the paper's Appendix B.2: 518 pixels for 10,000 updates, schedules compressed, a lower base learning rate
HIGH_RESOLUTION = {"crops.global_size": 518, "optim.base_lr": 2e-5, "train.epoch_length": 20}

# the defaults of main_dino.py of facebookresearch/dino (commit 7c446df), with 8 GPUs: the vanilla run of its README
DINO = {
    "objective": "dino",
    "model.family": "vit",
    "model.preset": "small",
    "model.patch_size": 16,
    "model.mask_token": False,
    "model.drop_path_rate": 0.1,
    "model.drop_path_schedule": "linear",
    "model.interpolate_offset": 0.1,
    "dino.num_prototypes": 65536,
    "dino.hidden_dim": 2048,
    "dino.bottleneck_dim": 256,
    "dino.num_layers": 3,
    "dino.batch_norm": False,
    "dino.norm_last_layer": True,
    "teacher.centering": "softmax",
    "teacher.center_momentum": 0.9,
    "teacher.momentum": 0.996,
    "teacher.final_momentum": 1.0,
    "teacher.warmup_temp": 0.04,
    "teacher.temp": 0.04,
    "teacher.warmup_temp_epochs": 0,
    "teacher.student_temp": 0.1,
    "crops.global_size": 224,
    "crops.local_size": 96,
    "crops.num_local": 8,
    "crops.global_scale": [0.4, 1.0],
    "crops.local_scale": [0.05, 0.4],
    "colors.blur_probability": [1.0, 0.1, 0.5],
    "colors.solarize_probability": 0.2,
    "optim.optimizer": "adamw",
    "optim.base_lr": 0.0005,
    "optim.lr_rule": "linear",
    "optim.min_lr": 1e-6,
    "optim.warmup_epochs": 10,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.clip_grad": 3.0,
    "optim.clip_by": "parameter",
    "optim.layerwise_decay": 1.0,
    "optim.patch_embed_lr_mult": 1.0,
    "optim.freeze_last_layer_epochs": 1,
    "optim.freeze_last_layer_by": "gradients",
    "train.batch_size": 64,
    "train.epochs": 100,
    "train.epoch_length": 2502,
}
# the boosted run of the same README, on 16 GPUs
BOOSTED = DINO | {
    "dino.norm_last_layer": False,
    "teacher.temp": 0.07,
    "teacher.warmup_temp_epochs": 30,
    "train.epochs": 300,
    "train.epoch_length": 1251,
}
SMALL_LOCAL = {"crops.num_local": 10, "crops.global_scale": [0.25, 1.0], "crops.local_scale": [0.05, 0.25]}
# the arguments of the released ViT-B/16 and ViT-B/8, as the README of DyT repeats them from their args.txt
DINO_BASE = (
    DINO
    | SMALL_LOCAL
    | {
        "model.preset": "base",
        "teacher.temp": 0.07,
        "teacher.warmup_temp_epochs": 50,
        "optim.base_lr": 0.00075,
        "optim.min_lr": 2e-6,
        "optim.clip_grad": 0.3,
        "optim.freeze_last_layer_epochs": 3,
        "train.batch_size": 32,
        "train.epochs": 400,
        "train.epoch_length": 1251,
        "train.precision": "fp32",
    }
)
DINO_BASE_8 = DINO_BASE | {
    "model.patch_size": 8,
    "teacher.warmup_temp": 0.03,
    "optim.base_lr": 0.0005,
    "optim.clip_grad": 3.0,
    "train.batch_size": 6,
    "train.epochs": 300,
    "train.epoch_length": 1213,
}
# the command for ViT-S/16 in the README of bytedance/ibot (commit da316d8) over the defaults of its main_ibot.py
IBOT = (
    BOOSTED
    | SMALL_LOCAL
    | {
        "objective": "ibot",
        "model.mask_token": True,
        "dino.num_prototypes": 8192,
        "dino.loss_weight": 1.0,
        "ibot.loss_weight": 1.0,
        "ibot.separate_head": False,
        "ibot.mask_probability": 0.5,
        "ibot.mask_ratio": [0.1, 0.5],
        "ibot.mask_shape": "block",
        "ibot.mask_start_epoch": 0,
        "teacher.warmup_patch_temp": 0.04,
        "teacher.patch_temp": 0.07,
        "train.epochs": 800,
    }
)
IBOT_LARGE = IBOT | {
    "model.preset": "large",
    "dino.norm_last_layer": True,
    "train.batch_size": 16,
    "train.epochs": 250,
}
IN_22K = {"train.epoch_length": 13864}

# the command for ResNet-50 of the same README; the key of the stochastic depth is not one of a ResNet
RESNET = {key: value for key, value in DINO.items() if not key.startswith("model.")} | {
    "model.family": "resnet",
    "model.preset": "resnet50",
    "crops.global_scale": [0.14, 1.0],
    "crops.local_scale": [0.05, 0.14],
    "optim.optimizer": "sgd",
    "optim.momentum": 0.9,
    "optim.base_lr": 0.03,
    "optim.weight_decay": 1e-4,
    "optim.weight_decay_end": 1e-4,
}
# the arguments of the released ResNet-50, as repositories of others repeat them from its args.txt
RESNET_LARS = RESNET | {
    "dino.num_prototypes": 60000,
    "dino.batch_norm": True,
    "teacher.temp": 0.07,
    "teacher.warmup_temp_epochs": 50,
    "crops.num_local": 6,
    "optim.optimizer": "lars",
    "optim.base_lr": 0.3,
    "optim.min_lr": 0.0048,
    "optim.weight_decay": 1e-6,
    "optim.weight_decay_end": 1e-6,
    "optim.clip_grad": 0,
    "train.batch_size": 51,
    "train.epochs": 800,
    "train.epoch_length": 314,
    "train.precision": "fp32",
}

PUBLISHED = {
    "dino_resnet50_100": RESNET,
    "dino_resnet50": RESNET_LARS,
    "dino_resnet50_300": RESNET_LARS | {"train.epochs": 300},
    "dino_vits16_100": DINO,
    "dino_vits16_300": BOOSTED,
    "dino_vits16": BOOSTED | SMALL_LOCAL | {"train.epochs": 800},
    "dino_vits8": BOOSTED | {"model.patch_size": 8, "crops.num_local": 10, "train.batch_size": 16, "train.epochs": 800},
    "dino_vitb16": DINO_BASE,
    "dino_vitb8": DINO_BASE_8,
    "ibot_vits16": IBOT,
    "ibot_vitb16": IBOT_LARGE
    | {
        "model.preset": "base",
        "crops.global_scale": [0.32, 1.0],
        "crops.local_scale": [0.05, 0.32],
        "teacher.warmup_temp_epochs": 50,
        "optim.base_lr": 0.00075,
        "optim.min_lr": 2e-6,
        "optim.clip_grad": 0.3,
        "optim.freeze_last_layer_epochs": 3,
        "train.batch_size": 32,
        "train.epochs": 400,
    },
    "ibot_vitl16": IBOT_LARGE,
    "ibot_vitb16_22k": IBOT_LARGE | IN_22K | {"model.preset": "base", "train.batch_size": 32, "train.epochs": 80},
    "ibot_vitl16_22k": IBOT_LARGE | IN_22K | {"train.epochs": 50},
    "vitl16_short_imagenet1k": SHORT,
    "vitl14_142m": LARGE,
    "vitl14_reg4_142m": LARGE | REGISTERS,
    "vitg14_142m": GIANT,
    "vitg14_reg4_142m": GIANT | REGISTERS,
    "highres_vitl14": LARGE | HIGH_RESOLUTION | {"train.batch_size": 8, "train.gradient_accumulation_steps": 4},
    "highres_vitg14": GIANT | HIGH_RESOLUTION | {"train.batch_size": 4, "train.gradient_accumulation_steps": 3},
}


@pytest.mark.parametrize("path", PRETRAIN, ids=names(PRETRAIN))
def test_every_pretraining_config_parses(path):
    config = load(path.stem)
    assert config.train.output_dir == f"runs/{path.stem}"
    assert config.train.num_steps == round(config.train.num_steps) > 0


@pytest.mark.parametrize("path", PRETRAIN, ids=names(PRETRAIN))
def test_head_of_every_pretraining_config_says_what_it_needs(path):
    for label in ("Command:", "Paper:", "Hardware:", "Time:", "Expected:"):
        assert label in head(path), label


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_hold_the_published_values(name):
    config = load(name)
    assert {key: value_at(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]


# name: processes its batch size presumes, global batch, learning rate after the warm-up, updates. The published ones
# are from the README of the code (32 and 96 GPUs), the paper's table 16 (3072, 3.5e-4, 625k) and its Appendix B.2 (10k)
SCALES = {
    "vitl16_short_imagenet1k": (32, 2048, 5.66e-3, 125_000),
    "vitl14_142m": (96, 3072, 3.46e-4, 625_000),
    "vitl14_reg4_142m": (96, 3072, 3.46e-4, 625_000),
    "vitg14_142m": (256, 3072, 3.46e-4, 625_000),
    "vitg14_reg4_142m": (256, 3072, 3.46e-4, 625_000),
    "vits14_1gpu": (1, 256, 1e-3, 125_000),
    "vitb14_8gpu": (8, 1024, 3e-3, 125_000),
    "highres_vits14": (1, 256, 1e-4, 10_000),
    "highres_vitb14": (8, 1024, 3e-4, 10_000),
    "highres_vitl14": (96, 3072, 3.46e-5, 10_000),
    "highres_vitg14": (256, 3072, 3.46e-5, 10_000),
    "continue_dinov2_base": (1, 256, 5e-5, 25_000),
    "dino_resnet50": (80, 4080, 4.78, 251_200),
    "dino_resnet50_300": (80, 4080, 4.78, 94_200),
    "dino_resnet50_100": (8, 512, 0.06, 250_200),
    "dino_resnet50_1gpu": (1, 256, 0.03, 125_000),
    "dino_vits16": (16, 1024, 2e-3, 1_000_800),
    "dino_vits16_300": (16, 1024, 2e-3, 375_300),
    "dino_vits16_100": (8, 512, 1e-3, 250_200),
    "dino_vits16_1gpu": (1, 256, 5e-4, 125_000),
    "dino_vits8": (64, 1024, 2e-3, 1_000_800),
    "dino_vitb16": (32, 1024, 3e-3, 500_400),
    "dino_vitb8": (176, 1056, 2.0625e-3, 363_900),
    "ibot_vits16": (16, 1024, 2e-3, 1_000_800),
    "ibot_vitb16": (32, 1024, 3e-3, 500_400),
    "ibot_vitl16": (64, 1024, 2e-3, 312_750),
    "ibot_vitb16_22k": (32, 1024, 2e-3, 1_109_120),
    "ibot_vitl16_22k": (64, 1024, 2e-3, 693_200),
}


def test_every_config_but_the_quickstart_has_its_scale_pinned():
    assert set(SCALES) == set(names(PRETRAIN)) - {"quickstart"}


@pytest.mark.parametrize("name", SCALES)
def test_global_batch_and_learning_rate_are_those_in_the_head(name):
    processes, batch, lr, steps = SCALES[name]
    config = load(name)
    train = config.train
    assert train.batch_size * processes * train.gradient_accumulation_steps == batch
    assert train.num_steps == steps
    warmed_up = round(config.optim.warmup_epochs * train.epoch_length)
    assert build_schedules(config, {}, batch)["lr"][warmed_up] == pytest.approx(lr, rel=2e-3)
    text = head(ROOT / f"configs/pretrain/{name}.yaml")
    assert f"{train.batch_size} x {processes} process" in text and f"= {batch}" in text


@pytest.mark.parametrize(
    "second, first",
    [
        ("highres_vits14", "vits14_1gpu"),
        ("highres_vitb14", "vitb14_8gpu"),
        ("highres_vitl14", "vitl14_142m"),
        ("highres_vitg14", "vitg14_142m"),
    ],
)
def test_second_stage_continues_its_first_stage(second, first):
    with pytest.raises(ValueError, match=f"init.path is left open in the recipe pretrain/{second}; set it: init.path="):
        load_config(second, ["data.train.path=/images"])
    command = f"init.path={load(first).train.output_dir}"
    assert f"--config {second} {command} " in head(ROOT / f"configs/pretrain/{second}.yaml")
    second, first = load(second), load(first)
    for section in ("dino", "ibot", "koleo", "teacher", "colors"):
        assert getattr(second, section) == getattr(first, section), section
    second.model.gradient_checkpointing = first.model.gradient_checkpointing
    assert second.model == first.model
    second.crops.global_size = first.crops.global_size
    assert second.crops == first.crops
    assert second.optim.base_lr == pytest.approx(first.optim.base_lr / 10)  # the one value that the paper lowers
    second.optim.base_lr = first.optim.base_lr
    assert second.optim == first.optim
    assert second.train.epochs == first.train.epochs  # every schedule is compressed by the same factor


def test_continued_model_is_that_of_the_released_weights():
    config = load("continue_dinov2_base")
    assert config.init.path == "facebook/dinov2-base"
    model = backbones.Dinov2Config.preset(config.model.preset, **config.model.architecture())
    released = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 14}
    assert {key: getattr(model, key) for key in released} == released
    assert model.num_register_tokens == 0 and not model.use_swiglu_ffn
    assert 0 < config.init.head_warmup_epochs + config.optim.warmup_epochs < config.train.epochs


# --- configs/accelerate ----------------------------------------------------------------------------------------------


def launched(name, *options):
    """The arguments of `accelerate launch` with a file of ours, after it has read it."""
    path = ROOT / f"configs/accelerate/{name}.yaml"
    args, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), *options, "script.py"])
    )
    return args


def fsdp_variables(name):
    """The environment that `accelerate launch` gives its processes, as far as it is about FSDP."""
    environment = prepare_multi_gpu_env(launched(name, "--machine_rank=1", "--main_process_ip=host"))
    return {key: value for key, value in environment.items() if key.startswith(("ACCELERATE_USE_FSDP", "FSDP_"))}


@pytest.mark.parametrize(
    "name, kind, machines, processes",
    [
        ("cpu", DistributedType.NO, 1, 1),
        ("one_gpu", DistributedType.NO, 1, 1),
        ("ddp_8gpu", DistributedType.MULTI_GPU, 1, 8),
        ("fsdp2_8gpu", DistributedType.FSDP, 1, 8),
        ("fsdp2_multi_node", DistributedType.FSDP, 4, 32),
    ],
)
def test_accelerate_loads_every_launch_file(name, kind, machines, processes):
    config = load_config_from_file(str(ROOT / f"configs/accelerate/{name}.yaml"))  # refuses keys it does not know
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == kind
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.use_cpu == (name == "cpu")
    assert config.mixed_precision == "no"  # train.precision decides
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(config.fsdp_config) <= set(known), "keys that accelerate launch would not read"
    args = launched(name)
    assert (args.num_machines, args.num_processes, args.use_fsdp) == (machines, processes, kind == DistributedType.FSDP)


def test_every_launch_file_is_tested():
    assert names(ACCELERATE) == ["cpu", "ddp_8gpu", "fsdp2_8gpu", "fsdp2_multi_node", "one_gpu"]


@pytest.mark.parametrize("name", ["fsdp2_8gpu", "fsdp2_multi_node"])
def test_fsdp_files_shard_layers_and_heads_with_fsdp2(name):
    with patch_environment(**fsdp_variables(name)):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert type(plugin.cpu_offload) is OffloadPolicy  # none
    assert not plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading
    assert plugin.transformer_cls_names_to_wrap == ["Dinov2Layer", "DINOHead"]
    for wrapped in plugin.transformer_cls_names_to_wrap:
        assert hasattr(backbones, wrapped) or hasattr(objectives, wrapped), wrapped


def test_fsdp_files_differ_in_nothing_but_the_machines():
    assert fsdp_variables("fsdp2_8gpu") == fsdp_variables("fsdp2_multi_node")


def test_several_machines_meet_at_the_given_host():
    machines = ("--num_machines=2", "--num_processes=16", "--machine_rank=1", "--main_process_ip=host")
    args = launched("fsdp2_multi_node", *machines)
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert args.rdzv_endpoint == "host:29500"


# --- docs/distributed.md ---------------------------------------------------------------------------------------------


def test_documented_variables_for_torchrun_are_those_of_the_launch_file():
    documented = dict(re.findall(r"^export ((?:ACCELERATE|FSDP)_\w+)=(\S+)$", DISTRIBUTED.read_text(), re.MULTILINE))
    assert len(documented) == 8
    launched_with = fsdp_variables("fsdp2_8gpu")
    assert documented == {key: launched_with.get(key) for key in documented}


def test_documented_files_exist():
    text = DISTRIBUTED.read_text()
    assert set(re.findall(r"configs/accelerate/(\w+)\.yaml", text)) == set(names(ACCELERATE))
    for path in re.findall(r"(?:configs|examples)/\w+[\w/]*\.(?:yaml|py)", text):
        assert (ROOT / path).is_file(), path


def test_documented_launches_keep_the_global_batch():
    for processes, name, steps in [(8, "vitg14_142m", 32), (32, "vitg14_142m", 8)]:
        assert f"train.gradient_accumulation_steps={steps}" in DISTRIBUTED.read_text()
        assert load(name).train.batch_size * processes * steps == SCALES[name][1]


@pytest.mark.parametrize("path", DISTILL, ids=names(DISTILL))
def test_every_distillation_config_names_its_objective(path, caplog):
    config = load_config(path, ["data.train.path=/images", "distill.teacher=/teacher"])
    assert f"\nobjective: {config.objective}\n" in path.read_text() and config.objective.startswith("distill_")
    assert not caplog.records, "a configuration of 0.5"
    assert config.model.drop_path_rate == 0
    for word in ("Paper:", "Hardware:", "Time:", "Expected:"):
        assert word in path.read_text().split("\n\n")[0], word


def test_distilled_small_model_holds_the_published_values():
    """Oquab et al., 2023, table 16: S, B and L distilled."""
    path = ROOT / "configs/distill/vits14_from_vitg14.yaml"
    config = load_config(path, ["data.train.path=/images", "distill.teacher=/teacher"])
    teacher = load_config(ROOT / "configs/pretrain/vitg14_142m.yaml", ["data.train.path=/images"])
    batch = config.train.batch_size * 8 * config.train.gradient_accumulation_steps
    assert batch == 2048
    assert config.optim.base_lr * (batch / 1024) ** 0.5 == pytest.approx(1e-3, rel=1e-3)
    assert config.train.num_steps == 625_000 and config.optim.warmup_epochs * config.train.epoch_length == 100_000
    for key in ("dino.num_prototypes", "ibot.num_prototypes", "ibot.separate_head", "model.patch_size"):
        assert value_at(config, key) == value_at(teacher, key)


# --- configs/evaluate, configs/curate --------------------------------------------------------------------------------


def test_every_evaluator_has_a_config():
    assert {re.search(r"dinov2-hf evaluate (\w+) ", head(path))[1] for path in EVALUATE} == set(evaluators())


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_command_in_the_head_of_every_recipe_is_understood_without_a_clone(recipe):
    """It reads the recipe, or is started by it."""
    lines = re.sub(r"^# ?(Command:)?", "", head(recipe.path), flags=re.MULTILINE)
    lines = re.sub(r" *\\\n *", " ", lines).splitlines()
    found = [re.match(r" *(?:accelerate launch (.*?) ?-m dinov2_hf|dinov2-hf) (\w+ .*)", line) for line in lines]
    launch, command = next(match for match in found if match).groups()
    args = understood(command)
    launchers = re.findall(r'--config_file "\$\(dinov2-hf recipes --path (\w+)\)"', launch or "")
    assert all(find_recipe(f"accelerate/{name}") for name in launchers)
    if recipe.kind == "accelerate":
        assert launchers == [recipe.stem] and args.command == "pretrain"
    else:
        assert (args.command, args.config) == (recipe.kind, recipe.stem)


COMMANDS = [
    (page.name, command)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    for command in re.sub(r" *\\\n *", " ", block).splitlines()
    if re.match(r"dinov2-hf \w", command) and not re.search("…| my.yaml", command)
]


@pytest.mark.parametrize(
    "page, command", COMMANDS, ids=[f"{page}-{number}" for number, (page, _) in enumerate(COMMANDS)]
)
def test_documented_command_is_understood(page, command):
    understood(command.removeprefix("dinov2-hf "))


def understood(command):
    """The arguments of a command, every option and key of which exists."""
    args = parse(build_program(), shlex.split(command.partition(" > ")[0], comments=True))
    if getattr(args, "keys", None) is not None:
        assert describe_sections(args.sections(args), args.keys)
        return args
    if args.command == "evaluate" and args.evaluator != "list":
        load_config(args.config, overrides_of(args, evaluate.KEYS), find_evaluator(args.evaluator).config)
    if args.command == "curate":
        load_config(args.config, overrides_of(args, curate.KEYS), CurationConfig)
    if args.command in ("pretrain", "distill"):
        load_config(args.config, train.overrides(args), RUNS[args.objective])
    return args
