"""Images with a value for each pixel: classes or depths.

Axes: `C` channels, `H` x `W` pixels of an image, `h` x `w` pixels of its map.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Array2D, Features, Image, List, Value
from torch import Tensor

from ...config import SourceConfig
from ...data.decode import DEFAULT_DECODING, Decoding, decoded, open_image
from ...data.names import few
from ...data.opening import open_with_pillow
from ...data.paths import name_in
from ...data.sources import find_images, load

IGNORED = -1
"""Label of pixels that belong to no class."""
NO_DEPTH = 0.0
"""Depth of pixels where none is known."""

_LABEL_COLUMNS = (
    *("annotation", "mask", "label_map", "segmentation", "semantic_segmentation", "segmentation_mask"),
    *("semantic", "semantic_map", "sem_seg", "seg_map", "label", "labels", "masks", "annotations"),
)
_DEPTH_COLUMNS = ("depth", "depth_map", "depth_image", "depths")


class DenseImages(ABC):
    """A map-style source of images with maps.

    Raises:
        ValueError: nothing to read, or no column of maps.
    """

    usual_columns: Sequence[str]
    """What the column of maps is called where it is not named."""
    kind: str
    """What messages call the maps."""
    void: int | float
    """In a map, a pixel of which nothing is known."""

    def __init__(self, config: SourceConfig) -> None:
        self.where = f"{config.path} (split {config.split!r})"
        loaded = load(config, streaming=False)
        features = loaded.dataset.features
        column = self._column(features, config)
        # the first column of images may be that of the maps, or of maps of another kind
        maps = {column} if config.image_column else {column, *_LABEL_COLUMNS, *_DEPTH_COLUMNS}
        others = [name for name in features if name not in maps]
        rest = replace(loaded, dataset=loaded.dataset.select_columns(others)) if others else loaded
        self._images = find_images(rest, config)
        of_maps = replace(loaded, dataset=loaded.dataset.select_columns([column]))
        self._arrays = of_maps.dataset if _is_array(features[column]) else None
        self._maps = None if self._arrays else find_images(of_maps, replace(config, image_column=column))
        self._map_column = column

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of image `index`."""
        data, name = self._images.read(index)
        return data, name_in(self.where, name)

    def map(self, index: int) -> np.ndarray:
        """The map `[h, w]` of image `index`.

        Raises:
            ValueError: no map there, or values that it cannot have.
        """
        return self._convert(self._stored(index), f"the {self.kind} of row {index} of {self.where}")

    def sample(
        self, index: int, num_channels: int = 3, decoding: Decoding = DEFAULT_DECODING
    ) -> tuple[Tensor, np.ndarray]:
        """Pixels `[C, H, W]` as `EncodedImage.decode` gives them, and the map `[h, w]`, a whole multiple or fraction.

        Raises:
            BrokenImage: the image cannot be decoded.
            ValueError: a map that cannot be read, or of another shape than the image.
        """
        data, _ = self.read(index)
        with decoded(open_image(data, num_channels, decoding), 1.0, decoding) as (pixels, _):
            pass  # the map is read when the budget is free again
        values = self.map(index)
        (height, width), (rows, columns) = pixels.shape[1:], values.shape
        if common_grid((height, width), (rows, columns)) is None:
            raise ValueError(
                f"row {index} of {self.where} has an image of {height} x {width} pixels and a {self.kind} of "
                f"{rows} x {columns}; resize the one to the other, or by a whole factor"
            )
        return pixels, values

    def _column(self, features: Features, config: SourceConfig) -> str:
        if config.label_column:
            if config.label_column in features:
                return config.label_column
            given = f"label_column={config.label_column!r}"
        else:
            held = [name for name, feature in features.items() if _may_hold_maps(feature)]
            found = [name for name in self.usual_columns if name in held and name != config.image_column]
            others = [name for name in held if name != config.image_column and config.image_column]
            if found or len(others) == 1:
                return (found or others)[0]
            given = f"a column of {self.kind}s"
        raise ValueError(
            f"{self.where} lacks {given}; its columns are {few(features)}; name the one with the {self.kind}s "
            "with label_column="
        )

    def _stored(self, index: int) -> np.ndarray:
        """The values as they are stored, `[h, w]`."""
        where = f"the {self.kind} of row {index} of {self.where}"
        remedy = "give a PNG file of one channel or a .npy array [height, width]"
        try:
            values = self._decoded(index)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{where} cannot be read: {error}; {remedy}") from None
        if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
            values = values[0] if values.shape[0] == 1 else values[:, :, 0]
        if values.ndim != 2 or values.dtype.kind not in "buif" or not values.size:
            raise ValueError(f"{where} has values of shape {list(values.shape)} and type {values.dtype}; {remedy}")
        return values

    def _decoded(self, index: int) -> np.ndarray:
        if self._maps is None:
            assert self._arrays is not None
            value: Any = self._arrays[index][self._map_column]
            return np.asarray(value if value is not None else [])
        data, _ = self._maps.read(index)
        if data.startswith(b"\x93NUMPY"):
            return np.load(io.BytesIO(data), allow_pickle=False)
        with open_with_pillow(io.BytesIO(data)) as image:
            return np.asarray(image)  # of a palette: its indices

    @abstractmethod
    def _convert(self, values: np.ndarray, where: str) -> np.ndarray:
        """Stored values `[h, w]` as `map` gives them."""


