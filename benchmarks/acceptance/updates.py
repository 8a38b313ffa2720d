"""Whole updates: what makes the host wait, how long they take, what they launch, what a logged one adds."""

from __future__ import annotations

import re
import time
import traceback
import warnings
from dataclasses import replace

import numpy as np
import torch
from cuda_cost.cards import CARDS
from step import VALUES, matrix_peak, plain_flops

from dinov2_hf.config import DINOv2RunConfig
from dinov2_hf.data import PhotometricAugmentation, SSLBatch
from dinov2_hf.data.photometric import draw_view_parameters
from dinov2_hf.objectives.diagnostics import rankme
from dinov2_hf.runs.metrics import MeanMetrics

from .context import ROOT, Context, rounded
from .machine import device, on_cuda, peak_gb, reset_memory, synchronize, timed
from .setups import Update, build, case_config

_STEP_CASES = ("S64", "L64", "S128", "B64", "L32", "g24-checkpointed", "L64-checkpointed")
_KINDS = {
    "products": r"gemm|nvjet|cutlass|xmma|cublas|splitK",
    "attention": r"flash|fmha|attention|sdpa",
    "optimiser and averages": r"multi_tensor|FusedAdam|lpnorm|foreach",
    "norms": r"layer_norm|LayerNorm|GammaBeta",
    "softmax": r"softmax|SoftMax",
    "sorting and random numbers": r"sort|Radix|random|distribution",
    "indexing": r"index|gather|scatter",
    "copies and casts": r"copy|Memcpy|Memset|CatArray",
    "sums": r"reduce",
    "element-wise": r"elementwise|vectorized|triton",
}
"""Kinds of kernels by a pattern of their names; the first that matches counts."""


def measure(context: Context, table: str, case: str, config: DINOv2RunConfig, peak: float | None = None) -> None:
    """Reports time, rate and memory of an update."""
    reset_memory()
    with context.case(table, case=case, batch=config.train.batch_size) as row:
        update = build(config)
        time_update(context, row, update)
        flops = plain_flops(update.model, update.batch)
        row["tflops"] = rounded(flops / row["ms"] / 1e9)
        for name, rate in (("share_of_peak", peak), ("share_of_nominal", nominal_peak())):
            if rate:
                row[name] = rounded(1e3 * flops / row["ms"] / rate)
        row |= {"peak_gb": peak_gb(), "masked": len(update.batch.mask_indices)}


def time_update(context: Context, row: dict, update: Update) -> None:
    """Adds to a row the seconds of the first update, the time of later ones, and images per second."""
    started = time.perf_counter()
    update()
    synchronize()
    row["first_s"] = rounded(time.perf_counter() - started)
    row |= timed(update, context.size(8, 1), context.size(3, 0))
    row["images_per_second"] = rounded(1e3 * update.batch.num_images / row["ms"], 4)


def nominal_peak() -> float | None:
    """FLOP/s of products in half precision by the data sheet of this card; None for one that `cuda_cost` lacks."""
    name = torch.cuda.get_device_name().lower() if on_cuda() else ""
    return next((card.half_flops for key, card in CARDS.items() if key in name), None)


def step_time(context: Context) -> None:
    """Peak: the sustained rate of large products, measured here. Nominal: that of the data sheet."""
    dtype = torch.bfloat16 if on_cuda() else torch.float32
    peak = matrix_peak(device(), dtype, context.size(8192, 64), context.size(1.0, 0.0))
    context.report("peak", tflops=rounded(peak / 1e12))
    for case in context.size(_STEP_CASES, _STEP_CASES[:1]):
        measure(context, "updates", case, case_config(context, case), peak)


def synchronisations(context: Context) -> None:
    """What makes the host wait for the device, by the lines of the project that did."""
    config = case_config(context, "S64", batch=16)
    update = build(config)
    raw = _as_loaded(update.batch, config)
    augment, means = PhotometricAugmentation(config.colors), MeanMetrics()
    placed = raw.to(device())
    parts = {
        "copy of a batch": lambda: raw.to(device(), non_blocking=True),
        "colours": lambda: augment(placed),
        "update": update,
        "means of an update": lambda: means.add(update.step(lambda: update.batch, VALUES, 1)),
        "logged update": lambda: update(diagnose=True),
        "reading of the means": lambda: means.read(update.step.accelerator),
    }
    for name, work in parts.items():
        work()
        if name == "reading of the means":
            means.add({"loss": torch.ones((), device=device())})
        synchronize()
        found = _waits(work)
        judged = {} if name in ("logged update", "reading of the means") else {"passed": not found}
        where = "; ".join(f"{count} x {place}" for place, count in found.items())
        context.report("waits", part=name, waits=sum(found.values()), where=where, **judged)


