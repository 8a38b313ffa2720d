"""Masks carried from the first frame through a video by the nearest patches (DINO, section 4.2.2).

Axes: `H` x `W` pixels, `h` x `w` patches, `D` width, `C` the background and the objects, `S` context frames.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from ..config.evaluations import PropagationEvaluation
from ..data.broken import leave_out
from ..data.crops import as_crop, resample
from ..data.decode import BrokenImage, Decoding, open_image
from ..data.workers import WorkerLoader
from .base import Evaluation, Result
from .datasets import MaskedVideos
from .intervals import bootstrap
from .metrics.video import BoundaryAccuracy, RegionSimilarity, objects_of
from .object_masks import save_contact_sheet, save_index_mask
from .registry import register_evaluator

logger = logging.getLogger(__name__)

_CHUNK = 1 << 24
"""Similarities that are held at a time: 64 MiB of them."""
_PICTURED = 5
"""Frames of a video in its picture."""


def propagate(
    target: Tensor, context: Tensor, masks: Tensor, neighbors: int = 5, radius: int = 12, temperature: float = 0.1
) -> Tensor:
    """Soft masks `[C, h, w]` of a frame: each patch takes the mean over the nearest patches of the context.

    Their weights are `exp(cosine / temperature)`. Rows of patches are compared chunk by chunk with the rows that lie
    within the radius alone, so that memory is bounded whatever the size.

    Args:
        target: features of the frame, `[D, h, w]`, of length 1.
        context: features of the context frames, `[S, D, h, w]`, of length 1.
        masks: theirs, `[S, C, h, w]`.
        neighbors: patches of all context frames together that a patch takes the mean over.
        radius: rows and columns of patches that they may lie away; 0 for any.
    """
    (_, height, width), frames = target.shape, len(context)
    radius = radius or max(height, width)
    step = max(_CHUNK // (frames * height * width * width), 1)
    ys, xs = (torch.arange(side, device=target.device) for side in (height, width))
    near_columns = (xs[:, None] - xs).abs() <= radius
    found = []
    for start in range(0, height, step):
        stop = min(start + step, height)
        low, high = max(start - radius, 0), min(stop + radius, height)
        queries = target[:, start:stop].flatten(1).T
        keys = context[:, :, low:high].flatten(2)
        similarities = (queries @ keys).transpose(0, 1)  # [(stop - start) * w, S, (high - low) * w]
        near_rows = (ys[start:stop, None] - ys[low:high]).abs() <= radius
        near = (near_rows[:, None, :, None] & near_columns[:, None, :]).flatten(2).flatten(0, 1)
        similarities = similarities.masked_fill(~near[:, None], -torch.inf).flatten(1)
        values, nearest = similarities.topk(min(neighbors, similarities.shape[1]), dim=1)
        labels = masks[:, :, low:high].flatten(2).transpose(1, 2).flatten(0, 1)  # [S * (high - low) * w, C]
        votes = (values / temperature).softmax(dim=1)  # those ruled out have none
        found.append((votes.unsqueeze(1) @ labels[nearest]).squeeze(1))
    return torch.cat(found).T.unflatten(1, (height, width))


class Propagation:
    """The masks of a video, frame by frame.

    Args:
        first: features of the first frame, `[D, h, w]`.
        masks: of it, `[C, h, w]`.
        context_frames: how many of the last frames give labels beside the first one.
    """

    def __init__(self, first: Tensor, masks: Tensor, context_frames: int = 7, **options) -> None:
        self._first = self._unit(first), masks
        self._last: deque[tuple[Tensor, Tensor]] = deque(maxlen=context_frames)
        self._options = options

    def step(self, features: Tensor) -> Tensor:
        """Soft masks `[C, h, w]` of the next frame, of which `features` are `[D, h, w]`."""
        target = self._unit(features)
        context, masks = (torch.stack(part) for part in zip(self._first, *self._last))
        found = propagate(target, context, masks, **self._options)
        self._last.append((target, found))
        return found

    @staticmethod
    def _unit(features: Tensor) -> Tensor:
        return torch.nn.functional.normalize(features.float(), dim=0)


def decide(masks: Tensor, height: int, width: int) -> Tensor:
    """Soft masks `[C, h, w]` to the class of each pixel, `[height, width]`.

    They are enlarged, and each is stretched to [0, 1], so that a small or thin object is not lost to the background.
    """
    masks = interpolate(masks.unsqueeze(0), (height, width), mode="bilinear", align_corners=False)[0]
    low, high = masks.amin(dim=(1, 2), keepdim=True), masks.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (masks - low) / (high - low).clamp_min(1e-12), masks).argmax(dim=0)


def soft_masks(mask: np.ndarray, objects: Sequence[int], height: int, width: int) -> Tensor:
    """An index mask `[H, W]` at the nearest pixel of each patch, one-hot: `[1 + objects, height, width]`."""
    small = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    shown = torch.from_numpy(np.stack([small == index for index in objects]))
    return torch.cat((~shown.any(dim=0, keepdim=True), shown)).float()


@register_evaluator(
    "propagation",
    config=PropagationEvaluation,
    title="masks propagated through videos (J&F)",
    source="DINO 4.2.2",
    needs=("scipy",),
)
def evaluate_propagation(evaluation: Evaluation) -> Iterator[Result]:
    """J&F, J and F over the objects of all videos. Collective: call on all ranks.

    Frames that cannot be decoded are left out; a video counts if its first frame and mask can be, it has an object, and
    some frame between its first and last has a mask.

    Raises:
        ValueError: no video of which that is true.
    """
    config: PropagationEvaluation = evaluation.config
    if not config.test.path:
        raise ValueError("test.path is not set; give the videos: test.path=/my/DAVIS")
    videos = MaskedVideos(config.test)
    backbone, transform, accelerator = evaluation.backbone, evaluation.backbone.transform, evaluation.accelerator
    channels, world_size = len(transform.mean), accelerator.num_processes
    if evaluation.is_main:
        for video in range(len(videos)):
            if videos.frames.count(video) == 0:
                logger.warning("left out the video %s of %s: no frames", videos.names[video], videos.where)
    plans = [_plan(videos, config.batch_size, rank, world_size) for rank in range(world_size)]
    plan = plans[accelerator.process_index]
    # where the backbone is sharded its forward is collective: all processes call it equally often
    plan += [None] * (max(map(len, plans)) - len(plan))
    reader = _Reader(videos, plan, config.resize_size, backbone.stride, channels, transform.decoding)
    loader = WorkerLoader(reader, batch_size=None, num_workers=config.num_workers)
    scores: list[tuple[int, list, list]] = []
    for batch, (pixels, frames) in zip(plan, evaluation.progress(loader, "Propagation", len(plan))):
        (_, features), *_ = backbone.features(transform.normalize(pixels.to(backbone.device)), 1)
        if batch is None:
            continue
        video, start, stop = batch
        if start == 0:
            track = _Track(videos, video, config, channels, transform.decoding)
        for frame, values in zip(frames, features):
            track.add(frame, values)
        if stop == videos.frames.count(video):
            scores += track.finish(evaluation)
    scores = sorted(gather_object(scores))
    if not scores:
        raise ValueError(f"none of the {len(videos)} videos of {videos.where} can be scored; the log says why")
    yield from _results(np.concatenate([np.array(found[1:]) for found in scores], axis=1), config.seed)


def _results(objects: np.ndarray, seed: int) -> Iterator[Result]:
    """From mean, recall and decay of J and of F of each object, `[2, N, 3]`."""

    def result(metric: str, title: str, values: np.ndarray) -> Result:
        return Result(metric, float(values.mean()), f"{title} (%), label propagation", bootstrap(np.mean, values, seed))

    yield result("j_and_f", "J&F", objects[:, :, 0].mean(axis=0))
    for letter, of_letter in zip("jf", objects):
        for number, name in enumerate(("mean", "recall", "decay")):
            yield result(f"{letter}_{name}", f"{letter.upper()} {name}", of_letter[:, number])


def _plan(videos: MaskedVideos, batch_size: int, rank: int, world_size: int) -> list[tuple[int, int, int] | None]:
    """Video, first frame and end of each batch of a process, video by video."""
    return [
        (video, start, min(start + batch_size, videos.frames.count(video)))
        for video in range(rank, len(videos), world_size)
        for start in range(0, videos.frames.count(video), batch_size)
    ]


class _Reader(Dataset):
    """The frames of a batch, `[B, C, H, W]`, at the size of the first frame of their video, and which they are.

    A frame that cannot be decoded, or of a video whose first frame cannot, is black, and its number is -1.
    """

    def __init__(
        self,
        videos: MaskedVideos,
        plan: Sequence,
        resize_size: int,
        patch_size: int,
        channels: int,
        decoding: Decoding,
    ) -> None:
        self._videos, self._plan, self._decoding = videos, plan, decoding
        self._resize_size, self._patch_size, self._channels = resize_size, patch_size, channels

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, item: int) -> tuple[Tensor, list[int]]:
        black = torch.zeros(self._channels, self._patch_size, self._patch_size, dtype=torch.uint8)
        if self._plan[item] is None:
            return as_crop(black).unsqueeze(0), [-1]
        video, start, stop = self._plan[item]
        try:
            size = self._size(video)
        except BrokenImage as error:
            leave_out("video", self._name(video, 0), f"its first frame: {error}")
            return as_crop(black).expand(stop - start, -1, -1, -1), [-1] * (stop - start)
        pixels, frames = [], []
        for frame in range(start, stop):
            try:
                pixels.append(self._pixels(video, frame, size))
                frames.append(frame)
            except BrokenImage as error:
                leave_out("frame", self._name(video, frame), error)
                pixels.append(as_crop(black.new_zeros(self._channels, *size)))
                frames.append(-1)
        return torch.stack(pixels), frames

    def _name(self, video: int, frame: int) -> str:
        return self._videos.frames.read(video, frame)[1]

    def _size(self, video: int) -> tuple[int, int]:
        """Height and width that all frames of a video are brought to."""
        first = open_image(self._videos.frames.read(video, 0)[0], self._channels, self._decoding)
        scale = self._resize_size / min(first.height, first.width) / self._patch_size
        height, width = (max(round(side * scale), 1) * self._patch_size for side in (first.height, first.width))
        return height, width

    def _pixels(self, video: int, frame: int, size: tuple[int, int]) -> Tensor:
        image = open_image(self._videos.frames.read(video, frame)[0], self._channels, self._decoding)
        pixels, _ = image.decode(reduction=min(image.height / size[0], image.width / size[1]) / 2)
        return as_crop(resample(pixels, (0, 0, pixels.shape[2], pixels.shape[1]), size))


class _Track:
    """One video on its way: from the features of its frames to predicted masks and their scores."""

    def __init__(
        self, videos: MaskedVideos, video: int, config: PropagationEvaluation, channels: int, decoding: Decoding
    ) -> None:
        self._videos, self._video, self._config, self._channels = videos, video, config, channels
        self._decoding = decoding
        self._name = videos.names[video]
        self._truth = videos.mask(video, 0)
        self._objects = [] if self._truth is None else objects_of(self._truth)
        self._propagation: Propagation | None = None
        self._found: dict[int, Image.Image] = {}

    def add(self, frame: int, features: Tensor) -> None:
        """Predicts the mask of a frame from its features `[D, h, w]`; -1 for a frame that is left out."""
        if frame < 0 or not self._objects or (frame > 0 and self._propagation is None):
            return
        assert self._truth is not None  # as it has objects
        if frame == 0:
            options = {name: getattr(self._config, name) for name in ("neighbors", "radius", "temperature")}
            masks = soft_masks(self._truth, self._objects, *features.shape[1:]).to(features.device)
            self._propagation = Propagation(features, masks, self._config.context_frames, **options)
            indices = self._truth
        else:
            assert self._propagation is not None
            classes = decide(self._propagation.step(features), *self._truth.shape).cpu().numpy()
            indices = np.array([0, *self._objects])[classes]
        self._found[frame] = Image.fromarray(indices.astype(np.uint8))

    def finish(self, evaluation: Evaluation) -> list[tuple[int, list, list]]:
        """The video with mean, recall and decay of J and of F of each object; nothing if it does not count."""
        frames = list(self._found)
        truth = [self._videos.mask(self._video, frame) for frame in frames]
        reason = None
        if self._truth is None:
            reason = "its first frame has no mask"
        elif not self._objects:
            reason = "the mask of its first frame has no object; number them 1, 2, …, 254"
        elif self._propagation is None:
            reason = "its first frame cannot be decoded"
        elif all(mask is None for mask in truth[1:-1]):
            reason = "no frame between its first and last has a mask"
        if reason:
            logger.warning("left out the video %s of %s: %s", self._name, self._videos.where, reason)
            return []
        self._save(evaluation, frames, truth)
        pair = {
            "predictions": [list(self._found.values())],
            "references": [[None if mask is None else Image.fromarray(mask) for mask in truth]],
        }
        return [
            (self._video, *(metric().compute(**pair)["objects"] for metric in (RegionSimilarity, BoundaryAccuracy)))
        ]

    def _save(self, evaluation: Evaluation, frames: Sequence[int], truth: Sequence[np.ndarray | None]) -> None:
        if evaluation.output is None:
            return
        folder = evaluation.output / "propagation"
        found = [np.array(mask) for mask in self._found.values()]
        if self._config.save_masks:
            for frame, mask in zip(frames, found):
                save_index_mask(mask, folder / "masks" / self._name / f"{frame:05}.png")
        if self._video < self._config.pictures:
            shown = np.unique(np.linspace(0, len(frames) - 1, _PICTURED).round().astype(int))
            columns = [(self._picture(frames[n]), truth[n], found[n], f"frame {frames[n]}") for n in shown]
            save_contact_sheet(columns, ("true", "propagated"), folder / f"{self._name}.png")

    def _picture(self, frame: int) -> np.ndarray:
        """A frame to look at, `[H, W, 3]`; of other than 3 channels the first, in grey."""
        data, _ = self._videos.frames.read(self._video, frame)
        pixels, _ = open_image(data, self._channels, self._decoding).decode()
        pixels = pixels if pixels.dtype == torch.uint8 else pixels.mul(255).to(torch.uint8)
        return (pixels if len(pixels) == 3 else pixels[:1].expand(3, -1, -1)).permute(1, 2, 0).contiguous().numpy()
