"""Monocular depth on frozen patches (DINOv2, section 7.4): linear layers over bins, and DPT.

Axes: `B` crops, `C` channels, `H` x `W` pixels, `P` parameters of colours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..config.evaluations import DepthEvaluation, DepthTestConfig
from .base import Evaluation, Result, given
from .datasets import DepthMaps
from .dense_heads import DenseHead, HeadMeta, Inference, build_head, save_dense_head
from .dense_prediction import measure_maps, size_of
from .dense_training import CropRecipe, train_head, warmed_up
from .intervals import bootstrap
from .metrics.depth import DEPTH_METRICS, crop_mask, depth_errors
from .registry import register_evaluator

logger = logging.getLogger(__name__)

HEAD_FILE = "head.safetensors"
_FIRST_RATE = 1e-3  # of the warm-up, times the learning rate
_SMALL = 1e-3  # metres, so that logarithms are finite
_MEAN_SHARE = 0.15
_STEPS = (1, 2, 4, 6)  # pixels between those that the gradient loss looks at
_GAMMA = _TINT = 0.1
_TITLES = {"linear": "lin. 1", "linear4": "lin. 4", "dpt": "DPT"}
_ODD = {24: (5, 12, 18, 24)}  # published for ViT-L; evenly it would be 6


@register_evaluator(
    "depth",
    config=DepthEvaluation,
    title="monocular depth by lin. 1, lin. 4 or DPT",
    source="DINOv2 7.4",
    task="depth-estimation",
)
def evaluate_depth(evaluation: Evaluation) -> Iterator[Result]:
    """Errors of depth on the test set, then on the sets of `transfer`. Collective.

    Leaves the head in the output folder: `load_dense_head` and `predict_map` make pictures with it.

    Raises:
        ValueError: maps that cannot be used, a model with too few blocks, no valid pixel.
    """
    config: DepthEvaluation = evaluation.config
    backbone = evaluation.backbone
    for key, source in (("train", config.train), ("test", config.test)):
        given(source, key)
    train, tests = DepthMaps(config.train, config.train.depth_scale), {None: config.test} | config.transfer
    sets = {name: DepthMaps(source, source.depth_scale) for name, source in tests.items()}
    blocks = depth_blocks(backbone.num_layers, config.head)
    head = build_head(
        HeadMeta(
            kind="dpt_depth" if config.head == "dpt" else "linear_depth",
            blocks=blocks,
            hidden_size=backbone.width,
            num_layers=backbone.num_layers,
            outputs=config.dpt_channels if config.head == "dpt" else config.num_bins,
            depth_range=(config.min_depth, config.max_depth),
            inference=Inference(config.resize_size, flip=config.flip),
            final_norm=config.final_norm,
            dpt_grid=config.dpt_grid,
        ),
        config.seed,
    )
    patch = backbone.stride
    draw_colors = partial(draw_tint, channels=len(backbone.transform.mean), brightness=config.brightness)
    height, width = (-(-side // patch) * patch for side in config.crop)
    recipe = CropRecipe(
        (height, width),
        config.resize_size,
        rotation=config.rotation,
        draw_colors=draw_colors if config.photometric else None,
        apply_colors=tint,
    )
    loss = partial(depth_loss, config=config)
    schedule = partial(learning_rate, config)
    train_head(evaluation, head, train, recipe, loss, schedule, config.max_gradient_norm)
    if evaluation.output and evaluation.is_main:
        save_dense_head(head, evaluation.output / HEAD_FILE)
    for name, images in sets.items():
        yield from _results(evaluation, head, images, tests[name], name)


def depth_blocks(num_layers: int, head: str) -> tuple[int, ...]:
    """The blocks, from 1, that a head takes: the last one, or four evenly through the network (published for ViT-L: 5,
    12, 18, 24).

    Raises:
        ValueError: fewer than four blocks.
    """
    if head == "linear":
        return (num_layers,)
    if num_layers < 4:
        raise ValueError(f"head={head} takes four blocks, and the model has {num_layers}; use head=linear")
    return _ODD.get(num_layers) or tuple(num_layers * quarter // 4 for quarter in (1, 2, 3, 4))


def learning_rate(config: DepthEvaluation, update: int) -> float:
    """In `update`, from 0: half a cosine down to 0, after a warm-up."""
    rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * update / config.iterations))
    return warmed_up(update, rate, config.warmup_iterations, _FIRST_RATE)


def depth_loss(scores: Tensor, truth: Tensor, update: int, config: DepthEvaluation) -> tuple[Tensor, Tensor]:
    """SigLoss and gradient loss of depths `[B, 1, H, W]`, summed over the images with a valid pixel, and their number.

    Of each image by itself, so that it is the same however images are shared out; published: of the two of a GPU.
    """
    depth = scores.squeeze(1)
    valid = valid_pixels(truth, config)
    losses = sig_loss(depth, truth, valid, update < config.mean_iterations)
    if config.gradient_weight:
        losses = losses + config.gradient_weight * gradient_loss(depth, truth, valid)
    return losses.sum(), valid.flatten(1).any(dim=1).sum()


def valid_pixels(truth: Tensor, config: DepthEvaluation) -> Tensor:
    """Where a depth is known that lies in the range."""
    return (truth > config.min_depth) & (truth < config.max_depth)


def sig_loss(depth: Tensor, truth: Tensor, valid: Tensor, mean_alone: bool = False) -> Tensor:
    """Scale-invariant loss of each image, `[B]` (Eigen et al., 2014; AdaBins: Bhat et al., 2021).

    The root of the variance of the logarithms' difference and 0.15 times its squared mean, or of the latter alone
    (`mean_alone`: the published warm-up); 0 without valid pixels. Arguments are `[B, H, W]`, in metres.
    """
    count = valid.flatten(1).sum(dim=1)
    difference = (torch.log(depth + _SMALL) - torch.log(truth + _SMALL)) * valid
    mean = difference.flatten(1).sum(dim=1) / count.clamp(min=1)
    square = _MEAN_SHARE * mean**2
    if not mean_alone:
        spread = (difference - mean.view(-1, 1, 1)) ** 2 * valid
        square = square + spread.flatten(1).sum(dim=1) / (count - 1).clamp(min=1)
    return square.clamp(min=1e-12).sqrt() * (count > 0)  # the slope of a root is infinite at 0


def gradient_loss(depth: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Difference of the logarithms' slopes of each image, `[B]` (MegaDepth: Li and Snavely, 2018).

    Over every pixel, and every second, fourth and sixth. The published code takes the slopes along the axes of images
    and channels by oversight; these are along rows and columns.
    """
    total = depth.new_zeros(len(depth))
    for step in _STEPS:
        part = [each[:, ::step, ::step] for each in (depth, truth, valid)]
        difference, known = torch.log(part[0] + _SMALL) - torch.log(part[1] + _SMALL), part[2]
        count = known.flatten(1).sum(dim=1).clamp(min=1)
        for axis in (1, 2):
            if (length := difference.shape[axis] - 2) > 0:
                pairs = known.narrow(axis, 0, length) & known.narrow(axis, 2, length)
                slopes = (difference.narrow(axis, 0, length) - difference.narrow(axis, 2, length)).abs() * pairs
                total = total + slopes.flatten(1).sum(dim=1) / count
    return total


