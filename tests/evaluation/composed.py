"""Small sets with maps: photographs in the shape of circles, squares and triangles before a photograph.

The label of a pixel is its shape, which gives the photograph a tint. Depth is a plane, far at the top, with the shapes
standing before it: the nearer a shape, the larger it is; and what is far is dim.
"""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Features, Image
from PIL import Image as Pillow
from torch import nn

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation import Evaluation
from dinov2_hf.features import FeatureExtractor

CLOTHING = Path(__file__).parents[2] / "examples/data/clothing"
CLASSES = ["background", "circle", "square", "triangle"]
_TINTS = np.array([[0.8, 0.8, 0.8], [1.8, 0.2, 0.2], [0.2, 1.8, 0.2], [0.2, 0.2, 1.8]])
_NEAR, _FAR = 2.0, 8.0
SHAPE = (64, 80)
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.25, 0.2]
"""Of `colour_backbone`."""


@lru_cache
def photographs(count=40):
    """Photographs `[H, W, 3]` of the example set."""
    rows = Dataset.from_parquet(str(CLOTHING / "test.parquet")).select(range(count)).cast_column("image", Image())
    return [np.asarray(image.convert("RGB").resize(SHAPE[::-1])) for image in rows["image"]]


def inside(shape, rows, columns, top, left, side):
    """Which pixels lie in a shape of a box of `side` pixels."""
    y, x = (rows - top) / side, (columns - left) / side
    if shape == "circle":
        return (y - 0.5) ** 2 + (x - 0.5) ** 2 <= 0.25
    box = (y >= 0) & (y <= 1) & (x >= 0) & (x <= 1)
    return box if shape == "square" else box & (abs(x - 0.5) <= y / 2)


def compose(rng):
    """An image `[H, W, 3]`, its labels `[H, W]` and its depths in metres `[H, W]`."""
    photos = photographs()
    height, width = SHAPE
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros(SHAPE, dtype=np.uint8)
    depth = np.linspace(_FAR, _NEAR, height)[:, None].repeat(width, axis=1)
    pixels = photos[rng.integers(len(photos))].astype(float)
    for distance in sorted(rng.uniform(_NEAR, _FAR - 2, 3), reverse=True):
        label = int(rng.integers(1, len(CLASSES)))
        side = int(100 / distance)
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        mask = inside(CLASSES[label], rows, columns, top, left, side)
        photo = (photos[rng.integers(len(photos))] / 2 + 50) * _TINTS[label]
        pixels[mask], labels[mask], depth[mask] = photo[mask], label, distance
    pixels *= (1.2 - depth / 10)[:, :, None]
    return pixels.clip(0, 255).astype(np.uint8), labels, depth


def png(values):
    buffer = io.BytesIO()
    Pillow.fromarray(values).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def composed(count, seed=0, depth_unit=0.001):
    """A set with columns `image`, `annotation` (labels) and `depth` (16 bits, in `depth_unit` metres)."""
    rng = np.random.default_rng(seed)
    made = [compose(rng) for _ in range(count)]
    columns = {
        "annotation": [png(labels) for _, labels, _ in made],  # before the images, as in published sets
        "depth": [png((depth / depth_unit).round().astype(np.uint16)) for _, _, depth in made],
        "image": [png(pixels) for pixels, _, _ in made],
    }
    return Dataset.from_dict(columns, features=Features({name: Image() for name in columns}))


def save_composed(folder, train=24, validation=8):
    """The path of a saved set of composed images."""
    sets = DatasetDict({"train": composed(train), "validation": composed(validation, seed=1)})
    sets.save_to_disk(str(folder))
    return str(folder)


def random_backbone(layers=4, width=48, patch=8):
    """An untrained network: of patches it knows colour, texture and place."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        patch_size=patch,
        image_size=64,
        layerscale_value=0.1,
    )
    transform = EvalTransform(64, 64, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return FeatureExtractor.of(Dinov2Model(config), transform, "tiny")


def dense_evaluation(kind, path, backbone=None, output=None, train=None, test=None, **options):
    """An evaluation of the set at `path`, its config a `kind`; `train` and `test` are keys of its sources."""
    config = kind(**{"num_workers": 0, "warmup_iterations": 0} | options)
    config.train.path = config.test.path = path
    for source, keys in ((config.train, train), (config.test, test)):
        for key, value in (keys or {}).items():
            setattr(source, key, value)
    return Evaluation(backbone or random_backbone(), config.check(), Accelerator(cpu=True), output)


def colour_backbone(patch=4):
    """Features of width 3: the mean colour of a patch, in two blocks."""

    def layers(images, count):
        patches = nn.functional.avg_pool2d(images, patch)
        return [(patches.mean(dim=(2, 3)), patches * (block + 1)) for block in range(2)][-count:]

    return FeatureExtractor(layers, EvalTransform(8, 8, MEAN, STD), 3, patch, 2, torch.device("cpu"))


def pixels_of(height, width, seed=0):
    """Noise `[C, height, width]`."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))
