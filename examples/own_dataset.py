"""Train on images that are Python objects: a filtered `datasets.Dataset`, and a function that draws its images.

    python examples/own_dataset.py --output runs/own_dataset train.epochs=2

A list of paths, arrays or PIL images works too; docs/extend/source.md has sources of other kinds. Words `key=value`
override the recipe `quickstart`. Half a minute on two CPU cores.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset

from dinov2_hf import pretrain

CLOTHING = Path(__file__).parent / "data/clothing"
SETTINGS = ["train.epochs=0.5", "knn.reference.path=null", "optim.warmup_epochs=0.1"]


def shoes_and_hats():
    """The bundled photographs of two classes."""
    photographs = load_dataset("parquet", data_files=str(CLOTHING / "train.parquet"), split="train")
    names = photographs.features["label"].names
    kept = photographs.filter(lambda label: names[label] in ("shoes", "hat"), input_columns="label")
    print(f"{len(kept)} of {len(photographs)} photographs")
    return kept


def gradients():
    """64 images of two colours each, drawn again in the same way for every pass."""
    for number in range(64):
        rng = np.random.default_rng(number)
        start, stop = rng.integers(0, 255, (2, 3))
        columns = np.linspace(start, stop, 48)
        yield np.broadcast_to(columns, (48, 48, 3)).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/own_dataset"), help="folder of the runs")
    parser.add_argument("keys", nargs="*", metavar="key=value")
    args = parser.parse_args()

    for name, images in {"shoes_and_hats": shoes_and_hats(), "gradients": gradients}.items():
        run = pretrain(images, args.output / name, config="quickstart", keys=[*SETTINGS, *args.keys])
        losses = run.metrics()["loss"]
        print(f"{name}: loss {losses.iloc[0]:.3f} at first, {losses.iloc[-1]:.3f} at the end; model in {run.export()}")


if __name__ == "__main__":
    main()
