"""Semantic segmentation by a linear layer on frozen patches (DINOv2, section 7.4): "linear" and "+ms".

Axes: `B` crops, `N` images, `K` classes, `H` x `W` pixels, `P` parameters of colours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from ..config.evaluations import SegmentationEvaluation
from ..data.photometric import adjust_hue, adjust_saturation
from .base import Evaluation, Result, given
from .datasets import IGNORED, LabelMaps
from .dense_heads import HeadMeta, Inference, build_head, save_dense_head
from .dense_prediction import measure_maps
from .dense_training import CropRecipe, train_head, warmed_up
from .metrics.segmentation import class_areas, class_iou, pixel_accuracy
from .registry import register_evaluator

HEAD_FILE = "head.safetensors"
_FIRST_RATE = 1e-6  # of the warm-up, times the learning rate
_BRIGHTNESS, _HUE = 32 / 255, 0.1
_CONTRAST = _SATURATION = 0.5
_RESAMPLES = 1000


@register_evaluator(
    "segmentation",
    config=SegmentationEvaluation,
    title="semantic segmentation by a linear layer, or +ms",
    source="DINOv2 7.4",
    task="image-segmentation",
)
def evaluate_segmentation(evaluation: Evaluation) -> Iterator[Result]:
    """Mean IoU and pixel accuracy of the test set, then the IoU of each class in it. Collective.

    Leaves the head in the output folder: `load_dense_head` and `predict_map` make pictures with it.

    Raises:
        ValueError: maps that cannot be used, more blocks than there are, no labelled pixel.
    """
    config: SegmentationEvaluation = evaluation.config
    backbone = evaluation.backbone
    if config.blocks > backbone.num_layers:
        raise ValueError(f"blocks={config.blocks} of a model of {backbone.num_layers}; use {backbone.num_layers}")
    num_classes = len(config.classes) or config.num_classes or _count_classes(evaluation)
    names = config.classes or [str(number) for number in range(num_classes)]
    train, test = (
        LabelMaps(given(source, key), num_classes, config.ignore_label, config.reduce_zero_label)
        for key, source in (("train", config.train), ("test", config.test))
    )
    side = -(-config.crop_size // backbone.stride) * backbone.stride
    head = build_head(
        HeadMeta(
            kind="segmentation",
            blocks=tuple(range(backbone.num_layers - config.blocks + 1, backbone.num_layers + 1)),
            hidden_size=backbone.width,
            num_layers=backbone.num_layers,
            outputs=num_classes,
            classes=tuple(names),
            inference=Inference(config.resize_size, side, config.stride, tuple(config.scales), config.flip),
        ),
        config.seed,
    )
    recipe = CropRecipe(
        (side, side),
        config.resize_size,
        (config.scale_range[0], config.scale_range[1]),
        max_class_share=config.max_class_share,
        draw_colors=draw_distortion if config.photometric else None,
        apply_colors=distort,
    )
    train_head(evaluation, head, train, recipe, segmentation_loss, lambda update: learning_rate(config, update))
    if evaluation.output and evaluation.is_main:
        save_dense_head(head, evaluation.output / HEAD_FILE)

    def measure(scores: Tensor, truth: Tensor) -> Tensor:
        return class_areas(head.decide(scores), truth, num_classes)

    areas = measure_maps(evaluation, head, test, measure, "Label maps").numpy()
    if not areas[:, 2].any():
        raise ValueError(f"no pixel of {test.where} has a class; is ignore_label={config.ignore_label} right?")
    yield from _results(areas, names, config)


def learning_rate(config: SegmentationEvaluation, update: int) -> float:
    """In `update`, from 0: a straight line down to 0, after a warm-up (mmsegmentation's `poly` of power 1)."""
    rate = config.learning_rate * (1 - update / config.iterations)
    return warmed_up(update, rate, config.warmup_iterations, _FIRST_RATE)


def segmentation_loss(scores: Tensor, labels: Tensor, update: int = 0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `[B, K, H, W]` to `[B, H, W]`, summed over the pixels that have a class, and their number."""
    return nn.functional.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum"), (labels >= 0).sum()


def draw_distortion(rng: np.random.Generator) -> np.ndarray:
    """Parameters `[P]` of mmsegmentation's `PhotoMetricDistortion`: each with probability 1/2, else one of no effect.

    Brightness to be added, contrast before the others, saturation, hue, contrast after them: one of the two is 1.
    """
    brightness = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    contrast, saturation = rng.uniform(1 - _CONTRAST, 1 + _CONTRAST), rng.uniform(1 - _SATURATION, 1 + _SATURATION)
    hue = rng.uniform(-_HUE, _HUE)
    drawn, first = rng.random(4) < 0.5, rng.random() < 0.5
    none = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    parameters = np.array([brightness, contrast, saturation, hue, contrast])
    return np.where([drawn[0], drawn[1] and first, drawn[2], drawn[3], drawn[1] and not first], parameters, none)


def distort(images: Tensor, parameters: Tensor) -> Tensor:
    """Images `[B, C, H, W]` in [0, 1] in other colours, by `parameters` `[B, P]`; hue and saturation for 3 channels."""
    brightness, before, saturation, hue, after = parameters.to(images.dtype).view(len(images), -1, 1, 1, 1).unbind(1)
    images = (images + brightness).clamp_(0, 1).mul_(before).clamp_(0, 1)
    if images.shape[1] == 3:
        images = adjust_hue(adjust_saturation(images, saturation), hue)
    return images.mul_(after).clamp_(0, 1)


def _count_classes(evaluation: Evaluation) -> int:
    """As many as the maps to learn from have."""
    config = evaluation.config
    maps = LabelMaps(given(config.train, "train"), None, config.ignore_label, config.reduce_zero_label)
    found = max(int(maps.map(row).max()) for row in evaluation.progress(range(len(maps)), "Counting classes")) + 1
    if found < 2:
        raise ValueError(f"the label maps of {maps.where} have {found} class; there is nothing to tell apart")
    return found


def _results(areas: np.ndarray, names: Sequence[str], config: SegmentationEvaluation) -> Iterator[Result]:
    """Figures of areas `[N, 3, K]`, with intervals over images drawn with replacement."""
    count = len(areas)
    rng = np.random.default_rng(config.seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(float)
    drawn = (weights @ areas.reshape(count, -1)).reshape(-1, *areas.shape[1:])
    whole = areas.sum(axis=0)
    iou, drawn_iou = class_iou(whole), class_iou(drawn)
    present = ~np.isnan(iou)
    how = f"{config.blocks} block{'s' * (config.blocks > 1)}" + ", multi-scale" * (len(config.scales) > 1)
    mean = float(np.nanmean(iou))
    ends = _interval(_mean(drawn_iou[:, present]))
    yield Result("mean_iou", mean, f"mean IoU (%), linear, {how}", ends, kind="mean_iou")
    ends = _interval(pixel_accuracy(drawn))
    yield Result("pixel_accuracy", float(pixel_accuracy(whole)), f"pixel accuracy (%), linear, {how}", ends)
    keys = [re.sub(r"\W+", "_", name.lower()).strip("_") for name in names]
    for label in np.flatnonzero(present):
        key = keys[label] if keys.count(keys[label]) == 1 else f"{keys[label]}_{label}"
        yield Result(f"iou_{key}", float(iou[label]), f"IoU (%), {names[int(label)]}", _interval(drawn_iou[:, label]))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, without what is NaN."""
    counts = (~np.isnan(values)).sum(axis=-1)
    return np.divide(np.nansum(values, axis=-1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)
