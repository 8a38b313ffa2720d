"""Maps of whole images out of a frozen backbone and a head: windows, scales, flips; and all maps of a test set.

Axes: `C` channels, `H` x `W` pixels, `K` scores of a pixel, `N` images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.broken import leave_out
from ..data.decode import DEFAULT_DECODING, BrokenImage, Decoding
from ..data.photometric import as_unit
from ..data.workers import WorkerLoader
from ..features import FeatureExtractor
from .base import Evaluation
from .datasets import DenseImages
from .dense_heads import BlockFeatures, DenseHead, HeadMeta, Inference

Size = tuple[int, int]
"""Height and width in pixels."""
_LONGEST = 4
"""Times the short side: more of the long one is not looked at, as published (512 and 2,048)."""


def predict_map(
    backbone: FeatureExtractor, head: DenseHead, pixels: Tensor | np.ndarray, batch_size: int = 16
) -> Tensor:
    """The map of one image at its own size, `[H, W]`: classes (int64) or depths in metres (float32), by the head.

    As in the evaluation that the head is from: with its windows, scales and flips.

    Args:
        pixels: `[C, H, W]`, uint8 or in [0, 1]; sides of any length.
        batch_size: windows in a forward of the backbone.

    Raises:
        ValueError: a head for another backbone.
    """
    check_backbone(backbone, head)
    pixels = torch.as_tensor(np.ascontiguousarray(pixels) if isinstance(pixels, np.ndarray) else pixels)
    return head.decide(predict_scores(backbone, head, pixels, size_of(pixels), batch_size))


def size_of(pixels: Tensor) -> Size:
    """Height and width of `[..., H, W]`."""
    height, width = pixels.shape[-2:]
    return height, width


def check_backbone(backbone: FeatureExtractor, head: DenseHead) -> None:
    """Refuses a backbone that the head is not for.

    Raises:
        ValueError: naming both.
    """
    meta = head.meta
    if (meta.hidden_size, meta.num_layers) != (backbone.width, backbone.num_layers):
        raise ValueError(
            f"the head is for a backbone of {meta.num_layers} blocks of width {meta.hidden_size}, and {backbone.name} "
            f"has {backbone.num_layers} of {backbone.width}; give the backbone that it was trained on"
        )


def block_features(backbone: FeatureExtractor, meta: HeadMeta, images: Tensor) -> BlockFeatures:
    """Features of normalised images `[B, C, H, W]` after the blocks that a head takes. Collective.

    Raises:
        ValueError: a backbone that gives features after its final norm only, and a head that takes others.
    """
    layers = backbone.num_layers - min(meta.blocks) + 1
    found = backbone.features(images, layers) if meta.final_norm else backbone.features(images, layers, False)
    return [found[block - backbone.num_layers - 1] for block in meta.blocks]


@torch.no_grad()
def predict_scores(backbone: FeatureExtractor, head: DenseHead, pixels: Tensor, size: Size, batch_size: int) -> Tensor:
    """Averaged scores `[K, *size]` of an image `[C, H, W]`, to be decided on by the head."""
    inference = head.meta.inference
    total: Tensor | None = None
    unit = as_unit(pixels.to(backbone.device)).unsqueeze(0)
    for scale in inference.scales:
        image = unit
        resized = scaled_size(size_of(unit), inference.resize_size, scale)
        if resized != size_of(unit):
            image = nn.functional.interpolate(unit, resized, mode="bicubic", antialias=True).clamp_(0, 1)
        image = backbone.transform.normalize(image)
        for mirrored in (False, True) if inference.flip else (False,):
            scores = sliding_scores(backbone, head, image.flip(3) if mirrored else image, batch_size)
            scores = scores.flip(3) if mirrored else scores
            scores = head.average(nn.functional.interpolate(scores, size, mode="bilinear"))
            total = scores if total is None else total.add_(scores)
    assert total is not None
    return total[0] / (len(inference.scales) * (1 + inference.flip))


def sliding_scores(backbone: FeatureExtractor, head: DenseHead, image: Tensor, batch_size: int) -> Tensor:
    """Scores `[1, K, H, W]` of a normalised image `[1, C, H, W]`; where windows overlap, their mean."""
    height, width = image.shape[2:]
    places = windows((height, width), head.meta.inference)
    total: Tensor | None = None
    counts = image.new_zeros(height, width)
    for start in range(0, len(places), batch_size):
        chunk = places[start : start + batch_size]
        parts = torch.cat([image[:, :, top:bottom, left:right] for top, left, bottom, right in chunk])
        for (top, left, bottom, right), scores in zip(chunk, _padded_scores(backbone, head, parts).split(1)):
            if len(places) == 1:
                return scores
            if total is None:
                total = scores.new_zeros(1, scores.shape[1], height, width)
            total[:, :, top:bottom, left:right] += scores
            counts[top:bottom, left:right] += 1
    assert total is not None
    return total / counts


def _padded_scores(backbone: FeatureExtractor, head: DenseHead, images: Tensor) -> Tensor:
    """Scores `[B, K, H, W]` of images of any size, padded all around to multiples of the patch."""
    height, width = images.shape[2:]
    more = [-side % backbone.stride for side in (height, width)]
    top, left = (side // 2 for side in more)
    padded = nn.functional.pad(images, (left, more[1] - left, top, more[0] - top))
    scores = head(block_features(backbone, head.meta, padded))
    scores = nn.functional.interpolate(scores, padded.shape[2:], mode="bilinear")
    return scores[:, :, top : top + height, left : left + width]


def windows(size: Size, inference: Inference) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom and right of the windows over an image, all of one size; the last ones end with the image."""
    side = inference.window
    spans = []
    for length in size:
        if not side or side >= length:
            spans.append([(0, length)])
            continue
        count = -(-(length - side) // inference.stride) + 1
        starts = [min(place * inference.stride, length - side) for place in range(count)]
        spans.append([(start, start + side) for start in starts])
    return [(top, left, bottom, right) for top, bottom in spans[0] for left, right in spans[1]]


def scaled_size(size: Size, resize_size: int, scale: float = 1.0) -> Size:
    """The size of an image whose short side is `scale * resize_size`, or `scale` times its own where that is 0."""
    factor = scale
    if resize_size:
        factor *= min(resize_size / min(size), _LONGEST * resize_size / max(size))
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


class _TestImages(Dataset):
    """Pixels, map and row of an image; a row of -1 for padding and for what cannot be decoded.

    A `ValueError` comes back as it is: raised in a worker it would arrive with a traceback for a message.
    """

    def __init__(self, images: DenseImages, num_channels: int, decoding: Decoding = DEFAULT_DECODING) -> None:
        self._images, self._num_channels, self._decoding = images, num_channels, decoding

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, int] | ValueError:
        nothing = torch.zeros(self._num_channels, 1, 1), torch.full((1, 1), self._images.void), -1
        if row < 0:
            return nothing
        try:
            pixels, values = self._images.sample(row, self._num_channels, self._decoding)
        except BrokenImage as error:
            leave_out("image", f"row {row} of {self._images.where}", error)
            return nothing
        except ValueError as error:
            return error
        return pixels, torch.from_numpy(values), row


