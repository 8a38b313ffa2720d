"""Images in tar files: every member that is an image is a sample, in the order of the file.

What follows the first dot of a member's name is its column, and what precedes it its key, as WebDataset has them.
Members of one key need not lie beside each other.
"""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
from datasets import (
    Dataset,
    DownloadManager,
    Features,
    Image,
    IterableDataset,
    ReadInstruction,
    concatenate_datasets,
)
from datasets.utils.file_utils import xopen

from ...config import SourceConfig
from ..fetch import Missing, is_url
from ..formats import READABLE
from ..names import few
from .folders import names_in
from .listing import State
from .listing_cache import Made, kept_listing

if TYPE_CHECKING:
    from typing_extensions import Self

DAMAGES = (tarfile.TarError, OSError, EOFError, zlib.error)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
_LINKED = "a link within a tar file; put the image itself into the archive"
_NUMBERS, _TEXTS, _JSON = ("cls", "cls2", "id", "index", "inx"), ("text", "transcript", "txt"), ("jsn", "json")
_PLACE = {"name": pa.string(), "tar": pa.int32(), "offset": pa.int64(), "size": pa.int64()}


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int
    """Of its first byte; -1 for a link."""
    size: int

    @property
    def key(self) -> str:
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def column(self) -> str:
        return self.name.rpartition("/")[2].partition(".")[2]

    def is_image(self, column: str | None = None) -> bool:
        """Whether it is an image, and of `column` where one is given."""
        readable = os.path.splitext(self.name)[1].lower() in READABLE
        return readable if column is None else readable and self.column == column


