"""What the frozen teacher of a distillation takes: memory of its weights, and the peak of its forward above them.

    python benchmarks/frozen_teacher.py                  # ViT-L/14 with the published heads, 1 image at 224
    python benchmarks/frozen_teacher.py --preset base --images 8

Each way in a process of its own, or in two that share the teacher (FSDP2): its resident memory above that of a process
without a teacher, per process. Weights are random: memory does not ask. Prints a table in Markdown. Linux alone.
"""

import argparse
import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from dinov2_hf.config import DistillConfig, load_config
from dinov2_hf.models import Dinov2Config
from dinov2_hf.ssl import PrototypeTeacher, SSLBatch
from dinov2_hf.ssl.distillation import compare_all_patches
from dinov2_hf.ssl.prototypes import build_centering, prototype_targets
from dinov2_hf.ssl.students import build_backbone, build_heads

WAYS = {
    "float32, as the teacher of a pretraining run": (torch.float32, 1),
    "bfloat16": (torch.bfloat16, 1),
    "bfloat16, sharded over 2 processes, each": (torch.bfloat16, 2),
}


def build_teacher(preset: str) -> tuple[DistillConfig, PrototypeTeacher, Dinov2Config]:
    """A teacher with the heads of the released models: 131,072 prototypes each."""
    config = load_config(
        "configs/distill/vits14_from_vitg14.yaml", ["distill.teacher=x", "data.train.path=x"], DistillConfig
    )
    config.model.preset, config.model.num_register_tokens = preset, 4
    backbone = build_backbone(config.model, config.crops.global_size, 0.0)
    heads = build_heads(config, backbone.config.hidden_size)
    return config, PrototypeTeacher(backbone, heads, config.colors.mean, config.colors.std), backbone.config


def megabytes(field: str) -> float:
    """`VmRSS`, resident memory, or `VmHWM`, its peak since `reset_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(args: argparse.Namespace) -> None:
    """One way, in this process; prints a line of JSON."""
    torch.manual_seed(0)
    dtype, processes = list(WAYS.values())[args.way]
    if processes > 1:
        torch.distributed.init_process_group("gloo")
    torch.ones(8, 8) @ torch.ones(8, 8)  # what torch itself wants
    reset_peak()
    before = megabytes("VmRSS")
    config, teacher, architecture = build_teacher(args.preset)
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    teacher.requires_grad_(False).eval().place(torch.device("cpu"), dtype, sharded=processes > 1)
    size = config.crops.global_size
    crops = torch.randn(2 * args.images, 3, size, size)
    nothing = torch.empty(0)
    batch = SSLBatch(crops, torch.empty(0, 3, size, size), nothing, nothing, nothing)
    batch = compare_all_patches(batch, architecture)
    centering = build_centering(config)

    def targets_of(heads, cls, patches):
        targets = prototype_targets(config, heads, centering, cls, patches, 0.07)
        return {term: assigned.rows(0, 1) for term, assigned in targets.items()}

    reset_peak()
    weights = megabytes("VmRSS")
    teacher(batch, targets_of, config.colors.mean, config.colors.std)
    peak = megabytes("VmHWM")
    if processes > 1:
        torch.distributed.barrier()
    print(json.dumps({"parameters": parameters, "weights": weights - before, "forward": peak - weights}), flush=True)
    os._exit(0)  # without waiting for gloo's threads


def start(args: argparse.Namespace, way: int, processes: int) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(processes):
        places = {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in places.items()}
        if processes > 1:
            environment["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // processes, 1))
        command = [sys.executable, __file__, "--preset", args.preset, "--images", str(args.images), "--way", str(way)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process failed; what it said is above")
    found = [json.loads(text.splitlines()[-1]) for text in printed]
    return {name: max(item[name] for item in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="large", choices=("tiny", "small", "base", "large", "giant"))
    parser.add_argument("--images", type=int, default=1, help="in the batch, two global crops each (default: 1)")
    parser.add_argument("--way", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.chdir(Path(__file__).parents[1])
    if args.way is not None:
        return measure(args)
    for way, (name, (_, processes)) in enumerate(WAYS.items()):
        found = start(args, way, processes)
        if way == 0:
            print(f"{args.preset}, {found['parameters'] / 1e6:.0f} M parameters with heads, {args.images} image(s)\n")
            print("| teacher | weights | peak of the first forward above them |\n| --- | ---: | ---: |")
        print(f"| {name} | {found['weights']:,.0f} MB | {found['forward']:,.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
