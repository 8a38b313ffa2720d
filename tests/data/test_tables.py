"""Tables that are odd or broken: read where there is a sensible way, refused in one line that names the file if not."""

import json
import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Video

from dinov2_hf.config import DataConfig, SourceConfig, TrainingSourceConfig
from dinov2_hf.data.sources.columns import open_images
from dinov2_hf.data.sources.training import open_training_source
from dinov2_hf.evaluation.datasets import LabeledImages

both = pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])


def read(path, count, streaming=False, **options):
    train = TrainingSourceConfig(path=str(path), streaming=streaming, **options)
    source = open_training_source(DataConfig(train=train, shuffle=False), 0)
    return [source.read(number) for number in range(count)]


def refusal(path, streaming=False, **options):
    with pytest.raises(ValueError) as caught:
        open_images(SourceConfig(path=str(path), **options), streaming)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def pictures(tmp_path, files):
    names = [f"{number:02}.png" for number in range(6)]
    for name, data in zip(names, files):
        (tmp_path / name).write_bytes(data)
    return names


def write(path, rows):
    """A table of any kind, by the name of the file; rows as dictionaries."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".csv":
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in [rows[0], *(row.values() for row in rows)]))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KINDS = ["parquet", "arrow", "csv", "json", "jsonl"]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_file_among_tables_is_refused_naming_it(kind, tmp_path, pictures):
    for number in range(3):
        write(tmp_path / f"{number}.{kind}", [{"file": name} for name in pictures])
    bad = tmp_path / f"1.{kind}"
    data = bad.read_bytes()
    bad.write_bytes(b"file\na.png\nb.png,c.png\n" if kind == "csv" else data[: len(data) // 2 - 5])
    message = refusal(tmp_path / f"*.{kind}")
    assert f"{bad} cannot be read" in message
    assert str(tmp_path / f"0.{kind}") not in message


def test_damaged_row_group_is_refused_naming_its_file(tmp_path, files):
    for number in range(3):
        pq.write_table(pa.table({"image": files[:4]}), tmp_path / f"{number}.parquet", use_dictionary=False)
    chunk = pq.read_metadata(tmp_path / "2.parquet").row_group(0).column(0)
    with open(tmp_path / "2.parquet", "r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(b"\xff" * chunk.total_compressed_size)
    assert f"{tmp_path / '2.parquet'} cannot be read" in refusal(tmp_path)


@both
@pytest.mark.parametrize("kind", KINDS)
def test_files_without_rows_among_others_are_read_as_none(kind, streaming, tmp_path, pictures, files):
    for number in (1, 3):
        write(tmp_path / f"{number}.{kind}", [{"file": name} for name in pictures[number - 1 : number + 1]])
    empty = pa.table({"file": pa.array([], pa.string())})
    for number in (0, 2, 4):
        path = tmp_path / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(empty, path)
        elif kind == "arrow":
            with pa.ipc.new_stream(path, empty.schema):
                pass
        else:
            path.write_text({"csv": "file\n", "json": "[]", "jsonl": ""}[kind])
    samples = read(tmp_path / f"*.{kind}", 8, streaming)
    assert [sample.data for sample in samples] == 2 * files[:4]
    assert not any(sample.broken for sample in samples)


def test_row_group_without_rows_is_read_as_none(tmp_path, files):
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema({"image": pa.binary()})) as writer:
        for rows in ([], files[:2], [], files[2:4]):
            writer.write_table(pa.table({"image": pa.array(rows, pa.binary())}))
    for streaming in (False, True):
        assert [sample.data for sample in read(tmp_path / "a.parquet", 4, streaming)] == files[:4]


@both
@pytest.mark.parametrize("columns", [1, 3])
def test_csv_without_a_header_keeps_its_first_row(columns, streaming, tmp_path, pictures, files, caplog):
    rows = [",".join([name, "a cat", "7"][:columns]) for name in pictures]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    with caplog.at_level(logging.INFO):
        samples = read(tmp_path / "table.csv", 6, streaming)
    assert [sample.data for sample in samples] == files[:6]
    assert f"{tmp_path / 'table.csv'} has no header" in caplog.text and "column_0" in caplog.text
    named = read(tmp_path / "table.csv", 6, streaming, image_column="column_0")
    assert [sample.data for sample in named] == files[:6]


@both
def test_csv_of_urls_without_a_header_keeps_its_first_row(streaming, tmp_path):
    urls = [f"http://127.0.0.1:1/{number}.jpg?a=b" for number in range(3)]
    (tmp_path / "table.csv").write_text("\n".join(urls) + "\n")
    assert [sample.name for sample in read(tmp_path / "table.csv", 3, streaming)] == urls


@both
def test_csv_files_of_which_one_has_a_header_are_refused_naming_two(streaming, tmp_path, pictures):
    (tmp_path / "a.csv").write_text("file\n0.png\n")
    (tmp_path / "b.csv").write_text("0.png\n1.png\n")
    message = refusal(tmp_path / "*.csv", streaming)
    assert f"{tmp_path / 'b.csv'} has no header and {tmp_path / 'a.csv'} has one" in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "other, difference",
    [
        ({"path": "0.png"}, "{a} and {b} have different columns: file only in the first, path only in the second"),
        ({"file": "0.png", "size": 3}, "size only in the second"),
    ],
)
def test_tables_of_different_columns_are_refused_naming_two_and_the_difference(kind, other, difference, tmp_path):
    a, b = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    write(a, [{"file": "0.png"}])
    write(b, [other])
    assert difference.format(a=a, b=b) in refusal(tmp_path / f"*.{kind}")


@pytest.mark.parametrize("kind, other, of", [("parquet", [1], "list"), ("arrow", [1], "list"), ("csv", 1, "int64")])
def test_tables_of_different_types_are_refused_naming_two_and_the_column(kind, other, of, tmp_path):
    a, b = write(tmp_path / f"a.{kind}", [{"file": "0.png"}]), write(tmp_path / f"b.{kind}", [{"file": other}])
    message = refusal(tmp_path / f"*.{kind}")
    assert "column 'file' is " in message and f"string in {a} and {of}" in message and f" in {b};" in message


def test_lists_of_columns_are_short(tmp_path):
    pq.write_table(pa.table({f"column{number}": [1] for number in range(200)}), tmp_path / "a.parquet")
    for options in ({}, {"image_column": "image"}, {"image_column": "column0"}):
        message = refusal(tmp_path / "a.parquet", **options)
        assert "column0, column1" in message and "and 190 more" in message and len(message) < 600
    with pytest.raises(ValueError, match="and 191 more"):
        pq.write_table(
            pa.table({"image": [b"x"]} | {f"column{number}": [1] for number in range(200)}), tmp_path / "b.parquet"
        )
        LabeledImages(SourceConfig(path=str(tmp_path / "b.parquet"), label_column="label"))


@both
def test_table_of_videos_says_so(streaming, tmp_path):
    videos = Dataset.from_dict({"clip": [{"bytes": b"x", "path": None}]}, features=Features({"clip": Video()}))
    videos.to_parquet(tmp_path / "a.parquet")
    message = refusal(tmp_path / "a.parquet", streaming)
    assert "its columns are clip; clip has videos" in message and "extract the frames" in message


@both
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_table_whose_name_is_not_utf8_is_left_out_and_named(kind, streaming, tmp_path, pictures, files, caplog):
    for number in range(3):
        write(tmp_path / f"{number}.{kind}", [{"file": name} for name in pictures[number : number + 1]])
    os.rename(tmp_path / f"1.{kind}", os.fsencode(tmp_path) + b"/1\xff." + kind.encode())
    for path in (tmp_path / f"*.{kind}", tmp_path):
        if path == tmp_path:
            [file.unlink() for file in tmp_path.glob("*.png")]
        with caplog.at_level(logging.WARNING):
            samples = read(path, 2, streaming)
        assert [sample.name for sample in samples] == [str(tmp_path / pictures[number]) for number in (0, 2)]
        assert rf"1\xff.{kind}" in caplog.text and "not UTF-8" in caplog.text
        caplog.clear()


@both
def test_csv_of_which_a_path_is_not_utf8_is_read_and_that_image_is_missing(streaming, tmp_path, pictures, files):
    lines = [b"file", *(name.encode() for name in pictures)]
    lines[3] = b"caf\xe9.png"
    (tmp_path / "table.csv").write_bytes(b"\n".join(lines) + b"\n")
    samples = read(tmp_path / "table.csv", 6, streaming)
    expected = [*files[:2], b"", *files[3:6]]
    assert [sample.data for sample in samples] == expected
    assert samples[2].data.reason == "no such file or directory"


def test_relative_path_in_structs_of_tables_in_several_folders_says_so(tmp_path, files):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(files[0])
        values = pa.array([{"bytes": None, "path": "0.png"}], type=kind)
        pq.write_table(pa.table({"image": values}), tmp_path / folder / "t.parquet")
    (sample,) = read(tmp_path / "*/t.parquet", 1)
    assert sample.data == b"" and "a relative path" in sample.data.reason


def test_random_bytes_for_a_table_are_refused_in_one_line(tmp_path):
    rng = np.random.default_rng(0)
    for kind in KINDS:
        (tmp_path / f"a.{kind}").write_bytes(rng.bytes(2000))
        for streaming in (False, True):
            assert f"a.{kind}" in refusal(tmp_path / f"a.{kind}", streaming)