class _Header(tarfile.TarInfo):
    """Raises where the header of a member is damaged, which `tarfile` takes for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from None


def read_images(file: str, column: str | None = None, start: int = 0) -> Iterator[dict[str, Any] | None]:
    """`{"bytes", "path"}` of the images in a tar; None for those before `start`, of a local tar without reading them.

    Args:
        file: a path or a URL.
        column: of the images; None for all.

    Raises:
        tarfile.TarError, OSError, EOFError, zlib.error: where the archive breaks.
    """
    row = 0
    with _opened(file) as tar:
        for member in tar:
            if not member.is_image(column):
                continue
            if row < start:
                tar.skip(member)
                yield None
            else:
                yield {"bytes": tar.read(member), "path": member.name}
            row += 1


def name_of_member(place: dict[str, Any], tars: Sequence[str]) -> str:
    """Name of a member and its archive, by its place in `index_tars`."""
    return f"{place['name']} of {tars[place['tar']]}"


def read_member(place: dict[str, Any], tars: Sequence[str]) -> tuple[bytes, str]:
    """Bytes and name of a member, by its place in `index_tars`."""
    file, name = tars[place["tar"]], name_of_member(place, tars)
    if place["offset"] < 0:
        return Missing(_LINKED), name
    try:
        with open(file, "rb") as stream:
            stream.seek(place["offset"])
            data = stream.read(place["size"])
    except OSError as error:
        return Missing(f"cannot be read: {error.strerror or error}"), name
    return (data if len(data) == place["size"] else Missing("the file ends before it")), name


def open_tars(
    by_split: Mapping[str, Sequence[str]], config: SourceConfig, streaming: bool
) -> tuple[Dataset | IterableDataset, list[str]]:
    """The images of `config.split`, and the tars that their places are in.

    Raises:
        ValueError: no such split, a tar that cannot be read, or no such images.
    """
    names = list(names_in(config.split))
    if any(name not in by_split for name in names) or (streaming and "[" in config.split):
        raise ValueError(f"Unknown split; it has {few(by_split)}")
    tars = [file for name in names for file in by_split[name]]
    if streaming:
        return stream_tars(tars, config.image_column), []
    if is_url(tars[0]):
        tars = DownloadManager().download(tars)
    first, sets = 0, {}
    for name in names:
        numbers = range(first, first + len(by_split[name]))
        sets[name], first = index_tars(tars, config.image_column, config.label_column, numbers), numbers.stop
    slices = ReadInstruction.from_spec(config.split).to_absolute({name: len(rows) for name, rows in sets.items()})
    parts = [
        sets[part.splitname].select(range(part.from_ or 0, part.to or len(sets[part.splitname]))) for part in slices
    ]
    return concatenate_datasets(parts), tars


def stream_tars(files: Sequence[str], column: str | None = None) -> IterableDataset:
    """A shard for each tar; the column is called `image` where none is given.

    Raises:
        ValueError: no such images, with what there is instead.
    """
    found: dict[str, None] = {}
    problem = None
    for file in files:
        try:
            with _opened(file) as tar:
                for member in tar:
                    found[member.column] = None
                    if member.is_image(column):
                        break
                else:
                    continue
                break
        except DAMAGES as error:
            problem = f"{file} is a broken tar file: {error}"
    else:
        raise ValueError(_lacks(files, column, found) if found or not problem else problem)
    return IterableDataset.from_generator(
        _rows, features=Features({column or "image": Image()}), gen_kwargs={"files": list(files), "column": column}
    )


def index_tars(
    files: Sequence[str], column: str | None = None, label_column: str | None = None, numbers: range | None = None
) -> Dataset:
    """A table of where the images of local tars lie, with the other members of their keys beside them.

    It is made once and kept, like the listings of folders. Columns: `__key__`; `image`, or `column` where one is given;
    and those of the other members: images likewise, the one called `label_column` with its values, the rest without.

    Args:
        files: tars, which `tar` counts.
        numbers: of the files that are read; default: all.

    Raises:
        ValueError: a tar that cannot be read, or no such images.
    """
    paths, numbers = [os.path.abspath(file) for file in files], numbers or range(len(files))

    def make() -> Made:
        state = State("/")
        for number in numbers:
            state.add_file(paths[number])
        return _index(files, column, label_column, numbers), {}, state

    reading = ["tars", paths, column, label_column, numbers.start, numbers.stop, sorted(READABLE)]
    return kept_listing(reading, make)[0]


def _index(files: Sequence[str], column: str | None, label_column: str | None, numbers: range) -> pa.Table:
    members: list[Member] = []
    tars: list[int] = []
    for number in numbers:
        file = files[number]
        try:
            with open(file, "rb") as stream:
                if _is_compressed(stream):
                    raise ValueError(f"{file} is compressed; decompress it, or read it in order with streaming=true")
                tar = _Tar(stream, in_order=False)
                for member in tar:
                    tar.skip(member)
                    members.append(member)
                    tars.append(number)
        except DAMAGES as error:
            raise ValueError(
                f"{file} is a broken tar file: {error}; repair it, take it out, or read what can be read of it with "
                "streaming=true"
            ) from None
    rows = [n for n, member in enumerate(members) if member.is_image(column) and member.column != label_column]
    names = dict.fromkeys(member.column for member in members)
    if not rows:
        raise ValueError(_lacks(files, column, names))
    values = [[member.name for member in members], tars, [m.offset for m in members], [m.size for m in members]]
    places = pa.StructArray.from_arrays(
        [pa.array(part, kind) for part, kind in zip(values, _PLACE.values())], list(_PLACE)
    )
    columns: dict[str, Any] = {
        "__key__": [members[n].key for n in rows],
        column or "image": places.take(pa.array(rows)),
    }
    for name in names:
        if name == column:
            continue
        others = {(tars[n], member.key): n for n, member in enumerate(members) if member.column == name}
        beside = [others.get((tars[n], members[n].key)) for n in rows]
        of_images = all(members[n].is_image() for n in others.values())
        if of_images:
            columns[name] = places.take(pa.array(beside, pa.int64()))
        elif name == label_column:
            columns[name] = [
                None if n is None else _label(read_member(places[n].as_py(), files)[0], name) for n in beside
            ]
        else:
            columns[name] = pa.nulls(len(rows))
    return pa.table(columns)


def is_place(feature: Any) -> bool:
    """Whether a column says where members of tars lie, as `index_tars` does."""
    return isinstance(feature, dict) and set(feature) == set(_PLACE)


class _Tar:
    """An open tar, read member by member; without what macOS adds to archives.

    Args:
        stream: at its start.
        in_order: whether it can be read from start to end only.

    Raises:
        tarfile.TarError, OSError, EOFError: where the archive breaks, also in what is called later.
    """

    def __init__(self, stream: BinaryIO, in_order: bool) -> None:
        # not to end at zeros: archives may have been joined, and zeros may have been written over a header
        self._archive = tarfile.open(
            fileobj=stream, mode="r|*" if in_order else "r:", tarinfo=_Header, ignore_zeros=True
        )
        self._stream, self._in_order = stream, in_order

    def __iter__(self) -> Iterator[Member]:
        while (entry := self._archive.next()) is not None:
            self._archive.members.clear()  # type: ignore[attr-defined]  # it keeps all of them
            self._entry = entry
            name = entry.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            if entry.isdir() or name.rpartition("/")[2].startswith("._") or "__MACOSX" in name.split("/"):
                continue
            plain = entry.isreg() and not entry.issparse()
            yield Member(name, entry.offset_data if plain else -1, entry.size if plain else 0)

    def read(self, member: Member) -> bytes:
        """The bytes of the member that was given last."""
        if member.offset < 0:
            return Missing(_LINKED)
        if self._in_order:
            file = self._archive.extractfile(self._entry)
            assert file is not None, member
            return file.read()
        self._stream.seek(member.offset)
        data = self._stream.read(member.size)
        if len(data) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        return data

    def skip(self, member: Member) -> None:
        """Raises as `read` does, and reads what is needed to know."""
        if self._in_order:
            self.read(member)
        elif member.size > 0:
            self._stream.seek(member.offset + member.size - 1)
            if not self._stream.read(1):
                raise tarfile.ReadError("unexpected end of data")


@contextmanager
def _opened(file: str) -> Iterator[_Tar]:
    with xopen(file, "rb") if is_url(file) else open(file, "rb") as stream:
        yield _Tar(stream, in_order=is_url(file) or _is_compressed(stream))


def _is_compressed(stream: BinaryIO) -> bool:
    start = stream.read(8)
    stream.seek(0)
    return start.startswith(_COMPRESSED)


def _rows(files: Sequence[str], column: str | None) -> Iterator[dict[str, Any]]:
    for file in files:
        for value in read_images(file, column):
            yield {column or "image": value}


def _label(data: bytes, column: str) -> Any:
    """The value of a member that is no image, by its kind."""
    kind = column.rpartition(".")[2].lower()
    if kind in _NUMBERS:
        return int(data)
    if kind in _JSON:
        return json.loads(data)
    return data.decode() if kind in _TEXTS else data


def _lacks(files: Sequence[str], column: str | None, found: Iterable[str]) -> str:
    where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    what, help = (f"image_column={column!r}", "name one of these") if column else ("images", "give tars of images")
    return f"{where} lacks {what}; its members are {few(found) or 'none'}: {help}"
