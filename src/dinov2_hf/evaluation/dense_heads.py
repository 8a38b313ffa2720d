"""Heads that turn the features of frozen blocks into a map (DINOv2, section 7.4).

Axes: `B` images, `D` width, `h` x `w` patches, `K` classes, `H` x `W` pixels.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..backbones import Features

BlockFeatures = Sequence[Features]
"""CLS `[B, D]` and patches `[B, D, h, w]` of the blocks that a head takes, the last one last."""

_METADATA_KEY = "dinov2_hf.dense_head"
_LEAST_SCORE = 0.1  # of a bin, so that there is always something to divide by
_UPSAMPLE = 4


@dataclass(frozen=True)
class Inference:
    """How a map of a whole image is made of predictions for parts of it."""

    resize_size: int = 0
    """Short side in pixels to which images are resized, the long one to at most four times as much; 0: as they are."""
    window: int = 0
    """Side in pixels of the square that slides over the image; 0: the image as a whole."""
    stride: int = 0
    """Pixels from one window to the next."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes, relative to `resize_size`, whose predictions are averaged."""
    flip: bool = False
    """Average with the prediction for the mirrored image."""


@dataclass(frozen=True)
class HeadMeta:
    """What has to be known to use a head."""

    kind: str
    """segmentation, linear_depth or dpt_depth."""
    blocks: tuple[int, ...]
    """That it takes, from 1, ascending."""
    hidden_size: int
    num_layers: int
    """Of the backbone."""
    outputs: int
    """Classes, bins, or channels of the decoder."""
    classes: tuple[str, ...] = ()
    depth_range: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest depth in metres."""
    inference: Inference = Inference()
    final_norm: bool = True
    """Whether the features come after the final norm of the backbone, as those of every head up to release 0.5."""
    dpt_grid: str = "fine"
    """Of the decoder: which of two maps gives the grid where the number of patches is odd; `fine` up to release 0.5."""


class DenseHead(nn.Module):
    """A head and what has to be known to use it."""

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__()
        self.meta = meta

    @abstractmethod
    def forward(self, features: BlockFeatures) -> Tensor:
        """Scores `[B, K, H, W]`, or depths in metres `[B, 1, H, W]`, on a grid of the head's own."""

    def observe(self, features: Sequence[BlockFeatures], counts: Tensor, accelerator: Accelerator) -> None:
        """Takes note of the chunks of a batch before they are learnt from; `counts` `[B]` says which images count.

        Collective.
        """

    @abstractmethod
    def average(self, scores: Tensor) -> Tensor:
        """Scores `[1, K, H, W]` as what is averaged over scales and flips."""

    @abstractmethod
    def decide(self, scores: Tensor) -> Tensor:
        """The map `[H, W]` out of averaged scores `[K, H, W]`: classes int64, or metres."""


