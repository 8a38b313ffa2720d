"""Classification of clips by the frozen features of some of their frames (DINOv2, section 7.2).

Axes: `N` clips, `P` frames of each, `D` width, `I` inputs of a head, `C` classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import SourceConfig
from ..config.evaluations import VideoEvaluation
from .augmented import Draws
from .base import Evaluation, Result, given
from .datasets import LabeledClips, SampledFrames
from .intervals import wilson
from .linear import LinearHeads
from .probes import check_labels, figure, interval
from .registry import register_evaluator

_TOP = 5


def pool_frames(
    features: Tensor, index: Tensor, num_clips: int, num_frames: int, pooling: str
) -> tuple[Tensor, Tensor]:
    """The clips of which a frame could be read `[N]`, and their features: `[N, D]`, or `[N, P * D]`.

    A frame that could not be read is replaced by the nearest one of its clip that could, the earlier of two.

    Args:
        features: of the readable frames, `[M, D]`.
        index: which they are, `[M]`: clip times `num_frames` plus frame.
        pooling: `mean` or `concat`.
    """
    places = torch.full((num_clips * num_frames,), -1, device=index.device)
    places[index] = torch.arange(len(index), device=index.device)
    places = places.view(num_clips, num_frames)
    readable = places >= 0
    away = torch.arange(num_frames, device=index.device) - torch.arange(num_frames, device=index.device)[:, None]
    cost = 2 * away.abs() + (away > 0)  # [P, P], of a frame in the place of another
    nearest = (cost + 2 * num_frames * ~readable[:, None]).argmin(dim=2)
    clips = readable.any(dim=1).nonzero().squeeze(1)
    frames = features[places.gather(1, nearest)[clips]]
    return clips, frames.mean(dim=1) if pooling == "mean" else frames.flatten(1)


@register_evaluator(
    "video",
    config=VideoEvaluation,
    title="clips by the features of their frames",
    source="DINOv2 7.2",
    task="video-classification",
)
def evaluate_video(evaluation: Evaluation) -> Iterator[Result]:
    """Top-1 accuracy of the best head, and top-5 where there are more than five classes. Collective.

    A clip counts if one of its frames can be decoded.

    Raises:
        ValueError: labels that a probe cannot learn from, or a set without a clip that can be decoded.
    """
    config: VideoEvaluation = evaluation.config
    train, test = _open(config.train, "train"), _open(config.test, "test")
    check_labels(train, test)
    inputs, truth = _features(evaluation, test, "Frames to test on")
    chooser, chooser_truth, where = inputs, truth, "test"
    if config.validation.path:
        validation = _open(config.validation, "validation")
        check_labels(train, validation)
        chooser, chooser_truth = _features(evaluation, validation, "Frames to choose on")
        where = "validation"
    heads = _train(evaluation, *_features(evaluation, train, "Frames to learn from"), len(train.names))
    rates = config.learning_rates
    found = [figure(heads.scores(chooser, head), chooser_truth, "accuracy") for head in range(len(rates))]
    best = max(range(len(found)), key=found.__getitem__)
    scores = heads.scores(inputs, best).cpu()
    words = "mean" if config.pooling == "mean" else "concatenation"
    title = f"{words} of {config.num_frames} frames, best of {len(found)} heads on the {where} set"
    value = figure(scores, truth, "accuracy")
    note, ends = f"learning rate {rates[best]:g}", interval(scores, truth, "accuracy")
    yield Result("accuracy", value, f"clip accuracy (%), {title}", ends, kind="accuracy", note=note)
    if len(train.names) > _TOP:
        right = int((scores.topk(_TOP, dim=1).indices == truth[:, None]).sum())
        title = f"clip accuracy (%), right class among the first {_TOP}, {title}"
        yield Result("accuracy_top5", 100 * right / len(truth), title, wilson(right, len(truth)), kind="accuracy")


def _open(source: SourceConfig, name: str) -> LabeledClips:
    return LabeledClips(given(source, name, "clips"))


def _features(evaluation: Evaluation, clips: LabeledClips, description: str) -> tuple[Tensor, Tensor]:
    """Inputs of a head `[N, I]`, on the device, and classes `[N]`, on the CPU, of the readable clips. Collective."""
    config = evaluation.config
    frames = SampledFrames(clips.frames, config.num_frames)
    found = evaluation.features(frames, description=description)
    features = found.parts["cls"][:, -1]
    rows, inputs = pool_frames(features, found.index, len(clips), config.num_frames, config.pooling)
    if not len(rows):
        raise ValueError(f"no clip of {clips.where} can be decoded; see the log for what is wrong with them")
    return inputs, torch.from_numpy(clips.labels)[rows.cpu()]


def _train(evaluation: Evaluation, inputs: Tensor, labels: Tensor, num_classes: int) -> LinearHeads:
    """All heads, trained. Every process does the same work on the same features."""
    config, device = evaluation.config, inputs.device
    rates = [rate * config.global_batch / 256 for rate in config.learning_rates]
    generator = torch.Generator().manual_seed(config.seed)
    heads = LinearHeads(inputs.shape[1], num_classes, rates, config.iterations, generator).to(device)
    labels, draws = labels.to(device), Draws(len(labels), config.seed)
    for step in evaluation.progress(range(config.iterations), "Linear heads"):
        rows = torch.from_numpy(draws.update(step, config.global_batch)[0]).to(device, non_blocking=True)
        heads.update(inputs[rows], labels[rows], step)
    return heads
