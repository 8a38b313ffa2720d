"""An image that there are no bytes of is named with its reason, by every reader."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov2_hf.config import DataConfig, SourceConfig, TrainingSourceConfig
from dinov2_hf.data.decode import BrokenImage, open_image
from dinov2_hf.data.fetch import Missing, read_bytes
from dinov2_hf.data.sources.training import open_training_source
from dinov2_hf.evaluation.datasets import LabeledImages
from dinov2_hf.visualize.sources import ImageRows

PATHS = {
    "gone.png": "no such file or directory",
    "folder.png": "is a directory",
    "empty.png": "an empty file",
    "zip://a.png::absent.zip": "no such file or directory",
    "http://127.0.0.1:1/a.png": "connection refused",
    "unknown://a.png": "cannot be read: Protocol not known: unknown",
    None: "there is no value (null)",
    "": "the path is empty",
}


def reason_of(data):
    with pytest.raises(BrokenImage) as caught:
        open_image(data)
    return str(caught.value)


@pytest.fixture
def table(tmp_path, files):
    """Images that cannot be read, each for its own reason, with one that can before them; labels beside them."""
    (tmp_path / "good.png").write_bytes(files[0])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    paths = ["good.png", *PATHS]
    pq.write_table(pa.table({"file": paths, "label": [0] * len(paths)}), tmp_path / "table.parquet")
    return str(tmp_path / "table.parquet")


def read_for_training(path, streaming):
    train = TrainingSourceConfig(path=path, streaming=streaming)
    source = open_training_source(DataConfig(train=train, shuffle=False), 0)
    return lambda index: source.read(index).data


READERS = {
    "map": lambda path: read_for_training(path, False),
    "stream": lambda path: read_for_training(path, True),
    "labels": lambda path: (
        lambda index: LabeledImages(SourceConfig(path=path, label_column="label", image_column="file")).read(index)[0]
    ),
    "rows": lambda path: lambda index: ImageRows(SourceConfig(path=path)).read(index)[0],
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_why_there_are_no_bytes(reader, table, files):
    read = READERS[reader](table)
    assert read(0) == files[0]
    for row, reason in enumerate(PATHS.values(), start=1):
        assert read(row) == b"" and reason in reason_of(read(row)), row


@pytest.mark.parametrize(
    "value, reason",
    [
        ({"bytes": b"", "path": "a.png"}, "0 bytes"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        ({"bytes": None, "path": "gone.png"}, "no such file"),
        (None, "null"),
    ],
)
def test_structs_without_an_image_say_why(value, reason, tmp_path, files):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    values = pa.array([value, {"bytes": files[0], "path": None}], type=kind)
    pq.write_table(pa.table({"image": values}), tmp_path / "table.parquet")
    assert reason in reason_of(read_for_training(str(tmp_path / "table.parquet"), False)(0))


def test_relative_path_in_a_struct_is_relative_to_the_folder_of_its_table(tmp_path, files, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "images").mkdir()
    for number, data in enumerate(files[:3]):
        (tmp_path / "images" / f"{number}.png").write_bytes(data)
    values = [{"bytes": None, "path": f"images/{number}.png"} for number in range(3)]
    values = pa.array(values, type=pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": values}), tmp_path / "table.parquet")
    for streaming in (False, True):
        read = read_for_training(str(tmp_path / "table.parquet"), streaming)
        assert [read(number) for number in range(3)] == files[:3]


NAMES = ["photo #1.jpg", "what?.png", "100%.png", "a%20b.png", "a:b.png", "photo:1.png", "a::b.png", "[1].png"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_local_paths_are_never_parsed_as_urls(suffix, tmp_path, files):
    for name, data in zip(NAMES, files):
        (tmp_path / name).write_bytes(data)
    table = pa.table({"file": NAMES, "note": ["text"] * len(NAMES)})
    path = tmp_path / f"table.{suffix}"
    frame = table.to_pandas()
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        pq.write_table(table, path)
    for streaming in (False, True):
        read = read_for_training(str(path), streaming)
        assert [read(number) for number in range(len(NAMES))] == files[: len(NAMES)]


def test_reason_travels_between_processes():
    missing = pickle.loads(pickle.dumps(Missing("gone")))
    assert missing == b"" and isinstance(missing, Missing) and missing.reason == "gone"


def test_member_of_an_archive_that_is_none_says_so(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"no archive")
    assert "not a zip file" in reason_of(read_bytes(f"zip://a.png::{tmp_path / 'broken.zip'}"))
