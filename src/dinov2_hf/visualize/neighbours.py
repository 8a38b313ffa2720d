"""The images of a collection that are nearest to a query (DINOv2, section 7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import normalize

from ..data.sources import HeldImages
from ..features import FeatureExtractor, gather_features
from ..features.extract import Images
from .pictures import Picture
from .sheet import Sheet

_BATCH_SIZE = 32
_FRAME = "#e2543a"


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of a query, the nearest first."""

    rows: list[int]
    """In the collection."""
    cosines: list[float]


def find_neighbours(
    backbone: FeatureExtractor,
    queries: Sequence[tuple[bytes, str]],
    collection: Images,
    count: int = 6,
    num_workers: int = 0,
    cache: Path | None = None,
) -> list[Neighbours]:
    """The `count` images of a collection whose CLS has the highest cosine with that of each query.

    Args:
        queries: bytes and name of each.
        num_workers: processes that decode.
        cache: folder where features of the collection are kept for the next time.

    Raises:
        ValueError: nothing in the collection can be decoded.
    """
    accelerator = Accelerator(cpu=backbone.device.type == "cpu")

    def features(images: Images, description: str, cache: Path | None) -> tuple[Tensor, Tensor]:
        found = gather_features(
            backbone,
            images,
            backbone.transform,
            accelerator,
            batch_size=_BATCH_SIZE,
            num_workers=num_workers,
            cache=cache,
            description=description,
        )
        return found.parts["cls"][:, -1], found.index

    own, _ = features(HeldImages(queries, "the queries"), "Features of the queries", None)
    others, rows = features(collection, "Features of the collection", cache)
    if not len(rows):
        raise ValueError("no image of the collection can be decoded; give another")
    return nearest(own, others, rows, count, [data for data, _ in queries], collection)


def nearest(
    queries: Tensor, features: Tensor, rows: Tensor, count: int, data: Sequence[bytes], collection: Images
) -> list[Neighbours]:
    """For each query `[Q, D]` the `count` images with the highest cosine of features `[N, D]`; fewer if there are not.

    Copies of the query, byte for byte, are left out: an image is found in the set that it is of, and tells nothing.

    Args:
        rows: of the features in the collection, `[N]`.
        data: the bytes of the queries.
    """
    cosines = normalize(queries.float(), dim=1) @ normalize(features.float(), dim=1).T
    found = []
    for values, own in zip(cosines, data):
        neighbours = Neighbours([], [])
        for place in values.argsort(descending=True, stable=True).tolist():
            row = int(rows[place])
            if collection.read(row)[0] == own:
                continue
            neighbours.rows.append(row)
            neighbours.cosines.append(float(values[place]))
            if len(neighbours.rows) == count:
                break
        found.append(neighbours)
    return found


def draw_neighbours(
    queries: Sequence[Picture], nearest: Sequence[Sequence[tuple[Picture, float]]], path: Path, title: str = ""
) -> Path:
    """Draws a row for each query to a PNG file: the image in a frame, then its neighbours with their cosines."""
    columns = 1 + max(map(len, nearest), default=0)
    sheet = Sheet(len(queries), columns, title or "Queries (framed) and their nearest neighbours, with cosines")
    for row, (query, found) in enumerate(zip(queries, nearest)):
        axis = sheet.image(row, 0, query.shown, query.name)
        height, width = query.pixels.shape[1:]
        frame = [-0.5, width - 0.5, width - 0.5, -0.5, -0.5], [-0.5, -0.5, height - 0.5, height - 0.5, -0.5]
        axis.plot(*frame, color=_FRAME, linewidth=3, clip_on=False)
        for column, (picture, cosine) in enumerate(found, 1):
            sheet.image(row, column, picture.shown, f"{cosine:.3f}  {picture.name}")
    return sheet.save(path)
