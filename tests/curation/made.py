"""Made pictures, planted duplicates, and what is compared of two curations."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

ROOT = Path(__file__).parents[2]
NUM_DISCS = 12


def disc(seed: int) -> Image.Image:
    """The made class: a bright disc on black with a symmetric pattern of its own."""
    rng = np.random.default_rng(seed)
    coarse = (rng.integers(0, 128, (3, 3, 1)) + rng.integers(0, 128, (3, 3, 3))).astype(np.uint8)
    half = np.asarray(Image.fromarray(coarse).resize((48, 96), Image.Resampling.BICUBIC), dtype=np.float32)
    picture = np.concatenate([half, half[:, ::-1]], axis=1) + 30
    rows, columns = np.mgrid[:96, :96]
    edge = np.clip((44 - np.hypot(rows - 47.5, columns - 47.5)) / 4, 0, 1)
    shade = np.linspace(0.97, 1.03, 96)[:, None]  # so that a flipped one is not the same to the byte
    return Image.fromarray((picture * shade * edge[..., None]).clip(0, 255).astype(np.uint8))


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


PLANTED = {
    "resized": lambda image: image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BICUBIC),
    "recompressed": lambda image: recompressed(image, 40),
    "cropped": lambda image: image.crop((1, 2, image.width - 2, image.height - 1)),
    "flipped": ImageOps.mirror,
    "recoloured": lambda image: ImageEnhance.Color(image).enhance(1.3),
}


def save(path, image):
    path.parent.mkdir(exist_ok=True)
    image.save(path)


def result_of(folder):
    """Digests of every file that a stage leaves for those after it, and of the images."""
    files = [*folder.glob("stages/*/parts/*"), *folder.glob("stages/*/*.parquet"), *folder.glob("images/train-*")]
    assert files
    return {os.path.relpath(file, folder): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