def draw_tint(rng: np.random.Generator, channels: int, brightness: float) -> np.ndarray:
    """Gamma, brightness and a factor for each channel, `[2 + C]`; with probability 1/2 all 1."""
    gamma, light = rng.uniform(1 - _GAMMA, 1 + _GAMMA), rng.uniform(1 - brightness, 1 + brightness)
    parameters = np.array([gamma, light, *rng.uniform(1 - _TINT, 1 + _TINT, channels)])
    return parameters if rng.random() < 0.5 else np.ones_like(parameters)


def tint(images: Tensor, parameters: Tensor) -> Tensor:
    """Images `[B, C, H, W]` in [0, 1] in other colours, by `parameters` `[B, 2 + C]`."""
    gamma, light, factors = (part[:, :, None, None] for part in parameters.split([1, 1, images.shape[1]], dim=1))
    return (images**gamma * light * factors).clamp_(0, 1)


def _results(
    evaluation: Evaluation, head: DenseHead, images: DepthMaps, source: DepthTestConfig, name: str | None
) -> Iterator[Result]:
    config: DepthEvaluation = evaluation.config

    def measure(scores: Tensor, truth: Tensor) -> Tensor:
        depth = head.decide(scores)
        valid = valid_pixels(truth, config) & crop_mask(size_of(truth), source.eval_crop).to(truth.device)
        if config.median_scaling:
            scaled = depth * truth[valid].nanmedian() / depth[valid].nanmedian()
            depth = scaled.clamp(config.min_depth, config.max_depth)
        return depth_errors(depth, truth, valid)

    errors = measure_maps(evaluation, head, images, measure, "Depth maps").double().numpy()
    known = ~np.isnan(errors).any(axis=1)
    if not known.any():
        raise ValueError(
            f"no depth map of {images.where} has a depth between min_depth={config.min_depth} and max_depth="
            f"{config.max_depth} metres; is depth_scale={source.depth_scale} right?"
        )
    if not known.all() and evaluation.is_main:
        logger.warning("left out %s images of %s without a valid depth", int((~known).sum()), images.where)
    errors = errors[known]
    for metric, title, values in zip(DEPTH_METRICS, DEPTH_METRICS.values(), errors.T):
        ends = bootstrap(np.mean, values, config.seed)
        key = metric if name is None else f"{metric}_on_{name}"
        yield Result(key, float(values.mean()), f"depth, {title}, {_TITLES[config.head]}", ends, name)
