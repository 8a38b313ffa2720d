"""Tables `metadata.csv`, `.jsonl` and `.parquet` beside images, with the meaning of `datasets`' ImageFolder.

A row belongs to the file that its column `file_name` names, relative to the folder of the table. `left_file_name` makes
a column `left` of images, `file_names` and `left_file_names` make columns of lists of images.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
from datasets import Features, Image, List

from ..paths import shown

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass
class Metadata:
    """The rows that tables have for the images of a folder."""

    table: pa.Table
    """A row for each image of the main column, in the order of the tables, then one for each image that none names."""
    features: Features
    main: list[int]
    """Which image each row has in the main column; of lists, the first of them."""
    unnamed: int
    """Images that no table names."""
    elsewhere: int = 0
    """Images that are named in further columns only."""
    missing: list[str] = field(default_factory=list)
    """Names of files that are not among the images."""


@dataclass
class _Column:
    """A column of names of files, as the images that they are: an index or None for each row, or a list of them."""

    name: str
    is_list: bool
    rows: list


def read_table(path: str, content: bytes) -> pa.Table | None:
    """A table of metadata; None where it names no files, so that it is a file like any other.

    Raises:
        ValueError: it cannot be read.
    """
    file, suffix = io.BytesIO(content), posixpath.splitext(path)[1]
    try:
        if suffix == ".csv":
            table = pa.Table.from_pandas(pandas.read_csv(file), preserve_index=False)
        elif suffix == ".jsonl":
            options = pa.json.ReadOptions(block_size=max(len(content), 1) if len(content) < 2**31 else 2**30)
            table = pa.json.read_json(file, read_options=options)
        else:
            table = pa.parquet.read_table(file)
    except Exception as error:  # pandas and pyarrow raise ValueError, ArrowException, OSError, UnicodeDecodeError, …
        reason = shown(str(error).strip().split("\n")[0])
        raise ValueError(f"{shown(path)} cannot be read: {reason}; correct it, or give it another name") from None
    return table if any(_image_column(entry) for entry in table.schema) else None


def join_metadata(tables: Sequence[tuple[str, pa.Table]], images: Sequence[str], stored: Sequence[str]) -> Metadata:
    """Joins the rows of `tables` to `images`; an image has the rows of the nearest table that names it.

    Args:
        tables: path of each relative to the folder, and its rows.
        images: paths relative to the folder.
        stored: their stored names.

    Raises:
        ValueError: tables whose columns do not fit together.
    """
    index = {path: number for number, path in enumerate(images)}
    missing: list[str] = []
    columns = [_resolve(path, table, index, missing) for path, table in tables]
    names = list(dict.fromkeys((column.name, column.is_list) for found in columns for column in found))
    singles = [name for name, is_list in names if not is_list]
    main = "image" if "image" in singles else singles[0] if singles else names[0][0]
    depth = [path.count("/") for path, _ in tables]
    nearest: dict[int, int] = {}
    for number, found in enumerate(columns):
        for image in _images_of(found, main):
            nearest[image] = max(nearest.get(image, 0), depth[number])

    parts: list[pa.Table] = []
    rows: list[int] = []
    used: set[int | None] = set()
    for number, ((_, table), found) in enumerate(zip(tables, columns, strict=True)):
        by_name = {column.name: column for column in found}
        mains = [_first(value) for value in by_name[main].rows] if main in by_name else [None] * len(table)
        kept = [row for row, image in enumerate(mains) if image is not None and nearest[image] == depth[number]]
        others = [entry.name for entry in table.schema if not _image_column(entry) and entry.name not in by_name]
        part = {name: table.column(name).take(pa.array(kept, pa.int64())) for name in others}
        for column in found:
            values = [column.rows[row] for row in kept]
            used.update(image for value in values for image in (value if column.is_list else [value]))
            part[column.name] = image_array(values, stored, column.is_list)
        parts.append(pa.table(part))
        rows += [first for row in kept if (first := mains[row]) is not None]
    used |= nearest.keys()
    unnamed = [number for number in range(len(images)) if number not in used]
    if singles:
        rows += unnamed
        parts.append(pa.table({main: image_array(unnamed, stored)}))
    try:
        joined = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        where = ", ".join(shown(path) for path, _ in tables)
        raise ValueError(f"the columns of {where} do not fit together: {str(error).splitlines()[0]}") from None
    is_list = dict(names)
    kinds = {
        name: (List(Image()) if is_list[name] else Image()) if name in is_list else feature
        for name, feature in Features.from_arrow_schema(joined.schema).items()
    }
    order = [main, *(name for name in kinds if name != main)]
    features = Features({name: kinds[name] for name in order})
    elsewhere = len({image for image in used if image is not None} - set(rows))
    return Metadata(joined.select(order), features, rows, len(unnamed), elsewhere, missing)


def image_array(images: Iterable, stored: Sequence[str], is_list: bool = False) -> pa.Array:
    """Images as `datasets` stores them, by the names in `stored`; None for those that are missing."""
    images = list(images)
    if is_list:
        offsets = [0]
        for value in images:
            offsets.append(offsets[-1] + len(value))
        flat = image_array([image for value in images for image in value], stored)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    paths = pa.array([None if image is None else stored[image] for image in images], pa.string())
    mask = pa.array([image is None for image in images], pa.bool_())
    return pa.StructArray.from_arrays(
        [pa.nulls(len(images), pa.binary()), paths], ["bytes", "path"], mask=mask if None in images else None
    )


def _image_column(entry: pa.Field) -> tuple[str, bool] | None:
    """The column of images that a column of names makes, and whether it has lists; None for other columns."""
    kind, is_list = entry.type, False
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind, is_list = kind.value_type, True
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return None
    end = "file_names" if is_list else "file_name"
    if entry.name == end:
        return ("images" if is_list else "image"), is_list
    return (entry.name.removesuffix(f"_{end}"), is_list) if entry.name.endswith(f"_{end}") else None


def _resolve(path: str, table: pa.Table, index: dict[str, int], missing: list[str]) -> list[_Column]:
    folder, found = posixpath.dirname(path), []

    def resolve(name: str | None) -> int | None:
        if name is None:
            return None
        for written in (name, name.replace("\\", "/")):
            number = index.get(posixpath.normpath(posixpath.join(folder, written)))
            if number is not None:
                return number
        missing.append(name)
        return None

    for entry in table.schema:
        column = _image_column(entry)
        if column is None:
            continue
        values = table.column(entry.name).to_pylist()
        if column[1]:
            rows: list = [[resolve(name) for name in value or ()] for value in values]
        else:
            rows = [resolve(name) for name in values]
        found.append(_Column(*column, rows))
    return found


def _images_of(columns: list[_Column], main: str) -> set[int]:
    rows = next((column.rows for column in columns if column.name == main), ())
    return {image for image in map(_first, rows) if image is not None}


def _first(value) -> int | None:
    if isinstance(value, list):
        return next((image for image in value if image is not None), None)
    return value
