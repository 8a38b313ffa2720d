"""Recall and precision of deduplication on the bundled photographs with planted duplicates of five kinds.

    python benchmarks/dedup_quality.py --model MODEL [--images 400] [--thresholds 0.6 0.8 0.9]

Every photograph gets one copy of each kind. Recall is the share of the copies that the rule connects to their original,
precision the share of all connected pairs that are of one photograph, and `merged` how many photographs, of all, are in
a component with another one. The photographs may hold true duplicates, which count as merged.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from PIL import Image, ImageEnhance, ImageOps

from dinov2_hf.curation.hashes import distance, perceptual_hash
from dinov2_hf.curation.vectors import components
from dinov2_hf.features import open_backbone

PHOTOGRAPHS = Path(__file__).parents[1] / "examples/data/clothing/train.parquet"


def recompressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    """A tenth of each side less, from the middle."""
    width, height = image.width // 20, image.height // 20
    return image.crop((width, height, image.width - width, image.height - height))


KINDS = {
    "resized to 60 %": lambda image: image.resize(
        (image.width * 3 // 5, image.height * 3 // 5), Image.Resampling.BICUBIC
    ),
    "JPEG quality 40": recompressed,
    "cropped to 90 %": cropped,
    "flipped": ImageOps.mirror,
    "saturation 1.4, brightness 1.15": lambda image: ImageEnhance.Brightness(
        ImageEnhance.Color(image).enhance(1.4)
    ).enhance(1.15),
}


def embed(model: str, images: list[Image.Image], size: int, part: str) -> np.ndarray:
    """Unit vectors `[n, D]` of the images, squeezed to nothing but a centre crop as in curation."""
    backbone = open_backbone(model, "cuda" if torch.cuda.is_available() else "cpu")
    transform = type(backbone.transform)(size, size, backbone.transform.mean, backbone.transform.std)
    vectors = []
    for start in range(0, len(images), 64):
        files = [io.BytesIO() for _ in images[start : start + 64]]
        for file, image in zip(files, images[start : start + 64]):
            image.save(file, "PNG")
        pixels = torch.stack([torch.from_numpy(transform.pixels(file.getvalue())) for file in files])
        cls, patches = backbone.features(transform.normalize(pixels.to(backbone.device)), 1)[-1]
        vectors.append((cls if part == "cls" else patches.mean(dim=(2, 3))).cpu().numpy())
    vectors = np.concatenate(vectors)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(connected: np.ndarray, count: int) -> list[str]:
    """A row of the table, of what the rule connects, symmetric `[6 n, 6 n]`; row `k n + i` is copy `k` of image `i`."""
    recalls = [np.diagonal(connected, kind * count)[:count].mean() for kind in range(1, len(KINDS) + 1)]
    pairs = np.argwhere(np.triu(connected, 1))
    same = pairs[:, 0] % count == pairs[:, 1] % count
    labels = components([pairs], len(connected))
    of_photograph = {label: set() for label in labels}
    for row, label in enumerate(labels):
        of_photograph[label].add(row % count)
    merged = set().union(*(members for members in of_photograph.values() if len(members) > 1), set())
    precision = f"{100 * same.mean():.2f} %" if len(pairs) else "-"
    return [*(f"{100 * recall:.1f} %" for recall in recalls), precision, f"{len(merged)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run, an export, or any vision transformer of transformers")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=96, help="pixels that the model sees")
    parser.add_argument("--part", choices=("cls", "mean"), default="cls")
    parser.add_argument("--distances", type=int, nargs="+", default=[0, 2, 4, 6])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.6, 0.7, 0.8, 0.9, 0.95])
    parser.add_argument("--data", default=str(PHOTOGRAPHS), help="a parquet file of photographs")
    args = parser.parse_args()
    rows = load_dataset("parquet", data_files=args.data, split=f"train[:{args.images}]")
    originals = [row["image"].convert("RGB") for row in rows]
    images = originals + [make(image) for make in KINDS.values() for image in originals]
    print(f"| rule | {' | '.join(KINDS)} | precision | merged of {len(originals)} |")
    print("| --- |" + " --- |" * (len(KINDS) + 2))
    hashes = np.array([perceptual_hash(np.asarray(image.convert("L"))) for image in images], dtype=np.uint64)
    differing = np.stack([distance(hashes, own) for own in hashes])
    for value in args.distances:
        print(f"| hash, {value} bits | {' | '.join(measure(differing <= value, len(originals)))} |")
    vectors = embed(args.model, images, args.size, args.part)
    cosines = vectors @ vectors.T
    for value in args.thresholds:
        print(f"| cosine > {value:g} | {' | '.join(measure(cosines > value, len(originals)))} |")


if __name__ == "__main__":
    main()