class LabelMaps(DenseImages):
    """Images with a class for each pixel: int64 `[h, w]`, `IGNORED` where there is none.

    Args:
        num_classes: None where they are to be counted: then all values from 0 are taken.
        ignored: the value of pixels of no class.
        from_one: 0 is no class either, and 1 the first one.
    """

    usual_columns, kind, void = _LABEL_COLUMNS, "label map", IGNORED

    def __init__(
        self, config: SourceConfig, num_classes: int | None = None, ignored: int = 255, from_one: bool = False
    ) -> None:
        super().__init__(config)
        self.num_classes, self._ignored, self._from_one = num_classes, ignored, from_one

    def _convert(self, values: np.ndarray, where: str) -> np.ndarray:
        if values.dtype.kind == "f" and not (whole := values == np.round(values)).all():  # NaN is none either
            raise ValueError(f"{where} has values such as {values[~whole][0]:g}; labels are whole numbers")
        labels = values.astype(np.int64)
        nothing = labels == self._ignored
        if self._from_one:
            nothing, labels = nothing | (labels == 0), labels - 1
        known = labels[~nothing]
        highest = np.inf if self.num_classes is None else self.num_classes - 1
        if len(known) and not (0 <= known.min() and known.max() <= highest):
            value = known.max() if known.max() > highest else known.min()
            value, first = int(value) + self._from_one, int(self._from_one)
            last = f" to {self.num_classes - 1 + first}" if self.num_classes else ""
            raise ValueError(
                f"{where} has the value {value}; classes are {first}{last}, and {self._ignored} is ignored; "
                "set num_classes, ignore_label or reduce_zero_label as the maps are"
            )
        return np.where(nothing, IGNORED, labels)


class DepthMaps(DenseImages):
    """Images with a depth in metres for each pixel: float32 `[h, w]`, `NO_DEPTH` where none is known.

    Args:
        scale: metres of one unit where the maps are whole numbers.
    """

    usual_columns, kind, void = _DEPTH_COLUMNS, "depth map", NO_DEPTH

    def __init__(self, config: SourceConfig, scale: float = 0.001) -> None:
        super().__init__(config)
        self._scale = scale

    def _convert(self, values: np.ndarray, where: str) -> np.ndarray:
        depth = values.astype(np.float32) * (1 if values.dtype.kind == "f" else self._scale)
        return np.where(np.isfinite(depth) & (depth > 0), depth, NO_DEPTH).astype(np.float32)


def common_grid(image: tuple[int, int], map: tuple[int, int]) -> tuple[tuple[int, int], int, int] | None:
    """The smaller of two sizes `(height, width)`, and how many times larger the image and the map are.

    None where neither is a whole multiple of the other.
    """
    small, large = sorted((image, map))
    factor = large[0] // small[0]
    if (small[0] * factor, small[1] * factor) != large:
        return None
    return small, image[0] // small[0], map[0] // small[0]


def _is_array(feature: Any) -> bool:
    return isinstance(feature, Array2D) or (isinstance(feature, List) and isinstance(feature.feature, List))


def _may_hold_maps(feature: Any) -> bool:
    encoded = isinstance(feature, Value) and "binary" in feature.dtype
    return isinstance(feature, Image) or encoded or isinstance(feature, dict) or _is_array(feature)
