"""Sets of images whose colour is their class, and an evaluation over their mean colours."""

import io
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List
from PIL import Image as Pillow

from dinov2_hf.config import SourceConfig
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation import Evaluation
from dinov2_hf.features import FeatureExtractor

COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


def images_of(shown, said=None, names=tuple(COLORS), broken=(), noise=40, seed=0):
    """A set with an image of 12 x 16 pixels in the colour of each of `shown`, labelled as `said`."""
    rng = np.random.default_rng(seed)
    values, said = [], shown if said is None else said
    for index, name in enumerate(shown):
        buffer = io.BytesIO()
        pixels = np.array(COLORS[name]) + rng.integers(-noise, noise + 1, 3) + rng.integers(-20, 21, (12, 16, 3))
        Pillow.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
        values.append({"bytes": b"a text" if index in broken else buffer.getvalue(), "path": None})
    label = ClassLabel(names=list(names))
    several = len(said) > 0 and isinstance(said[0], list)
    features = Features({"image": Image(), "label": List(label) if several else label})
    return Dataset.from_dict({"image": values, "label": said}, features=features)


def saved(folder, **splits):
    """The path of the splits in `folder`."""
    DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def mean_color(images, count):
    """Features of width 3 for `count` blocks: the mean colour, the earlier blocks its halves, quarters, …"""
    mean = images.mean(dim=(2, 3))
    return [(mean * 0.5**depth, images[:, :, ::4, ::4] * 0.5**depth) for depth in reversed(range(count))]


def evaluation_of(kind, path, backbone=None, output=None, **options):
    """An evaluation with a configuration of the type `kind` of the splits `train` and `test` at `path`."""
    sources = {} if path is None else {"train": SourceConfig(path), "test": SourceConfig(path, "test")}
    settings = dict(resize_size=12, crop_size=8, batch_size=4, num_workers=0) | sources | options
    config = kind(**settings).check()
    transform = EvalTransform(12, 8, [0.5] * 3, [0.25] * 3)
    default = FeatureExtractor(mean_color, transform, 3, 8, 4, torch.device("cpu"))
    backbone = default if backbone is None else replace(backbone, transform=transform)
    return Evaluation(backbone, config, Accelerator(cpu=True), output)
