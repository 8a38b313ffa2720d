"""The column of a source that holds its images, and the bytes and name of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, IterableDataset, Value, Video

from ...config import SourceConfig
from ..fetch import Missing, is_url, read_bytes
from ..formats import TABLES
from ..names import few, name_images, one_line
from ..paths import name_of, state_of
from .load import Loaded, load
from .tars import is_place, name_of_member, read_member

_PEEKED_ROWS = 16


@dataclass(frozen=True)
class ImageColumn:
    """The column of a source that holds its images: encoded bytes, paths, URLs, or `datasets` images of these."""

    dataset: Dataset | IterableDataset
    """Only this column."""
    name: str
    folder: str | None
    """What relative paths in it are relative to."""
    embedded: bool = True
    """Whether the shards of a stream hold the images themselves, and not their paths."""
    shard_files: list[str] | None = None
    """The file of each shard of a stream, where each is one."""
    lengths: list[int] | None = None
    """Rows of each shard of a stream, where they are known."""
    listed: str | None = None
    """Digest of the names of the images, where they are files that were listed here."""
    tars: Sequence[str] = ()
    """The archives of which the column has members, by their places."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the images and their order; of files that were listed, of their sizes and times of change too."""
        if self.listed is None:
            return self.dataset._fingerprint
        digest = hashlib.sha256()
        for rows in self.dataset.with_format("arrow").iter(batch_size=1 << 16):
            for name in pc.struct_field(rows.column(0), "path").to_pylist():
                digest.update(repr((name, name and state_of(name))).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Rows, where they can be read by number."""
        return len(self.dataset)

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of row `index`, where rows can be read by number; `Missing` with the reason for no bytes."""
        return self.encoded(self.dataset[index][self.name], f"row {index}")

    def name_at(self, index: int) -> str:
        """Name of row `index`, as `read` gives it; files are not read for it."""
        return self._located(self.dataset[index][self.name], f"row {index}")[1]

    def encoded(self, value: Any, position: str) -> tuple[bytes, str]:
        """Bytes and name of a value of the column; `Missing` with the reason where it has none.

        Args:
            value: as `datasets` gives it, undecoded.
            position: name of a value that has no path.
        """
        if isinstance(value, dict) and "offset" in value:
            return read_member(value, self.tars)
        data, name, path = self._located(value, position)
        return (read_bytes(path), name) if data is None else (data, name)

    def _located(self, value: Any, position: str) -> tuple[bytes | None, str, str]:
        """Bytes, name and path of a value; no bytes where they are at the path."""
        if value is None:
            return Missing("there is no value (null)"), position, ""
        if isinstance(value, str):
            return self._place_of(value, position)
        if not isinstance(value, dict):
            return _given(value), position, ""
        if "offset" in value:
            return None, name_of_member(value, self.tars), ""
        data, path = value.get("bytes"), value.get("path")
        if data is not None:
            return _given(data), path or position, ""
        if path is None:
            return Missing("the value has neither bytes nor a path"), position, ""
        return self._place_of(path, position)

    def _place_of(self, path: str, position: str) -> tuple[bytes | None, str, str]:
        if not path:
            return Missing("the path is empty"), position, ""
        if not is_url(path) and not os.path.isabs(path) and not path.startswith("\0"):  # nor a stored name
            if self.folder is None:
                return Missing("a relative path, and its table does not say where it lies"), path, ""
            path = os.path.join(self.folder, path)
        return None, name_of(path), path


def _given(data: bytes) -> bytes:
    return data if data or isinstance(data, Missing) else Missing("the value has 0 bytes")


def open_images(config: SourceConfig, streaming: bool, name: str = "") -> ImageColumn:
    """The images at `config.path`, which the log calls `name`.

    Raises:
        ValueError: nothing to read, no such split or column, each with what there is instead.
    """
    return find_images(load(config, streaming, name), config)


def find_images(loaded: Loaded, config: SourceConfig) -> ImageColumn:
    """The column that holds the images: the one named, or the only one that looks like it.

    Without a name it is the first of the type `Image`, else the only one of bytes, else the only one of texts that end
    like the names of images.

    Raises:
        ValueError: no such column, or none or several that could be it.
    """
    dataset, features, rows = loaded.dataset, loaded.dataset.features, None
    if features is None:  # a stream of CSV or JSON is known when it is read
        try:
            rows = _peek(dataset)
            features = Features.from_arrow_schema(pa.table(rows).schema)
        except ValueError as error:
            raise ValueError(f"{config.path} cannot be read: {error}") from error
    kinds = {name: _kind(feature) for name, feature in features.items()}
    texts = [name for name, kind in kinds.items() if kind == "text"]
    if rows is None:
        may_be_text = config.image_column in texts or not {"image", "bytes"} & set(kinds.values())
        rows = _peek(dataset.select_columns(texts)) if texts and may_be_text else {}
    name = _choose_column(kinds, rows, config)
    if kinds[name] in (None, "video"):
        raise ValueError(
            f"column {name!r} of {config.path} is {features[name]}, not images, their bytes or their paths; its "
            f"columns are {few(kinds)}; name another with image_column=, or cast it with "
            "datasets.Dataset.cast_column(name, datasets.Image()) and save it"
        )
    if kinds[name] == "text" and loaded.folder is None:
        relative = [value for value in rows[name] if value and not os.path.isabs(value) and not is_url(value)]
        if relative:
            raise ValueError(
                f"{relative[0]!r} in column {name!r} of {config.path} is a relative path, but its tables lie in "
                "several folders; write absolute paths, or give each folder as a source of its own with data.mix"
            )
    dataset = dataset.select_columns([name])
    if isinstance(features[name], Image):
        dataset = dataset.cast_column(name, Image(decode=False))
    images = ImageColumn(
        dataset, name, loaded.folder, listed=loaded.fingerprint if loaded.listed else None, tars=loaded.tars
    )
    if isinstance(dataset, Dataset):
        return images
    # a folder of images is a single shard of many files
    shard_is_file = len(loaded.files) == dataset.num_shards and Path(loaded.files[0]).suffix in TABLES
    return replace(
        images,
        embedded=kinds[name] != "text" and not loaded.listed and (shard_is_file or not loaded.files),
        shard_files=loaded.files if shard_is_file else None,
        lengths=loaded.lengths,
    )


def _choose_column(kinds: dict[str, str | None], rows: dict[str, list], config: SourceConfig) -> str:
    if config.image_column:
        found = [config.image_column] if config.image_column in kinds else []
    else:
        images = [name for name, kind in kinds.items() if kind == "image"]
        encoded = [name for name, kind in kinds.items() if kind == "bytes"]
        found = images[:1] or encoded or [name for name, values in rows.items() if name_images(values)]
    where = f"{config.path} (split {config.split!r})"
    if not found:
        given = f"image_column={config.image_column!r}" if config.image_column else "a column of images"
        videos = [name for name, kind in kinds.items() if kind == "video"]
        help = "name the one with the images with image_column="
        if videos:
            help = (
                f"{few(videos)} has videos: extract the frames, such as with ffmpeg, and give their folder; or {help}"
            )
        raise ValueError(f"{where} lacks {given}; its columns are {few(kinds) or 'none'}; {help}")
    if len(found) > 1:
        raise ValueError(
            f"{where} has several columns that may hold the images: {few(found)}; name one with image_column="
        )
    return found[0]


def _kind(feature: Any) -> str | None:
    """`image`, `bytes` or `text`, of which images can be read; `video`, of which they cannot; None for others."""
    if isinstance(feature, Image):
        return "image"
    if is_place(feature):
        return "image"
    if isinstance(feature, Video):
        return "video"
    if isinstance(feature, dict):  # a struct, as images are stored in parquet that `datasets` has not written
        return "bytes" if _kind(feature.get("bytes")) == "bytes" else None
    if isinstance(feature, Value):
        return {"binary": "bytes", "string": "text"}.get(feature.dtype.removeprefix("large_").removesuffix("_view"))
    return None


def _peek(dataset: Dataset | IterableDataset) -> dict[str, list]:
    """The first rows, by column; of a stream those of its first shard that can be read and has any.

    Raises:
        ValueError: no shard can be read.
    """
    if isinstance(dataset, Dataset):
        return dataset[:_PEEKED_ROWS]
    empty: dict[str, list[Any]] = {name: [] for name in dataset.features or ()}
    problems: list[str] = []
    for shard in range(dataset.num_shards):
        try:
            rows = next(iter(dataset.shard(dataset.num_shards, shard).iter(batch_size=_PEEKED_ROWS)), None)
        except Exception as error:  # of a malformed file, readers raise anything
            problems.append(one_line(error))
            continue
        if rows:
            return rows
    if len(problems) == dataset.num_shards:
        raise ValueError(problems[0])
    return empty
