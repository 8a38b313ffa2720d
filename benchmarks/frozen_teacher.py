"""What the frozen teacher of a distillation takes: memory of its weights, and the peak of its forward above them.

    python benchmarks/frozen_teacher.py                  # ViT-L/14 with the published heads, 1 image at 224
    python benchmarks/frozen_teacher.py --preset base --images 8

Each way in a process of its own, or in two that share the teacher (FSDP2): its resident memory above that of a process
without a teacher, per process. The weights are random: memory does not depend on them. Prints a table in Markdown. For
Linux only. `--tiny` only shows that the script runs: its numbers mean nothing.
"""

import argparse
import ctypes
import gc
import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from dinov2_hf.backbones import find_family
from dinov2_hf.config import PrototypeDistillationConfig, load_config
from dinov2_hf.objectives import PrototypeTeacher
from dinov2_hf.objectives.prototypes import build_centering, build_heads, prototype_targets

WAYS = {
    "float32, as the teacher of a pretraining run": (torch.float32, 1),
    "bfloat16": (torch.bfloat16, 1),
    "bfloat16, sharded over 2 processes, each": (torch.bfloat16, 2),
}


def build_teacher(preset: str, prototypes: int) -> tuple[PrototypeDistillationConfig, PrototypeTeacher]:
    """A teacher with heads like those of the released models."""
    keys = ["distill.teacher=x", "data.train.path=x", f"dino.num_prototypes={prototypes}"]
    keys += [f"ibot.num_prototypes={prototypes}"]
    config = load_config("configs/distill/vits14_from_vitg14.yaml", keys, PrototypeDistillationConfig)
    config.model.preset, config.model.num_register_tokens = preset, 4
    backbone = find_family("dinov2").build(config.model, config.crops.global_size, 0.0)
    heads = build_heads(config, backbone.width)
    return config, PrototypeTeacher(backbone, config.colors.mean, config.colors.std, heads)


def megabytes(field: str) -> float:
    """`VmRSS`, resident memory, or `VmHWM`, its peak since `reset_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(answer: Connection, args: argparse.Namespace, way: str, environment: dict[str, str]) -> None:
    """Sends what one way takes in this process."""
    os.environ |= environment
    torch.manual_seed(0)
    dtype, processes = WAYS[way]
    if processes > 1:
        torch.set_num_threads(max((os.cpu_count() or 1) // processes, 1))
        torch.distributed.init_process_group("gloo")
    torch.ones(8, 8) @ torch.ones(8, 8)  # what torch itself wants
    reset_peak()
    before = megabytes("VmRSS")
    config, teacher = build_teacher(args.preset, args.prototypes)
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    teacher.requires_grad_(False).eval().place(torch.device("cpu"), dtype, sharded=processes > 1)
    size = config.crops.global_size
    crops = torch.randn(2 * args.images, 3, size, size)
    all_patches = torch.arange(len(crops) * (size // teacher.backbone.stride) ** 2)
    centering = build_centering(config)
    reset_peak()
    weights = megabytes("VmRSS")
    tokens = teacher(crops, all_patches, config.colors.mean, config.colors.std)
    targets = prototype_targets(config, teacher.heads, centering, tokens, 0.07)
    rows = {term: assigned.rows(0, 1) for term, assigned in targets.items()}  # noqa: F841  as the loss reads them
    peak = megabytes("VmHWM")
    if processes > 1:
        torch.distributed.barrier()
    answer.send({"parameters": parameters, "weights": weights - before, "forward": peak - weights})
    os._exit(0)  # without waiting for gloo's threads


def start(args: argparse.Namespace, way: str) -> dict[str, float]:
    """The largest numbers of all processes of a way."""
    context = multiprocessing.get_context("fork")  # this process imports, and computes nothing
    processes = WAYS[way][1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = []
    for rank in range(processes):
        places = {"RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        here, there = context.Pipe(duplex=False)
        environment = {name: str(value) for name, value in places.items()}
        context.Process(target=measure, args=(there, args, way, environment), daemon=True).start()
        there.close()  # so that a process that fails ends the wait for its answer
        answers.append(here)
    try:
        found = [answer.recv() for answer in answers]
    except EOFError:
        raise SystemExit("a process failed; its error is above") from None
    return {name: max(item[name] for item in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="large", choices=("tiny", "small", "base", "large", "giant"))
    parser.add_argument("--images", type=int, default=1, help="in the batch, two global crops each (default: 1)")
    parser.add_argument("--prototypes", type=int, default=131072, help="of each head (default: 131072)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    args = parser.parse_args()
    if args.tiny:
        args.preset, args.prototypes = "tiny", 64
    os.chdir(Path(__file__).parents[1])
    for number, name in enumerate(WAYS):
        found = start(args, name)
        if number == 0:
            print(f"{args.preset}, {found['parameters'] / 1e6:.0f} M parameters with heads, {args.images} image(s)\n")
            print("| teacher | weights | peak of the first forward above them |\n| --- | ---: | ---: |")
        print(f"| {name} | {found['weights']:,.0f} MB | {found['forward']:,.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
