"""Time, rate and memory of whole updates, as a share of what the machine's matrix units can do.

    python benchmarks/step.py model.preset=small train.batch_size=8 train.precision=bf16
    python benchmarks/step.py --config configs/pretrain/vitl14_142m.yaml train.batch_size=32 --profile

An update is everything but the data: forward of teacher and student, losses, backward, clipping, AdamW, moving average.
The share counts the floating-point operations of the plain update, in which every token goes through every layer; work
that is skipped lifts it. The peak is the sustained rate of products of large square matrices, the better of before and
after. Without options: ViT-S/14, 2 x 224 + 8 x 98, separate heads of 65,536 prototypes, batch 8. Prints a line of JSON.
`--tiny` only shows that the script runs: its numbers mean nothing.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time

import torch
from torch import nn

from dinov2_hf.config import RunConfig, load_config
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import DINOHead, find_objective
from dinov2_hf.objectives.pretraining import Pretraining
from dinov2_hf.train import TrainingStep, build_accelerator
from dinov2_hf.train.accelerator import compute_dtype
from dinov2_hf.train.schedules import StepValues

VALUES = StepValues(
    lr=1e-4,
    last_layer_lr=1e-4,
    backbone_lr_scale=1.0,
    weight_decay=0.04,
    teacher_momentum=0.99,
    teacher_temp=0.07,
    teacher_patch_temp=0.07,
)
TINY = ["model.preset=tiny", "model.num_hidden_layers=1", "dino.num_prototypes=64", "ibot.num_prototypes=64"]
TINY += [
    "crops.global_size=28",
    "crops.local_size=14",
    "crops.num_local=1",
    "train.batch_size=2",
    "train.precision=fp32",
]
VIT_S = ["model.preset=small", "model.num_register_tokens=0", "model.drop_path_rate=0", "ibot.separate_head=true"]


def draw_masks(config: RunConfig) -> torch.Tensor:
    """Masks `[2B, N]` as the data would draw them: half of the crops, of evenly spread ratios."""
    batch = config.train.batch_size
    patches = (config.crops.global_size // config.model.stride) ** 2
    masks = torch.zeros(2 * batch, patches, dtype=torch.bool)
    probability, (low, high), *_ = config.masks
    masked = round(2 * batch * probability)
    for index in range(masked):
        ratio = low + (high - low) * (index + 0.5) / masked
        masks[index, torch.randperm(patches)[: int(ratio * patches)]] = True
    return masks


def make_batch(config: RunConfig) -> SSLBatch:
    """Noise, and masks as the data would draw them."""
    crops, batch = config.crops, config.train.batch_size
    masks = draw_masks(config)
    return SSLBatch(
        torch.randn(2 * batch, 3, crops.global_size, crops.global_size),
        torch.randn(crops.num_local * batch, 3, crops.local_size, crops.local_size),
        masks,
        *SSLBatch.flatten_masks(masks),
    )


def plain_flops(model: Pretraining, batch: SSLBatch) -> float:
    """Floating-point operations of the matrix products of an update of a vision transformer without stochastic depth.

    A product of the forward pass costs two more in the backward pass, where its inputs need a gradient.
    """
    backbone = model.student["backbone"]
    config = backbone.config

    def linear(module: nn.Module) -> int:
        return sum(2 * m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))

    def layers(crops: torch.Tensor) -> tuple[float, float]:
        rows, columns = config.grid_of(*crops.shape[-2:])
        tokens = config.num_prefix_tokens + rows * columns
        attention = 4 * tokens**2 * config.hidden_size * config.num_hidden_layers
        embedding = 2 * rows * columns * backbone.embeddings.patch_embeddings.projection.weight.numel()
        return len(crops) * (tokens * linear(backbone.encoder) + attention), len(crops) * embedding

    def head(name: str) -> int:
        module = model.student[name]
        prototypes = 2 * module.last_layer.weight_v.numel() if isinstance(module, DINOHead) else 0
        return linear(module) + prototypes

    terms = model.terms_of(model.config)
    global_layers, global_embedding = layers(batch.global_crops)
    local_layers, local_embedding = layers(batch.local_crops) if len(batch.local_crops) else (0, 0)
    total = 4 * global_layers + 3 * local_layers + 3 * global_embedding + 2 * local_embedding
    if "dino_global" in terms:
        total += head("dino_head") * (4 * len(batch.global_crops) + 3 * len(batch.local_crops))
    if "ibot" in terms:
        total += head("ibot_head" if "ibot_head" in model.student else "dino_head") * 4 * len(batch.mask_indices)
        if "ibot" in model.centering and model.sees_all_patches:  # the centre follows patches without a mask too
            total += linear(model.student["dino_head"]) * (batch.masks.numel() - len(batch.mask_indices))
    return total


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_peak(device: torch.device, dtype: torch.dtype, side: int, seconds: float) -> float:
    """Sustained rate of products of square matrices, in FLOP/s."""
    a, b, product = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    torch.mm(a, b, out=product)
    synchronize(device)
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < seconds:
        for _ in range(1 if device.type == "cpu" else 20):
            torch.mm(a, b, out=product)
            count += 1
        synchronize(device)
    return 2 * side**3 * count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file of a run; default: ViT-S/14 as above, batch 8")
    parser.add_argument("--steps", type=int, default=10, help="updates that are timed (default: 10)")
    parser.add_argument("--warmup", type=int, default=3, help="updates before them (default: 3)")
    parser.add_argument("--profile", action="store_true", help="also print what takes the time")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()

    defaults = [] if args.config else [*VIT_S, "train.batch_size=8"]
    defaults += TINY if args.tiny else []
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["data.train.path=noise", f"train.output_dir={folder}", "train.gradient_accumulation_steps=1"]
        config = load_config(args.config, [*defaults, *args.overrides, *fixed])
        accelerator = build_accelerator(config.train)
    device = accelerator.device
    dtype = compute_dtype(accelerator)
    torch.manual_seed(0)
    model = find_objective(config)(config)
    batch = make_batch(config).to(device)
    flops = plain_flops(model, batch)
    step = TrainingStep(model, config, accelerator)

    side, seconds = (64, 0.0) if args.tiny else (4096 if device.type == "cpu" else 8192, 2.0)
    peak = matrix_peak(device, dtype, side, seconds)
    for index in range(args.warmup):
        step(lambda: batch, VALUES, index)
    times = []
    for index in range(args.steps):
        synchronize(device)
        start = time.perf_counter()
        step(lambda: batch, VALUES, index)
        synchronize(device)
        times.append(time.perf_counter() - start)
    peak = max(peak, matrix_peak(device, dtype, side, seconds))
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    if args.profile:
        with torch.profiler.profile() as profile:
            step(lambda: batch, VALUES, 0)
            synchronize(device)
        order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50))

    median = statistics.median(times)
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu x {torch.get_num_threads()}",
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "compile": config.model.compile,
        "batch_size": config.train.batch_size,
        "seconds_per_update": round(median, 4),
        "fastest_update": round(min(times), 4),
        "images_per_second": round(config.train.batch_size / median, 2),
        "plain_tflop": round(flops / 1e12, 3),
        "achieved_tflops": round(flops / median / 1e12, 3),
        "matrix_peak_tflops": round(peak / 1e12, 3),
        "share_of_peak": round(flops / median / peak, 3),
        "peak_memory_gb": round(memory / 1e9, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