def _as_loaded(batch: SSLBatch, config: DINOv2RunConfig) -> SSLBatch:
    """The batch as a loader gives it: uint8 crops on the host with their colours, pinned for a GPU."""
    rng, images = np.random.default_rng(0), batch.num_images
    colors = [draw_view_parameters(rng, config.colors, config.crops.num_local) for _ in range(images)]
    colors = torch.from_numpy(np.stack(colors, axis=1))
    loaded = replace(
        batch.to(torch.device("cpu")),
        global_crops=(batch.global_crops.cpu() * 40 + 120).clamp(0, 255).to(torch.uint8),
        local_crops=(batch.local_crops.cpu() * 40 + 120).clamp(0, 255).to(torch.uint8),
        global_colors=colors[:2].flatten(0, 1),
        local_colors=colors[2:].flatten(0, 1),
    )
    return loaded.pin_memory() if on_cuda() else loaded


def _waits(work) -> dict[str, int]:
    """How often each place of the project made the host wait."""
    found: dict[str, int] = {}

    def note(message, category, filename, lineno, file=None, line=None) -> None:
        if "synchronizing" not in str(message):
            return
        source = str(ROOT / "src")
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(source)]
        place = " < ".join(f"{frame.filename.removeprefix(source)}:{frame.lineno}" for frame in frames[:-4:-1])
        found[place] = found.get(place, 0) + 1

    if on_cuda():
        torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        work()
    if on_cuda():
        torch.cuda.set_sync_debug_mode("default")
    return found


def kernels(context: Context) -> None:
    """Kernels of an update by kind; all of them in `kernels.txt`."""
    for case in context.size(("S64", "L32"), ("S64",)):
        reset_memory()
        update = build(case_config(context, case))
        for _ in range(context.size(3, 1)):
            update()
        synchronize()
        started = time.perf_counter()
        update()
        synchronize()
        wall = 1e3 * (time.perf_counter() - started)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if on_cuda():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            update()
            synchronize()
        kind = torch.autograd.DeviceType.CUDA if on_cuda() else torch.autograd.DeviceType.CPU
        events: dict[str, list[float]] = {}
        for event in profile.events():
            if event.device_type == kind and not event.is_user_annotation:  # those span the kernels within them
                count_ms = events.setdefault(event.name, [0, 0.0])
                count_ms[0] += 1
                count_ms[1] += (event.time_range.elapsed_us() if on_cuda() else event.self_cpu_time_total) / 1e3
        groups: dict[str, list[float]] = {}
        for name, (count, ms) in events.items():
            group = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name)), "other")
            total = groups.setdefault(group, [0, 0.0])
            total[0], total[1] = total[0] + count, total[1] + ms
        busy = sum(ms for _, ms in groups.values())
        for group, (count, ms) in sorted(groups.items(), key=lambda item: -item[1][1]):
            context.report("by kind", case=case, kind=group, count=count, ms=rounded(ms))
        count = sum(number for number, _ in groups.values())
        share = rounded(busy / wall)
        context.report("whole", case=case, count=count, ms=rounded(busy), wall_ms=rounded(wall, 4), busy=share)
        with open(context.output / "kernels.txt", "a") as file:
            file.write(f"{case}: {count} in {busy:.1f} ms, {wall:.1f} ms in all\n")
            for name, (count, ms) in sorted(events.items(), key=lambda item: -item[1][1])[:80]:
                file.write(f"{ms:9.3f} ms {count:6d}  {name[:160]}\n")


def health(context: Context) -> None:
    """What a logged update adds, and its dearest part: the singular values of the global batch."""
    shapes = ((128, 384), (128, 1024), (1024, 1024), (6144, 1024), (6144, 1536))
    for rows, width in context.size(shapes, ((16, 8),)):
        features = torch.randn(rows, width, device=device())
        with context.case("effective rank", rows=rows, width=width) as row:
            row |= timed(lambda features=features: rankme(features), context.size(3, 1), 1)
    update = build(case_config(context, "L32"))
    for logged in (False, True):
        with context.case("updates", case="L32", logged=logged) as row:
            row |= timed(lambda logged=logged: update(diagnose=logged), context.size(4, 1), context.size(2, 1))
