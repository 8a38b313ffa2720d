"""Parquet, arrow, CSV and JSON as `datasets` prepares or streams them, and what is wrong where it cannot."""

from __future__ import annotations

import csv
import glob
import logging
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetBuilder, Features, IterableDataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError
from datasets.utils.file_utils import xopen

from .fetch import is_url
from .names import few, name_images, one_line

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


def with_header(builder: DatasetBuilder) -> DatasetBuilder:
    """A builder of CSV files of which the first row is none of the images; any other builder is given back.

    Raises:
        ValueError: some files have a header and others do not.
    """
    if builder.name != "csv":
        return builder
    by_split = builder.config.data_files
    files = [file for split in by_split for file in by_split[split] if not is_url(file)]
    rows = {file: _first_row(file) for file in files}
    without = [file for file, row in rows.items() if any(name_images([value]) for value in row)]
    if not without:
        return builder
    others = [file for file, row in rows.items() if row and file not in without]
    if others:
        raise ValueError(f"{without[0]} has no header and {others[0]} has one; give all of them a header")
    names = [f"column_{number}" for number in range(len(rows[without[0]]))]
    logger.info("%s has no header: its columns are read as %s", without[0], few(names))
    data_files = {split: [glob.escape(file) for file in by_split[split]] for split in by_split}
    return load_dataset_builder("csv", data_files=data_files, header=None, names=names)


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


def _first_row(file: str) -> list[str]:
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as stream:
        return next(csv.reader(stream), [])


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
    options = {"header": None, "names": builder.config.names} if getattr(builder.config, "names", None) else {}
    files = [file if is_url(file) else glob.escape(file)]
    alone = load_dataset_builder(builder.name, data_files=files, **options)
    if builder.name == "parquet":
        alone.config.batch_size = _BATCH
    return alone.as_streaming_dataset("train").with_format("arrow").iter(batch_size=1000)


def _difference(first: str, schema: pa.Schema, second: str, other: pa.Schema) -> str | None:
    """What keeps two files from being one table, if anything does."""
    remedy = "give them as sources of their own with data.mix, or make them alike"
    here, there = set(schema.names), set(other.names)
    if here != there:
        parts = [
            f"{few(sorted(names))} only in {file}"
            for names, file in ((here - there, first), (there - here, second))
            if names
        ]
        return f"{first} and {second} have different columns: {', and '.join(parts)}; {remedy}"
    for name in schema.names:
        kinds = schema.field(name).type, other.field(name).type
        if kinds[0] != kinds[1] and not any(pa.types.is_null(kind) for kind in kinds):
            return f"column {name!r} is {kinds[0]} in {first} and {kinds[1]} in {second}; {remedy}"
    return None