class SegmentationHead(DenseHead):
    """Batch normalisation and a linear layer on the patches of some blocks, concatenated."""

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        self.norm = nn.BatchNorm2d(len(meta.blocks) * meta.hidden_size)
        self.linear = nn.Conv2d(self.norm.num_features, meta.outputs, 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(cast(Tensor, self.linear.bias))
        self._statistics: tuple[Tensor, Tensor] | None = None

    def observe(self, features: Sequence[BlockFeatures], counts: Tensor, accelerator: Accelerator) -> None:
        """Mean and variance of the whole batch over all processes, as they are the same for any number of them."""
        inputs = torch.cat([_concatenated(chunk) for chunk in features])[counts]
        if len(inputs):
            variance, mean = torch.var_mean(inputs, dim=(0, 2, 3), correction=0)
        else:
            mean = torch.zeros_like(self._running()[0])
            variance = mean
        pixels = torch.full_like(mean, inputs[:, 0].numel())
        pixels, mean, variance = accelerator.gather(torch.stack((pixels, mean, variance)).unsqueeze(0)).unbind(1)
        total = pixels.sum(dim=0).clamp(min=1)
        whole = (pixels * mean).sum(dim=0) / total
        spread = (pixels * (variance + (mean - whole) ** 2)).sum(dim=0) / total
        self._statistics = whole, spread
        weight = self.norm.momentum * (total > 1)  # a batch without an image teaches nothing
        running_mean, running_variance = self._running()
        running_mean.lerp_(whole, weight)
        running_variance.lerp_(spread * total / (total - 1).clamp(min=1), weight)

    def _running(self) -> tuple[Tensor, Tensor]:
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        return mean, variance

    def forward(self, features: BlockFeatures) -> Tensor:
        norm = self.norm
        statistics = self._statistics if self.training else self._running()
        assert statistics is not None, "observe comes first"
        mean, variance = statistics
        # the features are frozen, so that no gradient goes through the statistics
        inputs = nn.functional.batch_norm(
            _concatenated(features), mean, variance, norm.weight, norm.bias, training=False, eps=norm.eps
        )
        return self.linear(inputs)

    def average(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=1)

    def decide(self, scores: Tensor) -> Tensor:
        return scores.argmax(dim=0)


class DepthHead(DenseHead):
    """A head of which the scores are depths."""

    def average(self, scores: Tensor) -> Tensor:
        return scores.clamp(*self.meta.depth_range)

    def decide(self, scores: Tensor) -> Tensor:
        return scores[0]


class LinearDepthHead(DepthHead):
    """A linear layer over depths in bins, on patches and CLS enlarged four times (AdaBins: Bhat et al., 2021).

    The scores of the bins are `relu(score) + 0.1`, divided by their sum, and the depth is the mean of the bins.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        self.linear = nn.Conv2d(2 * len(meta.blocks) * meta.hidden_size, meta.outputs, 1)
        self.register_buffer("bins", torch.linspace(*meta.depth_range, meta.outputs), persistent=False)

    def forward(self, features: BlockFeatures) -> Tensor:
        tokens = [torch.cat((patches, cls[:, :, None, None].expand_as(patches)), dim=1) for cls, patches in features]
        # before it is enlarged, which changes nothing as both are linear, and is far less work
        scores = self.linear(torch.cat(tokens, dim=1))
        scores = nn.functional.interpolate(scores, scale_factor=_UPSAMPLE, mode="bilinear")
        scores = scores.relu() + _LEAST_SCORE
        return torch.einsum("bkhw,k->bhw", scores, self.bins).unsqueeze(1) / scores.sum(dim=1, keepdim=True)


class DptDepthHead(DepthHead):
    """The decoder of dense prediction transformers (Ranftl et al., 2021): depth as `relu(output) + min_depth`.

    Four blocks become maps of 4, 2, 1 and 1/2 times the patches' resolution, the wider the coarser, and are fused from
    the coarsest on.

    An odd number of patches is halved upwards, so that a coarse map, doubled, and the finer one differ in size. With
    `dpt_grid="coarse"`, as published, the finer one is resized: 13 rows of patches become 7, 14, 28, 56 and 112, and
    depths of 224 rows. With `fine` the coarse one is resized: 13, 26, 52 and 104, and depths of 208 rows.
    """

    def __init__(self, meta: HeadMeta) -> None:
        super().__init__(meta)
        width, channels = meta.hidden_size, meta.outputs
        widths = [max(width // 8, 1), max(width // 4, 1), max(width // 2, 1), width]
        self.readout = nn.ModuleList(nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.GELU()) for _ in widths)
        self.project = nn.ModuleList(nn.Conv2d(width, each, 1) for each in widths)
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(each, channels, 3, padding=1, bias=False) for each in widths)
        self.fusion = nn.ModuleList(_Fusion(channels, meta.dpt_grid, lateral=place > 0) for place in range(4))
        half = max(channels // 2, 1)
        self.fused = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.first = nn.Conv2d(channels, half, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(half, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1))
        # in the range from the start: below 0 there would be no gradient
        nn.init.constant_(cast(Tensor, self.last[-1].bias), 0.2 * meta.depth_range[1])

    def forward(self, features: BlockFeatures) -> Tensor:
        maps = []
        for place, (cls, patches) in enumerate(features):
            tokens = torch.cat((patches, cls[:, :, None, None].expand_as(patches)), dim=1)
            maps.append(self.lateral[place](self.resize[place](self.project[place](self.readout[place](tokens)))))
        fused = self.fusion[0](maps[3])
        for place in range(1, 4):
            fused = self.fusion[place](fused, maps[3 - place])
        output = self.last(_doubled(self.first(self.fused(fused))))
        return output.relu() + self.meta.depth_range[0]


class _Fusion(nn.Module):
    """What comes from below, enlarged, with a map of its resolution added."""

    def __init__(self, channels: int, grid: str, lateral: bool) -> None:
        super().__init__()
        self._grid = grid
        self.lateral = _ResidualUnit(channels) if lateral else None
        self.unit = _ResidualUnit(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, below: Tensor, lateral: Tensor | None = None) -> Tensor:
        if lateral is not None:
            if below.shape != lateral.shape:  # an odd number of patches, halved and doubled
                if self._grid == "coarse":
                    lateral = nn.functional.interpolate(lateral, below.shape[2:], mode="bilinear")
                else:
                    below = nn.functional.interpolate(below, lateral.shape[2:], mode="bilinear")
            assert self.lateral is not None
            below = below + self.lateral(lateral)
        return self.project(_doubled(self.unit(below)))


class _ResidualUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.second(self.first(inputs.relu()).relu())


def _doubled(maps: Tensor) -> Tensor:
    return nn.functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


def _concatenated(features: BlockFeatures) -> Tensor:
    return torch.cat([patches for _, patches in features], dim=1)


_KINDS: dict[str, Callable[[HeadMeta], DenseHead]] = {
    "segmentation": SegmentationHead,
    "linear_depth": LinearDepthHead,
    "dpt_depth": DptDepthHead,
}


def build_head(meta: HeadMeta, seed: int = 0) -> DenseHead:
    """A head to be trained; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _KINDS[meta.kind](meta)


def save_dense_head(head: DenseHead, path: Path) -> None:
    """Writes a head as safetensors, with what has to be known to use it in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, path, metadata={_METADATA_KEY: json.dumps(asdict(head.meta))})


def load_dense_head(path: Path | str, device: torch.device | str = "cpu") -> DenseHead:
    """A head as `save_dense_head` wrote it, to be used; `head.meta` says for what.

    Raises:
        FileNotFoundError: no file there.
        ValueError: a file of something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; give a file that an evaluation of maps left: head.safetensors")
    try:
        with safe_open(path, "pt") as file:
            stored = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no head of segmentation or depth: {error!r}") from None
    inference = stored.pop("inference")
    inference["scales"] = tuple(inference["scales"])
    lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
    head = build_head(HeadMeta(**stored | lists, inference=Inference(**inference)))
    head.load_state_dict(tensors)
    return head.to(device).eval().requires_grad_(False)
