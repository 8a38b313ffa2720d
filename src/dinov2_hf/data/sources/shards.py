"""The shards of a stream, each of which can be read by itself from any row, and what becomes of a broken one.

A shard is read up to where it breaks. Of parquet the footer says how many rows there are: a row group that cannot be
read keeps its place, as `LOST` rows, so that a restart finds its row without reading those before it. Other files have
as many rows as can be read, every time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset
from datasets.utils.file_utils import xopen

from ..broken import Broken
from ..fetch import is_url
from ..names import few, one_line
from .columns import ImageColumn
from .tars import read_images

_ROWS_AT_ONCE = 16
LOST: Any = object()
"""Stands for the value of a row whose row group cannot be read."""
_OF_CONNECTIONS = {"aiohttp", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}
# they log what they raise
logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)


class Shards:
    """The shards of a stream of images (`base.ShardedImages`).

    Every method that reads may raise ValueError: the connection to a shard is lost, which says nothing about the shard.
    """

    def __init__(self, images: ImageColumn) -> None:
        assert isinstance(images.dataset, IterableDataset)
        self.embedded = images.embedded
        self._images = images
        self._lengths = dict(enumerate(images.lengths or ()))
        self._row_groups: dict[int, list[int]] = {}
        self._broken: dict[int, Broken] = {}
        self._reported = 0

    def __len__(self) -> int:
        return self._images.dataset.num_shards

    def length(self, shard: int) -> int | None:
        """Rows of a shard, where that is known without reading them: parquet, saved sets, what was read before."""
        if shard not in self._lengths and self._is(shard, ".parquet"):
            self._lengths[shard] = sum(self._rows_of_groups(shard))
        return self._lengths.get(shard)

    def name(self, shard: int) -> str:
        """How a person finds a shard."""
        files = self._images.shard_files
        return files[shard] if files is not None else f"part {shard} of {len(self)}"

    def values(self, shard: int, start: int = 0) -> Iterator[tuple[int, Any]]:
        """Number and value of the rows of a shard from row `start` on.

        Row groups of parquet before it are not read, nor is the data of members of a local tar; of other files
        everything is, up to it.
        """
        if self._is(shard, ".parquet"):
            yield from self._parquet(shard, start)
        elif self._is(shard, ".tar"):
            yield from self._tar(shard, start)
        else:
            yield from self._any(shard, start)

    def encoded(self, value: Any, shard: int, row: int) -> tuple[bytes, str]:
        """Bytes and name of an image; the name says where it lies."""
        files, lengths = self._images.shard_files, self._images.lengths
        position = f"row {row + (sum(lengths[:shard]) if lengths else 0)}"
        data, name = self._images.encoded(value, position)
        if files is not None and (self._images.embedded or name == position):
            name = f"{name} of {files[shard]}"
        return data, name

    def take_broken(self) -> list[Broken]:
        """The broken shards that were found since the last call."""
        found = list(self._broken.values())[self._reported :]
        self._reported += len(found)
        return found

    @property
    def broken(self) -> list[Broken]:
        """All broken shards that were found."""
        return list(self._broken.values())

    def _parquet(self, shard: int, start: int) -> Iterator[tuple[int, Any]]:
        name, row = self._images.name, 0
        for group, length in enumerate(self._rows_of_groups(shard)):
            end = row + length
            if end <= start:
                row = end
                continue
            with self._breaking(shard, f"row group {group} cannot be read"), _open(self.name(shard)) as file:
                for part in pq.ParquetFile(file).iter_batches(_ROWS_AT_ONCE, [group], [name], use_threads=False):
                    for value in part.column(name).to_pylist():
                        if row >= start:
                            yield row, value
                        row += 1
            for lost in range(max(row, start), end):
                yield lost, LOST
            row = end
        self._lengths[shard] = row

    def _tar(self, shard: int, start: int) -> Iterator[tuple[int, Any]]:
        row = 0
        with self._breaking(shard, "broken off"):
            column = None if self._images.name == "image" else self._images.name
            for value in read_images(self.name(shard), column, start):
                if value is not None:
                    yield row, value
                row += 1
        self._lengths[shard] = row

    def _any(self, shard: int, start: int) -> Iterator[tuple[int, Any]]:
        whole = self._images.dataset.shard(num_shards=len(self), index=shard)
        given = start
        # a batch that breaks off is lost with the rows before the break: those are read one by one
        for size in (_ROWS_AT_ONCE, 1):
            row = 0
            with self._breaking(shard, "broken off") as errors:
                # .iter() gives all samples in every worker; plain iteration would share them out by worker
                for rows in whole.iter(batch_size=size):
                    for value in rows[self._images.name]:
                        if row >= given:
                            given = row + 1
                            yield row, value
                        row += 1
            if not errors:
                break
        self._lengths[shard] = row

    @contextmanager
    def _breaking(self, shard: int, what: str) -> Iterator[list[Exception]]:
        """Takes note of what breaks off in the block; gives a list that has the error afterwards."""
        errors: list[Exception] = []
        try:
            yield errors
        except Exception as error:  # of a malformed file, readers raise anything
            module = type(error).__module__.partition(".")[0]
            if isinstance(error, (ConnectionError, TimeoutError)) or module in _OF_CONNECTIONS:
                raise ValueError(
                    f"{self.name(shard)} cannot be reached: {one_line(error)}; resume when it can"
                ) from error
            errors.append(error)
            self._broken.setdefault(shard, Broken("shard", self.name(shard), f"{what}: {one_line(error)}"))

    def _is(self, shard: int, suffix: str) -> bool:
        return self._images.shard_files is not None and self._images.shard_files[shard].endswith(suffix)

    def _rows_of_groups(self, shard: int) -> list[int]:
        if shard not in self._row_groups:
            groups: list[int] = []
            with self._breaking(shard, "cannot be read"), _open(self.name(shard)) as file:
                footer = pq.read_metadata(file)
                names = footer.schema.to_arrow_schema().names
                if self._images.name not in names:
                    raise ValueError(f"it lacks the column {self._images.name!r} and has {few(names)}")
                groups = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            self._row_groups[shard] = groups
        return self._row_groups[shard]


def _open(file: str):
    """A file opened to be read by pyarrow."""
    return xopen(file, "rb") if is_url(file) else pa.OSFile(file)
