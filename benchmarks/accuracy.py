"""k-NN accuracy of exported models beside raw pixels and the same backbones at random initialisation.

    python benchmarks/accuracy.py runs/quickstart --images examples/data/clothing
    python benchmarks/accuracy.py runs/seed-0 runs/seed-1 runs/seed-2 --images examples/data/clothing

Takes the output folders of runs that differ by their seed. Weighted k-NN (k = 20, T = 0.07, cosine) on the default
features of each export, as stock `AutoModel` and `AutoImageProcessor` give them. Prints a table in Markdown for three
measures: leave-one-out over train and validation, validation against train, and test against train. Pixels: the best,
for that measure, of 16 x 16 grey, 16 x 16 and 32 x 32 colour pixels, each with and without the mean of the image
subtracted. Accuracies are means over the runs. The differences have 95 % intervals of a bootstrap over the images, each
of which counts with all methods and all runs (paired). `--require 5 20` ends with status 1 unless the accuracy is
5 points above the pixels and 20 above random initialisation, with the lower ends of the intervals above 0, on
validation and test. `--tiny` takes few images, to see that it runs: its numbers mean nothing.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict, load_dataset
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from dinov2_hf import Run
from dinov2_hf.backbones import find_family
from dinov2_hf.evaluation.knn import weighted_knn
from dinov2_hf.weights.folder import write_folder

MEASURES = ("leave-one-out", "validation", "test")
PIXELS = ((16, "L"), (16, "RGB"), (32, "RGB"))
"""Side and mode of the pixel baselines."""
BATCH = 128
DRAWS = 2000
"""Resamples of the bootstrap."""


@dataclass
class Split:
    """The images and the labels `[N]` of a split."""

    images: list[Image.Image]
    labels: Tensor


def load_splits(images: Path, most: int | None = None) -> dict[str, Split]:
    """The splits train, validation and test of a folder of classes or of Parquet files, `most` images of each."""
    data = load_dataset(str(images))
    assert isinstance(data, DatasetDict)
    if missing := {"train", "validation", "test"} - set(data):
        raise SystemExit(f"{images} lacks the splits {', '.join(sorted(missing))}")
    heads = {name: split.select(range(min(most or len(split), len(split)))) for name, split in data.items()}
    return {
        name: Split([image.convert("RGB") for image in split["image"]], torch.tensor(split["label"]))
        for name, split in heads.items()
    }


def batches(images: Sequence[Image.Image]) -> Iterator[Sequence[Image.Image]]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


@torch.inference_mode()
def default_features(export: Path, images: Sequence[Image.Image]) -> Tensor:
    """`[N, D]` of a model that stock transformers loads: CLS, or the pooled map of a convolutional network."""
    model, processor = AutoModel.from_pretrained(export).eval(), AutoImageProcessor.from_pretrained(export)
    found = []
    for batch in batches(images):
        output = model(**processor(images=list(batch), return_tensors="pt"))
        hidden = output.last_hidden_state
        found.append(output.pooler_output.flatten(1) if hidden.ndim == 4 else hidden[:, 0])
    return torch.cat(found)


def pixel_features(size: int, mode: str, centered: bool, images: Sequence[Image.Image]) -> Tensor:
    """`[N, size * size * channels]`, resized with Pillow's bicubic filter."""
    squares = [np.asarray(image.convert(mode).resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.from_numpy(np.stack(squares)).flatten(1).float()
    return pixels - pixels.mean(1, keepdim=True) if centered else pixels


def correct_in(features: dict[str, Tensor], splits: dict[str, Split]) -> dict[str, np.ndarray]:
    """For each measure, which queries get their class, `[N]` of 0 and 1."""
    labels = {name: split.labels for name, split in splits.items()}
    classes = int(max(each.max() for each in labels.values())) + 1
    both = torch.cat([features["train"], features["validation"]])
    labels_of_both = torch.cat([labels["train"], labels["validation"]])
    # each image is its own nearest neighbour: it votes among 21 with the weight exp(1 / T - 1 / T) = 1, taken back here
    scores = weighted_knn(both, both, labels_of_both, classes, k=21)
    scores[torch.arange(len(both)), labels_of_both] -= 1
    found = {"leave-one-out": (scores.argmax(1) == labels_of_both)}
    for name in MEASURES[1:]:
        scores = weighted_knn(features[name], features["train"], labels["train"], classes)
        found[name] = scores.argmax(1) == labels[name]
    return {name: each.double().numpy() for name, each in found.items()}


def export_of(run: Run) -> Path:
    """The export of the first student of a run."""
    return next(iter(run.exports.values()))


def random_export(run: Run, folder: Path) -> Path:
    """The backbone of a run at a random initialisation by the run's seed, exported like the run's own."""
    config = run.config
    torch.manual_seed(config.train.seed)
    model = find_family(config.model.family).build(config.model, config.crops.global_size, 0.0)
    write_folder(folder, model, json.loads((export_of(run) / "preprocessor_config.json").read_text()))
    return folder


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `differences` `[N]` by a bootstrap over the images."""
    draws = np.random.default_rng(0).integers(len(differences), size=(DRAWS, len(differences)))
    low, high = np.quantile(differences[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def with_interval(differences: np.ndarray) -> str:
    """The mean of `differences` `[N]` and its interval."""
    low, high = interval(differences)
    return f"{differences.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def measure(runs: Sequence[Run], splits: dict[str, Split]) -> dict[str, dict[str, np.ndarray]]:
    """For `trained`, `random` and `pixels` and each measure, which queries are right, `[N]`: means over the runs."""

    def correct_of(export: Path) -> dict[str, np.ndarray]:
        return correct_in({name: default_features(export, split.images) for name, split in splits.items()}, splits)

    with tempfile.TemporaryDirectory() as folder:
        trained = [correct_of(export_of(run)) for run in runs]
        random = [correct_of(random_export(run, Path(folder, str(number)))) for number, run in enumerate(runs)]
    pixels = [
        correct_in({name: pixel_features(*kind, centered, split.images) for name, split in splits.items()}, splits)
        for kind in PIXELS
        for centered in (False, True)
    ]
    return {
        "pixels": {name: max((each[name] for each in pixels), key=np.mean) for name in MEASURES},
        "random": {name: np.mean([each[name] for each in random], axis=0) for name in MEASURES},
        "trained": {name: np.mean([each[name] for each in trained], axis=0) for name in MEASURES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders of runs, one a seed")
    parser.add_argument("--images", type=Path, required=True, help="a folder with train, validation and test")
    parser.add_argument("--require", nargs=2, type=float, metavar=("PIXELS", "RANDOM"), help="points above both")
    parser.add_argument("--tiny", action="store_true", help="few images, to see that it runs")
    args = parser.parse_args()
    found = measure([Run(folder) for folder in args.runs], load_splits(args.images, 40 if args.tiny else None))
    short = []
    print(f"Mean of {len(args.runs)} run(s), % (95 % interval over the images)\n")
    print("| | pixels | random initialisation | trained | above pixels | above random initialisation |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in MEASURES:
        row = [f"{100 * found[way][name].mean():.1f}" for way in ("pixels", "random", "trained")]
        for way, wanted in zip(("pixels", "random"), args.require or (None, None), strict=True):
            differences = 100 * (found["trained"][name] - found[way][name])
            row.append(with_interval(differences))
            if (
                wanted is not None
                and name in MEASURES[1:]
                and (differences.mean() < wanted or interval(differences)[0] <= 0)
            ):
                short.append(f"{name}: {row[-1]} above {way}, {wanted:g} wanted")
        print(f"| {name} | {' | '.join(row)} |")
    if short:
        sys.exit("\n".join(short))


if __name__ == "__main__":
    main()
