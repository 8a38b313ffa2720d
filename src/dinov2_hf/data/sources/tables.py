"""Parquet, arrow, CSV and JSON as `datasets` prepares or streams them, and what is wrong where it cannot."""

from __future__ import annotations

import codecs
import csv
import glob
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetBuilder, Features, IterableDataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from datasets.utils.file_utils import xopen

from ..fetch import is_url
from ..names import few, name_images, one_line

logger = logging.getLogger(__name__)

_BATCH = 100  # rows, as many as `datasets` puts into a row group of images


def build_tables(kind: str, files: Mapping[str, Sequence[str]]) -> DatasetBuilder:
    """A builder of local tables, by split; those whose names are not UTF-8 are left out, with a warning."""
    kept = {split: [file for file in files[split] if _is_utf8(file)] for split in files}
    for file in (file for split in files for file in files[split] if not _is_utf8(file)):
        logger.warning("left out %r, whose name is not UTF-8; rename it", file.encode(errors="surrogateescape"))
    data_files = {split: [glob.escape(file) for file in kept[split]] for split in kept if kept[split]}
    if not data_files:
        raise ValueError("the names of all its files are not UTF-8; rename them")
    return load_dataset_builder(kind, data_files=data_files)


def fitted(builder: DatasetBuilder) -> DatasetBuilder:
    """A builder that reads local CSV and JSON files as they are.

    Those without rows are left out, because their columns would have no type. Of CSV files without a header the first
    row is kept, and bytes that are not UTF-8 are escaped: paths that have them are of images that are missing.

    Raises:
        ValueError: some CSV files have a header and others do not.
    """
    by_split = builder.config.data_files
    if builder.name not in ("csv", "json") or any(is_url(file) for split in by_split for file in by_split[split]):
        return builder
    options = {}
    kept = {split: [file for file in by_split[split] if _has_rows(file, builder.name)] for split in by_split}
    if builder.name == "csv":
        options = _csv_options([file for split in kept for file in kept[split]])
    if not options and kept == dict(by_split) or not any(kept.values()):
        return builder
    data_files = {split: [glob.escape(file) for file in kept[split]] for split in kept if kept[split]}
    return load_dataset_builder(builder.name, data_files=data_files, **options)


def open_stream(builder: DatasetBuilder, split: str) -> IterableDataset:
    """The tables one after the other; columns are those of the first that can be read.

    Raises:
        ValueError: none can be read.
    """
    if builder.name in ("parquet", "arrow") and builder.info.features is None:
        builder.info.features = _features(builder)
    return builder.as_streaming_dataset(split=split)


def prepare(builder: DatasetBuilder, split: str) -> Dataset:
    """The tables in the cache of `datasets`.

    Raises:
        ValueError: what is wrong with which file.
    """
    if builder.name == "parquet" and builder.config.batch_size is None:
        builder.config.batch_size = _BATCH  # the default is the first row group's, which may have no rows
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        raise ValueError(_diagnose(builder) or one_line(error.__cause__ or error)) from error
    return builder.as_dataset(split=split)


def _is_utf8(file: str) -> bool:
    try:
        file.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_rows(file: str, kind: str) -> bool:
    """Whether a file may have rows, by its first lines."""
    with open(file, "rb") as stream:
        if kind == "json":
            return stream.read(64).strip() not in (b"", b"[]")
        rows = (line for line in stream if line.strip())
        first = next(rows, None)
        return first is not None and (next(rows, None) is not None or _names_images(first))


def _names_images(line: bytes) -> bool:
    """Whether a line of CSV has the name of an image in it, as no header has."""
    text = line.decode("utf-8-sig", errors="replace")
    return any(name_images([value.strip()]) for value in next(csv.reader([text]), []))


def _csv_options(files: list[str]) -> dict[str, Any]:
    """How files are read of which some are not UTF-8, or all have no header."""
    options: dict[str, Any] = {}
    without: list[str] = []
    others: list[str] = []
    for file in files:
        with open(file, "rb") as stream:
            first = next(line for line in stream if line.strip())
            (without if _names_images(first) else others).append(file)
            stream.seek(0)
            decoder = codecs.getincrementaldecoder("utf-8")()
            try:
                while part := stream.read(1 << 24):
                    decoder.decode(part)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                logger.warning("%s has bytes that are not UTF-8; they are read as escapes such as \\xe9", file)
                options["encoding_errors"] = "backslashreplace"
    if without and others:
        raise ValueError(f"{without[0]} has no header and {others[0]} has one; give all of them a header")
    if without:
        with open(without[0], encoding="utf-8-sig", errors="replace", newline="") as stream:
            width = len(next(row for row in csv.reader(stream) if row))
        names = [f"column_{number}" for number in range(width)]
        logger.info("%s has no header: its columns are read as %s", without[0], few(names))
        options |= {"header": None, "names": names}
    return options


def _features(builder: DatasetBuilder) -> Features:
    files = [file for split in builder.config.data_files.values() for file in split]
    reasons = []
    for file in files:
        try:
            with xopen(file, "rb") as stream:
                return Features.from_arrow_schema(_schema(builder.name, stream))
        except (OSError, ValueError) as error:
            reasons.append(f"{file} cannot be read: {error}")
    raise ValueError(reasons[0])


def _schema(kind: str, stream) -> pa.Schema:
    if kind == "parquet":
        return pq.read_schema(stream)
    try:
        return pa.ipc.open_stream(stream).schema
    except (OSError, pa.ArrowInvalid):
        stream.seek(0)
        return pa.ipc.open_file(stream).schema


def _diagnose(builder: DatasetBuilder) -> str | None:
    """The file that cannot be read, or the two that do not go together and why."""
    first: tuple[str, pa.Schema] | None = None
    for file in (file for split in builder.config.data_files.values() for file in split):
        try:
            for table in _tables_of(builder, file):
                first = first or (file, table.schema)
                difference = _difference(first[0], first[1], file, table.schema)
                if difference:
                    return difference
        except Exception as error:  # of a malformed file, readers raise anything
            return f"{file} cannot be read: {one_line(error)}"
    return None


def _tables_of(builder: DatasetBuilder, file: str) -> Iterator[pa.Table]:
    options = {}
    if builder.name == "csv":
        options = {name: getattr(builder.config, name) for name in ("header", "names", "encoding_errors")}
    files = [file if is_url(file) else glob.escape(file)]
    single = load_dataset_builder(builder.name, data_files=files, **options)
    if builder.name == "parquet":
        single.config.batch_size = _BATCH
    return single.as_streaming_dataset("train").with_format("arrow").iter(batch_size=1000)


def _difference(first: str, schema: pa.Schema, second: str, other: pa.Schema) -> str | None:
    """What keeps two files from being one table, if anything does."""
    remedy = "give them as sources of their own with data.mix, or make them alike"
    here, there = set(schema.names), set(other.names)
    if here != there:
        sides = ((here - there, "the first"), (there - here, "the second"))
        only = ", ".join(f"{few(sorted(names))} only in {side}" for names, side in sides if names)
        return f"{first} and {second} have different columns: {only}; {remedy}"
    for name in schema.names:
        kinds = schema.field(name).type, other.field(name).type
        if kinds[0] != kinds[1] and not any(pa.types.is_null(kind) for kind in kinds):
            return f"column {name!r} is {kinds[0]} in {first} and {kinds[1]} in {second}; {remedy}"
    return None
