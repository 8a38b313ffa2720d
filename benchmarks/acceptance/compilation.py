"""Compiled layers: time, graphs, breaks, and whether changing masks compile again."""

from __future__ import annotations

import time

import torch
from torch._dynamo.utils import counters

from dinov2_hf.data import SSLBatch

from .context import Context, rounded
from .machine import reset_memory, synchronize
from .setups import Update, build, case_config
from .updates import time_update


def compilation(context: Context) -> None:
    for case in context.size(("S64", "L64", "g24-checkpointed", "B64"), ("S64",)):
        reset_memory()
        counters.clear()
        with context.case("updates", case=case) as row:
            update = _build(context, case)
            time_update(context, row, update)
            row["graphs"] = counters["stats"]["unique_graphs"]
            row["breaks"] = sum(counters["graph_break"].values())
            row["reasons"] = "; ".join(reason.splitlines()[0][:100] for reason in counters["graph_break"])
    _change_masks(context)


def _build(context: Context, case: str, **options) -> Update:
    """Compiled as a run does it; in a dry run without generating code, which takes a CPU half a minute."""
    if not context.tiny:
        return build(case_config(context, case, "model.compile=true", **options))
    update = build(case_config(context, case, **options))
    for networks in update.model.networks[""]:
        for block in networks["backbone"].blocks.values():
            block.compile(backend="eager")
    return update


def _change_masks(context: Context) -> None:
    """Graphs after each of several updates with other numbers of masked patches, and after evaluations."""
    counters.clear()
    update = _build(context, "S64", batch=16)
    batch = update.batch
    graphs = []
    for index in range(context.size(6, 4)):
        masks = batch.masks.clone()
        masks[0] = torch.arange(masks.shape[1], device=masks.device) < index + 1
        changed = SSLBatch(batch.global_crops, batch.local_crops, masks, *SSLBatch.flatten_masks(masks))
        with context.case("changing masks", masked=len(changed.mask_indices)) as row:
            started = time.perf_counter()
            update(changed)
            synchronize()
            graphs.append(counters["stats"]["unique_graphs"])
            row |= {"seconds": rounded(time.perf_counter() - started), "graphs": graphs[-1]}
            if index > 1:  # the second may make a dimension dynamic
                row["passed"] = graphs[-1] == graphs[-2]
    update.model.eval()
    for images in (3, 4):
        with context.case("changing masks", evaluated_images=images) as row:
            started = time.perf_counter()
            update.model.features(batch.global_crops[:images])
            synchronize()
            row |= {"seconds": rounded(time.perf_counter() - started), "graphs": counters["stats"]["unique_graphs"]}
