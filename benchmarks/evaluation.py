"""Speed of evaluation: features against the stock pipeline, k-NN over 100,000 references, 52 linear heads at once.

    python benchmarks/evaluation.py                # everything, about ten minutes on two cores
    python benchmarks/evaluation.py features --pairs 3

Ratios are of runs that alternate in one process, so that they hold on a noisy machine. `--tiny` only shows that the
script runs: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import load_dataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging

from dinov2_hf import Dinov2Config, Dinov2Model
from dinov2_hf.config import SourceConfig
from dinov2_hf.data import EvalTransform, preprocessor_config
from dinov2_hf.evaluation import weighted_knn
from dinov2_hf.evaluation.datasets import LabeledImages
from dinov2_hf.evaluation.linear import LinearHeads
from dinov2_hf.features import gather_features, open_backbone
from dinov2_hf.train.accelerator import keep_freed_memory
from dinov2_hf.weights.folder import write_folder

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT / "examples" / "data" / "clothing"


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def median(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.2f} (quartiles {low:.2f}, {high:.2f})"


def features(preset: str, pairs: int, batch_size: int, device: torch.device) -> None:
    """Images per second from encoded photographs to CLS: ours and `pipeline("image-feature-extraction")`."""
    images = LabeledImages(SourceConfig(path=str(PHOTOGRAPHS), split="validation"))
    count = 4 * batch_size
    pictures = KeyDataset(load_dataset(str(PHOTOGRAPHS), split="validation").select(range(count)), "image")
    with tempfile.TemporaryDirectory() as folder:
        transform = EvalTransform(256, 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        export = Path(folder) / "export"
        write_folder(export, Dinov2Model(Dinov2Config.preset(preset)), preprocessor_config(transform))
        accelerator = Accelerator(cpu=device.type == "cpu")
        print(
            f"{preset}, patches of 14, at 224 pixels, batches of {batch_size}, {count} photographs, "
            f"{torch.get_num_threads()} threads"
        )
        speed = {}
        for dtype in (torch.float32, torch.bfloat16):
            stock = pipeline("image-feature-extraction", model=str(export), dtype=dtype, device=device)
            ours = open_backbone(str(export), device, dtype)
            some = _First(images, count)

            def with_ours(ours=ours, some=some):
                gather_features(ours, some, ours.transform, accelerator, batch_size=batch_size)

            def with_stock(stock=stock):
                return [output for output in stock(pictures, batch_size=batch_size)]

            with_ours(), with_stock()
            times = [(seconds(with_ours), seconds(with_stock)) for _ in range(pairs)]
            rates = [statistics.median(count / pair[side] for pair in times) for side in (0, 1)]
            speed[dtype] = rates
            name = str(dtype).removeprefix("torch.")
            print(
                f"  {name:9} ours {rates[0]:6.1f} images/s, stock pipeline {rates[1]:6.1f} images/s, "
                f"ratio {median([stock / ours for ours, stock in times])}"
            )
        both = speed[torch.bfloat16][0] / speed[torch.float32][1]
        print(f"  as they come, ours in bfloat16 and the pipeline in float32: ratio {both:.1f}")


class _First:
    """The first images of a source."""

    fingerprint = None

    def __init__(self, images: LabeledImages, count: int) -> None:
        self._images, self._count = images, count

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> tuple[bytes, str]:
        return self._images.read(index)


def knn(count: int, device: torch.device) -> None:
    """Class scores of `count / 10` queries among `count` references of 384 channels."""
    generator = torch.Generator().manual_seed(0)
    references, queries = (torch.randn(n, 384, generator=generator).to(device) for n in (count, count // 10))
    labels = torch.randint(0, 1000, (count,), generator=generator).to(device)
    times = [seconds(lambda: weighted_knn(queries, references, labels, 1000, k=20)) for _ in range(3)]
    print(f"k-NN, {count // 10:,} queries among {count:,} x 384, k = 20: {min(times):.1f} s")


def probe(pairs: int, iterations: int, device: torch.device) -> None:
    """Updates of the 52 heads of the published grid: all at once, and one at a time as plain torch trains them."""
    generator = torch.Generator().manual_seed(0)
    rates = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]
    widths = [384, 768, 1536, 1920]
    labels = torch.randint(0, 1000, (iterations, 128), generator=generator).to(device)
    inputs = {width: torch.randn(iterations, 128, width, generator=generator).to(device) for width in widths}

    def at_once() -> None:
        heads = {width: LinearHeads(width, 1000, rates, iterations, generator).to(device) for width in widths}
        for step in range(iterations):
            for width, stack in heads.items():
                stack.update(inputs[width][step], labels[step], step)

    def one_at_a_time() -> None:
        for width in widths:
            for rate in rates:
                head = torch.nn.Linear(width, 1000, device=device)
                optimizer = torch.optim.SGD(head.parameters(), rate, momentum=0.9)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
                for step in range(iterations):
                    loss = torch.nn.functional.cross_entropy(head(inputs[width][step]), labels[step])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()

    at_once(), one_at_a_time()
    times = [(seconds(at_once), seconds(one_at_a_time)) for _ in range(pairs)]
    each = [statistics.median(pair[side] / iterations for pair in times) * 1e3 for side in (0, 1)]
    print(
        f"52 heads of 1,000 classes on ViT-S features, batch 128: {each[0]:.0f} ms an update at once, "
        f"{each[1]:.0f} ms one at a time, ratio {median([single / once for once, single in times])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["features", "knn", "probe", []], help="default: all")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs that a ratio is taken over (default: 5)")
    parser.add_argument("--batch-size", type=int, default=32, help="of the features (default: 32)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to see that it runs")
    args = parser.parse_args()
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as `dinov2-hf evaluate` does; it serves the stock pipeline too
    chosen = args.what or ["features", "knn", "probe"]
    if "features" in chosen:
        if args.tiny:
            features("tiny", 1, 1, device)
        else:
            features("small", args.pairs, args.batch_size, device)
    if "knn" in chosen:
        knn(1000 if args.tiny else 100_000, device)
    if "probe" in chosen:
        probe(1 if args.tiny else args.pairs, 1 if args.tiny else 40, device)


if __name__ == "__main__":
    main()