def measure_maps(
    evaluation: Evaluation,
    head: DenseHead,
    images: DenseImages,
    measure: Callable[[Tensor, Tensor], Tensor],
    description: str,
) -> Tensor:
    """`measure(scores [K, h, w], map [h, w])` of each readable image in order, `[N, ...]`. Collective.

    Raises:
        ValueError: a map that cannot be used, or no image that can be decoded.
    """
    backbone, accelerator, config = evaluation.backbone, evaluation.accelerator, evaluation.config
    share = -(-len(images) // accelerator.num_processes)
    mine = list(range(len(images)))[accelerator.process_index :: accelerator.num_processes]
    source = _TestImages(images, len(backbone.transform.mean), backbone.transform.decoding)
    mine += [-1] * (share - len(mine))
    loader = WorkerLoader(source, sampler=mine, batch_size=None, num_workers=config.num_workers)
    rows, values = [], []
    head.eval()
    for sample in evaluation.progress(loader, description, len(mine)):
        if isinstance(sample, ValueError):
            raise sample
        pixels, truth, row = sample
        if row < 0 and accelerator.num_processes == 1:
            continue
        scores = predict_scores(backbone, head, pixels, tuple(truth.shape), config.batch_size)
        keep_pace(evaluation, forwards(tuple(pixels.shape[1:]), head.meta.inference, config.batch_size))
        rows.append(row)
        values.append(measure(scores, truth.to(backbone.device)))
    if not values:
        raise ValueError(f"no image of {images.where} can be decoded; see the log for what is wrong with them")
    found = accelerator.gather(torch.stack(values))
    index = accelerator.gather(torch.tensor(rows, device=backbone.device))
    order = index.argsort()
    order = order[index[order] >= 0]
    if not len(order):
        raise ValueError(f"no image of {images.where} can be decoded; see the log for what is wrong with them")
    return found[order].cpu()


def forwards(size: Size, inference: Inference, batch_size: int) -> int:
    """How often the backbone is asked for an image."""
    sizes = [scaled_size(size, inference.resize_size, scale) for scale in inference.scales]
    return sum(-(-len(windows(each, inference)) // batch_size) for each in sizes) * (1 + inference.flip)


def keep_pace(evaluation: Evaluation, done: int) -> None:
    """Forwards of nothing, until all processes have done as many: a sharded network waits for them. Collective."""
    backbone, accelerator = evaluation.backbone, evaluation.accelerator
    if accelerator.num_processes == 1 or backbone.module is not None:
        return
    most = int(accelerator.gather(torch.tensor([done], device=backbone.device)).max())
    side = backbone.stride
    for _ in range(most - done):
        backbone.features(torch.zeros(1, len(backbone.transform.mean), side, side, device=backbone.device), 1)
