"""What chunked losses and the pruned last layer save: peak memory and time against their plain twins, in one run.

    python benchmarks/memory.py
    python benchmarks/memory.py --prototypes 65536 --patches 600 --dtype float32

Each way runs forward and backward in a process of its own; its peak is the resident memory above that of its inputs,
weights and their gradients. The ratio of times is taken from alternating runs. Prints a table in Markdown.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from dinov2_hf.losses import Logits, ibot_loss, sinkhorn_knopp
from dinov2_hf.models import Dinov2Config, Dinov2Model
from dinov2_hf.train.accelerator import keep_freed_memory

TEMPERATURE, STUDENT_TEMPERATURE = 0.07, 0.1


def whole_loss(features, prototypes, teacher, weights, num_images):
    """Sinkhorn-Knopp and cross-entropy on whole `[M, K]` matrices, as one writes them down."""
    with torch.no_grad():
        teacher_features, teacher_prototypes = teacher
        teacher_logits = teacher_features @ teacher_prototypes.to(teacher_features.dtype).T
        matrix = torch.exp(teacher_logits.float() / TEMPERATURE).t()
        matrix /= matrix.sum()
        for _ in range(3):
            matrix /= matrix.sum(dim=1, keepdim=True) * matrix.shape[0]
            matrix /= matrix.sum(dim=0, keepdim=True) * matrix.shape[1]
        targets = (matrix * matrix.shape[1]).t()
    logits = features @ prototypes.to(features.dtype).T
    log_probabilities = torch.log_softmax(logits.float() / STUDENT_TEMPERATURE, dim=-1)
    return -((targets * log_probabilities).sum(dim=-1) * weights).sum() / num_images


def chunked_loss(features, prototypes, teacher, weights, num_images):
    targets = sinkhorn_knopp(Logits(*teacher), TEMPERATURE)
    return ibot_loss(features, prototypes, targets, weights, num_images, STUDENT_TEMPERATURE)


def loss_task(args, function):
    dtype = getattr(torch, args.dtype)
    features = torch.nn.functional.normalize(torch.randn(args.patches, 256), dim=1).to(dtype).requires_grad_()
    prototypes = torch.nn.functional.normalize(torch.randn(args.prototypes, 256), dim=1).requires_grad_()
    teacher = features.detach(), prototypes.detach()
    prototypes.grad = torch.zeros_like(prototypes)
    weights = torch.full((args.patches,), 16 / args.patches)

    def run():
        loss = function(features, prototypes, teacher, weights, 16)
        loss.backward()

    return run


def layer_task(args, pruned):
    """A ViT-S/14 whose last layer is pruned or not, on the crops of eight images."""
    model = Dinov2Model(Dinov2Config.preset("small", attn_implementation="eager", layerscale_value=1e-5)).train()
    crops = [torch.randn(16, 3, 224, 224), torch.randn(64, 3, 98, 98)]
    masked = (torch.rand(8, 256) < 0.3).nonzero()
    cls = [torch.arange(16) * 257, 16 * 257 + torch.arange(64) * 50]
    positions = torch.cat([cls[0], masked[:, 0] * 257 + 1 + masked[:, 1], cls[1]])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    dtype = getattr(torch, args.dtype)

    def run():
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            if pruned:
                tokens = model.forward_at(positions, crops)
            else:
                tokens = torch.cat([group.flatten(0, 1) for group in model.forward_packed(crops)])[positions]
        tokens.square().sum().backward()

    return run


TASKS = {
    "whole losses": lambda args: loss_task(args, whole_loss),
    "chunked losses": lambda args: loss_task(args, chunked_loss),
    "whole last layer": lambda args: layer_task(args, False),
    "pruned last layer": lambda args: layer_task(args, True),
}


def serve(args) -> None:
    """Runs one task, once for each line on the standard input, and answers with its time and peak."""
    if args.keep:
        keep_freed_memory()
    torch.manual_seed(0)
    run = TASKS[args.task](args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps({"seconds": seconds, "megabytes": peak / 1024}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prototypes", type=int, default=131072, help="K (default: 131072)")
    parser.add_argument("--patches", type=int, default=1024, help="masked patches M (default: 1024)")
    parser.add_argument("--dtype", default="bfloat16", help="of features and logits (default: bfloat16)")
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs (default: 5)")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        return serve(args)

    print(f"M = {args.patches}, K = {args.prototypes}, {args.dtype}, {torch.get_num_threads()} threads\n")
    print("| | peak above inputs | time |\n| --- | ---: | ---: |")
    for pair in (list(TASKS)[:2], list(TASKS)[2:]):

        def start(task: str, *options: str) -> subprocess.Popen:
            command = [sys.executable, __file__, *sys.argv[1:], "--task", task, *options]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def ask(process: subprocess.Popen) -> dict[str, float]:
            process.stdin.write("\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        peaks = {}
        for task in pair:  # memory: freed blocks go back to the system, so that the peak is that of one pass
            process = start(task)
            peaks[task] = ask(process)["megabytes"]
            process.communicate()
        processes = {task: start(task, "--keep") for task in pair}  # time: as in training
        times = {task: [] for task in pair}
        for index in range(args.pairs + 1):
            for task, process in processes.items():
                seconds = ask(process)["seconds"]
                if index:
                    times[task].append(seconds)
        for process in processes.values():
            process.communicate()
        for task in pair:
            ratios = sorted(mine / plain for mine, plain in zip(times[task], times[pair[0]]))
            middle = sorted(times[task])[args.pairs // 2]
            print(f"| {task} | {peaks[task]:,.0f} MB | {middle:.2f} s ({ratios[args.pairs // 2]:.2f}) |")


if __name__ == "__main__":
    main()
