"""The published update on the same card and batch, where its tree is given: as it was published, and under autocast."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import types
from pathlib import Path
from types import ModuleType

import torch
from omegaconf import OmegaConf
from torch import nn

from .context import Context, rounded
from .machine import device, on_cuda, peak_gb, reset_memory, timed
from .processes import group_environment
from .setups import build, case_config
from .stand_in import install

_CASES = {"S64": ("vit_small", False, 0.1), "L32": ("vit_large", True, 0.4), "L64": ("vit_large", True, 0.4)}
"""Architecture, SwiGLU, stochastic depth."""
_MOMENTUM = 0.99


def published(context: Context) -> None:
    """`fsdp fp16` is how it was published; `autocast bf16` is the arithmetic that ours has."""
    if context.published is None:
        context.report("updates", note="no tree of the published code; give one with --published")
        return
    architecture = _import(context.published)
    for case in context.size(_CASES, ("S64",)):
        for mode in ("fsdp fp16", "autocast bf16") if on_cuda() else ("autocast bf16",):
            reset_memory()
            with context.case("updates", case=case, code="published", mode=mode) as row:
                config = case_config(context, case)
                images = config.train.batch_size
                update = _update(architecture, _settings(context, case), build_batch(config), mode)
                row["loss"] = rounded(sum(float(value) for value in update().values()), 5)
                row |= timed(update, context.size(6, 1), context.size(2, 0))
                row |= {"images_per_second": rounded(1e3 * images / row["ms"], 4), "peak_gb": peak_gb()}
                del update
        reset_memory()
        with context.case("updates", case=case, code="ours", mode="autocast bf16") as row:
            ours = build(case_config(context, case, "train.precision=bf16"))
            row["loss"] = rounded(ours()["loss"].item(), 5)
            row |= timed(ours, context.size(6, 1), context.size(2, 0))
            row |= {"images_per_second": rounded(1e3 * images / row["ms"], 4), "peak_gb": peak_gb()}
            del ours


def build_batch(config):
    from step import make_batch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make_batch(config).to(device())


def _import(tree: Path) -> ModuleType:
    """The module of the published objective, without its data, which needs torchvision.

    Raises:
        FileNotFoundError: there is no published code.
    """
    if not (tree / "dinov2" / "train" / "ssl_meta_arch.py").is_file():
        raise FileNotFoundError(f"--published={tree} is not a tree of facebookresearch/dinov2; clone it and name it")
    try:
        import xformers.ops  # noqa: F401
    except ImportError:
        install()
    sys.path.insert(0, str(tree))
    for name in ("fvcore", "fvcore.common", "fvcore.common.checkpoint"):  # for checkpoints, which nothing here writes
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
            continue
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].Checkpointer = sys.modules[name].PeriodicCheckpointer = object
    os.environ |= group_environment(1)[0]
    torch.distributed.init_process_group("nccl" if on_cuda() else "gloo")
    distributed = importlib.import_module("dinov2.distributed")
    distributed._LOCAL_RANK, distributed._LOCAL_WORLD_SIZE = 0, 1
    package = ModuleType("dinov2.train")  # its own __init__ imports the data
    package.__path__ = [str(tree / "dinov2" / "train")]
    sys.modules["dinov2.train"] = package
    if not on_cuda():
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # it names the device outright
    return importlib.import_module("dinov2.train.ssl_meta_arch")


def _settings(context: Context, case: str):
    ours = case_config(context, case)
    name, swiglu, drop_path = _CASES[case]
    settings = OmegaConf.load(context.published / "dinov2" / "configs" / "ssl_default_config.yaml")
    settings.student.arch, settings.student.patch_size, settings.student.drop_path_rate = name, 14, drop_path
    settings.student.ffn_layer = "swiglufused" if swiglu else "mlp"
    settings.dino.head_n_prototypes = ours.dino.num_prototypes
    settings.dino.head_bottleneck_dim = ours.dino.bottleneck_dim
    settings.ibot.head_n_prototypes, settings.ibot.separate_head = ours.ibot.num_prototypes, True
    settings.train.centering, settings.train.batch_size_per_gpu = "sinkhorn_knopp", ours.train.batch_size
    settings.crops.global_crops_size, settings.crops.local_crops_size = ours.crops.global_size, ours.crops.local_size
    settings.crops.local_crops_number = ours.crops.num_local
    settings.optim.layerwise_decay = ours.optim.layerwise_decay
    return settings


def _update(architecture: ModuleType, settings, batch, mode: str):
    sharded = mode == "fsdp fp16"
    settings.compute_precision.grad_scaler = sharded
    torch.manual_seed(0)
    with torch.device(device()):
        model = architecture.SSLMetaArch(settings)
    model.to(device())
    if sharded:
        model.prepare_for_distributed_training()
    else:
        model.need_to_synchronize_fsdp_streams = False
        architecture.reshard_fsdp_model = lambda module: None
        for name, student in model.student.items():
            model.teacher[name].load_state_dict(student.state_dict())
    model.train()
    optimizer = torch.optim.AdamW(model.get_params_groups(), betas=(0.9, 0.999))
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1e-4 * group["lr_multiplier"], 0.04 * group["wd_multiplier"]
    crops = (batch.global_crops, batch.local_crops)
    global_crops, local_crops = (group.half() for group in crops) if sharded else crops
    masked = torch.full((1,), len(batch.mask_indices), device=device())
    inputs = {
        "collated_global_crops": global_crops,
        "collated_local_crops": local_crops,
        "collated_masks": batch.masks,
        "mask_indices_list": batch.mask_indices,
        "masks_weight": batch.mask_weights,
        "upperbound": len(batch.mask_indices),
    }
    students = [parameter for name in model.student for parameter in model.student[name].parameters()]
    teachers = [parameter for name in model.student for parameter in model.teacher[name].parameters()]

    def update() -> dict:
        optimizer.zero_grad(set_to_none=True)
        inputs["n_masked_patches"] = masked.clone()
        if sharded:
            losses = model.forward_backward(inputs, teacher_temp=0.07)
            model.fp16_scaler.unscale_(optimizer)
            for network in model.student.values():
                network.clip_grad_norm_(3.0)
            model.fp16_scaler.step(optimizer)
            model.fp16_scaler.update()
        else:
            with torch.autocast(device().type, dtype=torch.bfloat16):
                losses = model.forward_backward(inputs, teacher_temp=0.07)
            for network in model.student.values():
                nn.utils.clip_grad_norm_(network.parameters(), 3.0)
            optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(teachers, _MOMENTUM)
            torch._foreach_add_(teachers, students, alpha=1 - _MOMENTUM)
        return losses

    return update
