"""Chunks of the losses, attention implementations, half precision, and what repeats to the last bit."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import torch
from step import VALUES
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dinov2_hf.backbones import find_family
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives.terms import Logits, assignments, cross_entropy, dino_loss, ibot_loss, sinkhorn_knopp

from .context import Context, rounded
from .machine import device, on_cuda, peak_gb, reset_memory, timed
from .setups import Update, build, case_config

CUBLAS_WORKSPACE = ":4096:8"
"""What `torch.use_deterministic_algorithms` asks of cuBLAS."""
_CHUNKS = ((24, 28), (26, 28), (28, 28), (24, 32), (26, 32), (28, 32))
"""Powers of two: elements of a chunk, and bytes of logits that are kept."""
_IMPLEMENTATIONS = (
    *(("sdpa", "fp32"), ("eager", "bf16"), ("sdpa", "bf16")),
    *(("flash_attention_2", "bf16"), ("xformers", "bf16"), ("flex_attention", "bf16")),
)


def losses(context: Context) -> None:
    """Targets and losses of L64 by the size of their chunks, with and without a compiled chunk."""
    prototypes, width, images, masked = context.size((131072, 256, 64, 4900), (64, 16, 2, 6))
    dtype = torch.bfloat16

    def unit(*shape: int) -> torch.Tensor:
        return nn.functional.normalize(torch.randn(*shape, device=device()), dim=-1)

    student, teacher = unit(prototypes, width).requires_grad_(), unit(prototypes, width)
    cls = unit(10, images, width).to(dtype).requires_grad_()
    patches = unit(masked, width).to(dtype).requires_grad_()
    teacher_cls, teacher_patches = cls.detach()[:2].flatten(0, 1), patches.detach().clone()
    weights = torch.full((masked,), 1 / masked, device=device())

    def targets() -> tuple:
        return tuple(sinkhorn_knopp(Logits(features, teacher), 0.07) for features in (teacher_cls, teacher_patches))

    def whole() -> None:
        student.grad = None
        of_cls, of_patches = targets()
        of_images = sum(dino_loss(cls, student, of_cls))
        (of_images + ibot_loss(patches, student, of_patches, weights, 2 * images)).backward()

    before = cross_entropy._losses_and_gradient, assignments.CHUNK_ELEMENTS, assignments.KEPT_BYTES
    cases = [(*chunk, False) for chunk in _CHUNKS] + [(28, 32, True), (24, 28, True)]
    for elements, kept, compiled in context.size(cases, cases[:2]):
        with context.case("chunks", elements=f"2^{elements}", kept_bytes=f"2^{kept}", compiled=compiled) as row:
            assignments.CHUNK_ELEMENTS, assignments.KEPT_BYTES = 2**elements, 2**kept
            compute = torch.compile(before[0], dynamic=True) if compiled else before[0]
            cross_entropy._losses_and_gradient = compute
            reset_memory()
            row["targets_ms"] = timed(targets, context.size(4, 1), 1)["ms"]
            row |= timed(whole, context.size(4, 1), 1)
            row["peak_gb"] = peak_gb()
    cross_entropy._losses_and_gradient, assignments.CHUNK_ELEMENTS, assignments.KEPT_BYTES = before


def attention(context: Context) -> None:
    """Implementations on the same weights and crops: deviation of outputs and gradients from eager in float32."""
    config = case_config(context, "S64", "model.drop_path_rate=0", "model.layerscale_value=0.1")
    backbone = find_family("dinov2").build(config.model, config.crops.global_size, 0.0).to(device()).train()
    count = context.size(8, 1)
    sizes = ((count, config.crops.global_size), (2 * count, config.crops.local_size))
    crops = [torch.randn(number, 3, size, size, device=device()) for number, size in sizes]

    def run(implementation: str, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
        backbone.config._attn_implementation = implementation
        backbone.zero_grad(set_to_none=True)
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            groups = backbone.forward_packed(crops)
        sum(tokens.float().square().mean() + tokens.float()[:, 0].sum() for tokens in groups).backward()
        tokens = torch.cat([group.detach().float().flatten() for group in groups])
        return tokens, torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])

    wanted = run("eager", "fp32")
    for implementation, precision in context.size(_IMPLEMENTATIONS, _IMPLEMENTATIONS[:4]):
        with context.case("implementations", implementation=implementation, precision=precision) as row:
            found = run(implementation, precision)
            for name, ours, reference in zip(("output_error", "gradient_error"), found, wanted):
                row[name] = rounded(((ours - reference).norm() / reference.norm()).item())
            row |= timed(lambda: run(implementation, precision), context.size(5, 1), 1)  # noqa: B023  called at once


def half_precision(context: Context) -> None:
    """Losses by precision; a batch with a NaN changes nothing, and the next one trains on."""
    for precision in ("fp16", "bf16", "fp32") if on_cuda() else ("bf16", "fp32"):
        with context.case("updates", precision=precision) as row:
            update = build(case_config(context, "S64", f"train.precision={precision}", batch=32))
            found = torch.stack([update()["loss"] for _ in range(context.size(25, 3))])
            row |= {"first_loss": rounded(found[0].item(), 5), "last_loss": rounded(found[-1].item(), 5)}
            row["skipped"] = update.step.counters[0].item()  # fp16 skips the first ones while its scale falls
            before = [parameter.detach().clone() for parameter in update.model.student.parameters()]
            update(_with_nan(update.batch))
            after = list(update.model.student.parameters())
            kept = all(torch.equal(old, new) for old, new in zip(before, after))
            skipped = update.step.counters[0].item() - row["skipped"]
            moved = update()["loss"].isfinite().item() and not torch.equal(before[0], after[0])
            scaler = update.step.accelerator.scaler
            row |= {"scale": scaler.get_scale() if scaler else None, "nan_skipped": skipped, "trains_on": moved}
            row["passed"] = bool(torch.isfinite(found).all()) and kept and skipped == 1 and moved


def _with_nan(batch: SSLBatch) -> SSLBatch:
    crops = batch.global_crops.clone()
    crops[0] = float("nan")
    return replace(batch, global_crops=crops)


def determinism(context: Context) -> None:
    """The gradients of the same batch twice, by attention kernel."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACE
    update = build(case_config(context, "S64", "model.drop_path_rate=0.3", batch=16))
    update.model.train()
    global_only = replace(update.batch, local_crops=update.batch.local_crops[:0])
    cases: dict[str, tuple] = {"default": (None, update.batch), "default, no local crops": (None, global_only)}
    if on_cuda():
        kernels = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}
        kernels |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
        cases |= {name: (kernel, update.batch) for name, kernel in kernels.items()}
        cases["math, no local crops"] = (SDPBackend.MATH, global_only)
    for name, (kernel, batch) in cases.items():
        with (
            context.case("twice", case=name) as row,
            sdpa_kernel(kernel) if kernel is not None else contextlib.nullcontext(),
        ):
            row |= _compare_twice(update, batch)
    with context.case("twice", case="torch.use_deterministic_algorithms") as row:
        torch.use_deterministic_algorithms(True)
        row |= _compare_twice(update, update.batch)
        row["passed"] = row["differing"] == 0
    torch.use_deterministic_algorithms(False)


def _compare_twice(update: Update, batch: SSLBatch) -> dict:
    first, second = (_gradients(update, batch) for _ in range(2))
    differing = [name for name, value in first.items() if not torch.equal(value, second[name])]
    relative = [((first[name] - second[name]).norm() / first[name].norm()).item() for name in differing]
    found = {"differing": len(differing), "of": len(first), "largest_relative": rounded(max(relative, default=0.0))}
    return found | {"names": ", ".join(differing[:3])}


def _gradients(update: Update, batch: SSLBatch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with update.step.accelerator.autocast():
        loss = update.model(batch, VALUES).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in update.model.student.named_parameters() if p.grad is not None}
    update.model.zero_grad(set_to_none=True)
    return found
