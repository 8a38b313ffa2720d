"""What chunked losses and the pruned last layer save: peak memory and time against their plain twins, in one run.

    python benchmarks/memory.py
    python benchmarks/memory.py --prototypes 65536 --patches 600 --dtype float32

Each way runs forward and backward in a process of its own; its peak is the resident memory above that of its inputs,
weights and their gradients. The ratio of times is taken from alternating runs. Prints a table in Markdown. `--tiny`
only shows that the script runs: its numbers mean nothing.
"""

import argparse
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

import torch

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.objectives.terms import Logits, ibot_loss, sinkhorn_knopp
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
    """A ViT-S/14 (tiny: ViT-Ti) whose last layer is pruned or not, on 2 x 224 + 8 x 98 crops of each image."""
    preset, images = ("tiny", 1) if args.tiny else ("small", 8)
    model = Dinov2Model(Dinov2Config.preset(preset, attn_implementation="eager", layerscale_value=1e-5)).train()
    crops = [torch.randn(2 * images, 3, 224, 224), torch.randn(8 * images, 3, 98, 98)]
    masked = (torch.rand(images, 256) < 0.3).nonzero()
    cls = [torch.arange(2 * images) * 257, 2 * images * 257 + torch.arange(8 * images) * 50]
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


def serve(requests: Connection, args: argparse.Namespace, task: str, keep: bool) -> None:
    """Runs `task` once for each request, and answers with its seconds and its peak in megabytes."""
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    run = TASKS[task](args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while requests.recv():
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        requests.send((seconds, peak / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prototypes", type=int, default=131072, help="K (default: 131072)")
    parser.add_argument("--patches", type=int, default=1024, help="masked patches M (default: 1024)")
    parser.add_argument("--dtype", default="bfloat16", help="of features and logits (default: bfloat16)")
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs (default: 5)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    args = parser.parse_args()
    if args.tiny:
        args.prototypes, args.patches, args.pairs = 64, 8, 1
    context = multiprocessing.get_context("fork")  # this process imports, and computes nothing

    print(f"M = {args.patches}, K = {args.prototypes}, {args.dtype}, {torch.get_num_threads()} threads\n")
    print("| | peak above inputs | time |\n| --- | ---: | ---: |")
    for pair in (list(TASKS)[:2], list(TASKS)[2:]):

        def start(task: str, keep: bool) -> Connection:
            here, there = context.Pipe()
            context.Process(target=serve, args=(there, args, task, keep), daemon=True).start()
            there.close()  # so that a process that fails ends the wait for its answer
            return here

        def ask(process: Connection) -> tuple[float, float]:
            process.send(True)
            return process.recv()

        peaks = {}
        for task in pair:  # memory: freed blocks go back to the system, so that the peak is that of one pass
            process = start(task, keep=False)
            peaks[task] = ask(process)[1]
            process.send(False)
        processes = {task: start(task, keep=True) for task in pair}  # time: as in training
        times = {task: [] for task in pair}
        for index in range(args.pairs + 1):
            for task, process in processes.items():
                seconds, _ = ask(process)
                if index:
                    times[task].append(seconds)
        for process in processes.values():
            process.send(False)
        for task in pair:
            ratios = sorted(mine / plain for mine, plain in zip(times[task], times[pair[0]]))
            middle = sorted(times[task])[args.pairs // 2]
            print(f"| {task} | {peaks[task]:,.0f} MB | {middle:.2f} s ({ratios[args.pairs // 2]:.2f}) |")


if __name__ == "__main__":
    main()
