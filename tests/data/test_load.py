"""Every kind of source from its files to the bytes that training gets."""

import csv
import io
import json
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image

from dinov2_hf.config import DataConfig, SourceConfig, TrainingSourceConfig
from dinov2_hf.data import formats
from dinov2_hf.data.sources.columns import find_images
from dinov2_hf.data.sources.load import Loaded
from dinov2_hf.data.sources.training import MapSource, open_training_source

from ..patience import HANGS

both = pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])


def open_source(path, streaming=False, seed=0, **options):
    train = TrainingSourceConfig(path=str(path), streaming=streaming, **options)
    return open_training_source(DataConfig(train=train, shuffle_buffer=8), seed)


def read_epoch(source, count):
    """The samples of the first epoch of each lane, by reading `count` images three times over."""
    return [sample for sample in (source.read(number) for number in range(3 * count)) if sample.epoch == 0]


def numbers_of(samples, files):
    """Which of `files` the samples are, sorted; -1 for none of them."""
    return sorted(files.index(sample.data) if sample.data in files else -1 for sample in samples)


def assert_holds(source, files):
    """Each of `files` comes once in an epoch, and nothing else."""
    assert numbers_of(read_epoch(source, len(files)), files) == list(range(len(files)))


def refusal(**options):
    with pytest.raises(ValueError) as caught:
        open_training_source(DataConfig(train=TrainingSourceConfig(**options), shuffle_buffer=8), 0)
    return str(caught.value)


@pytest.fixture
def pictures(tmp_path, files):
    """The images as files in the folder `pictures`: relative paths."""
    (tmp_path / "pictures").mkdir()
    names = [f"pictures/{index:02}.png" for index in range(len(files))]
    for name, data in zip(names, files, strict=True):
        (tmp_path / name).write_bytes(data)
    return names


def write_table(path, columns):
    """A table of any kind, by the name of the file."""
    rows = [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        pq.write_table(pa.table(columns), path, row_group_size=5)
    return path


TABLES = ["table.csv", "table.json", "table.jsonl", "table.parquet"]


@both
@pytest.mark.parametrize("name", ["shard.tar", ".", "*.tar"])
def test_tars_are_read_as_a_file_a_folder_or_a_pattern(name, streaming, tmp_path, files, write_tar):
    count = len(files) if name == "shard.tar" else 10
    for path, numbers in [("shard.tar", range(count)), ("shard-1.tar", range(count, len(files)))]:
        if numbers:
            write_tar(tmp_path / path, {f"{number:02}": {"png": files[number], "json": b"{}"} for number in numbers})
    source = open_source(tmp_path / name, streaming)
    assert_holds(source, files)
    for number in range(5):
        sample = source.read(number)
        assert sample.name.startswith(f"{files.index(sample.data):02}.png")  # the member
        assert not streaming or sample.name.endswith(".tar")  # and the file


@both
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_paths_are_read_relative_to_their_folder(name, streaming, tmp_path, files, pictures, monkeypatch):
    monkeypatch.chdir("/")
    pictures = [*pictures[:-1], str(tmp_path / pictures[-1])]  # an absolute path stays what it is
    write_table(tmp_path / name, {"caption": ["a cat.png?"] * len(files), "file": pictures})
    source = open_source(tmp_path / name, streaming, image_column="file")
    assert_holds(source, files)
    assert {sample.name for sample in read_epoch(source, len(files))} == {
        str(tmp_path / "pictures" / f"{number:02}.png") for number in range(len(files))
    }


@both
@pytest.mark.parametrize("name", TABLES)
def test_only_column_of_image_paths_needs_no_name(name, streaming, tmp_path, files, pictures):
    texts = ["a cat"] * len(files)
    write_table(tmp_path / name, {"id": list(range(len(files))), "caption": texts, "file": pictures})
    assert_holds(open_source(tmp_path / name, streaming), files)


@both
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_format_of_tables_is_one_entry(folder, streaming, tmp_path, files, pictures, monkeypatch):
    monkeypatch.setitem(formats.TABLES, ".ndjson", "json")
    table = write_table(tmp_path / "table.jsonl", {"file": [str(tmp_path / name) for name in pictures]})
    (tmp_path / "tables").mkdir()
    table = table.rename(tmp_path / "tables" / "table.ndjson")
    assert_holds(open_source(table.parent if folder else table, streaming), files)


@both
def test_several_columns_of_image_paths_are_refused_until_one_is_named(streaming, tmp_path, files, pictures):
    table = write_table(tmp_path / "table.csv", {"left": pictures, "right": pictures[::-1]})
    message = refusal(path=str(table), streaming=streaming)
    assert "several columns that may hold the images: left, right" in message and "image_column=" in message
    assert_holds(open_source(table, streaming, image_column="right"), files)


@both
def test_relative_paths_of_tables_in_several_folders_are_refused_with_the_remedy(streaming, tmp_path, files):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder / "table.csv", {"file": ["0.png", "1.png"]})
    message = refusal(path=str(tmp_path / "*/table.csv"), streaming=streaming)
    assert "'0.png' in column 'file'" in message and "several folders" in message and "data.mix" in message


@both
def test_pattern_reads_all_files_that_match_in_the_order_of_their_names(streaming, tmp_path, dataset, files):
    for folder, name, rows in [("b", "x", range(15, 23)), ("a", "z", range(8, 15)), ("a", "y", range(8))]:
        (tmp_path / folder).mkdir(exist_ok=True)
        dataset.select(rows).to_parquet(tmp_path / folder / f"{name}.parquet")
    (tmp_path / "a" / "notes.txt").write_text("not a table")
    train = TrainingSourceConfig(path=str(tmp_path / "**/*.parquet"), streaming=streaming)
    source = open_training_source(DataConfig(train=train, shuffle=False), 0)
    assert [source.read(number).data for number in range(len(files))] == files


def test_pattern_without_or_with_mixed_files_is_refused(tmp_path):
    message = refusal(path=str(tmp_path / "*.parquet"))
    assert "no file is called" in message and "*.parquet" in message
    for name in ("a.csv", "b.json"):
        (tmp_path / name).write_text("")
    message = refusal(path=str(tmp_path / "*"))
    assert "is .csv, .json files" in message


@both
def test_brackets_in_the_name_of_a_file_are_no_pattern(streaming, tmp_path, dataset, files):
    (tmp_path / "set[1]").mkdir()
    dataset.to_parquet(tmp_path / "set[1]" / "part[0].parquet")
    assert_holds(open_source(tmp_path / "set[1]" / "part[0].parquet", streaming), files)


@both
@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_bytes_that_no_feature_describes_are_read(kind, streaming, tmp_path, files):
    values = [{"bytes": data, "path": None} for data in files] if kind == "struct" else files
    kinds = {"binary": pa.binary(), "large_binary": pa.large_binary()}
    column = pa.array(values, type=kinds.get(kind))
    names = pa.array([f"{number}.png" for number in range(len(files))])  # beside bytes, paths are names
    pq.write_table(pa.table({"name": names, "content": column}), tmp_path / "table.parquet")
    assert_holds(open_source(tmp_path / "table.parquet", streaming), files)


@both
def test_arrays_are_read_from_paths_and_from_bytes(streaming, tmp_path):
    arrays = [np.full((4, 5, 2), value, dtype=np.float32) for value in (0, 0.5, 1)]
    encoded = []
    for number, array in enumerate(arrays):
        buffer = io.BytesIO()
        np.save(buffer, array)
        encoded.append(buffer.getvalue())
        (tmp_path / f"{number}.npy").write_bytes(encoded[-1])
    write_table(tmp_path / "paths.csv", {"file": ["0.npy", "1.npy", "2.npy"]})
    write_table(tmp_path / "bytes.parquet", {"content": encoded})
    for name in ("paths.csv", "bytes.parquet"):
        samples = read_epoch(open_source(tmp_path / name, streaming), 3)
        assert sorted(np.load(io.BytesIO(sample.data)).mean() for sample in samples) == [0, 0.5, 1]


@both
def test_column_of_a_stream_of_paths_whose_first_values_are_missing_is_found(streaming, tmp_path, files, pictures):
    write_table(tmp_path / "table.jsonl", {"file": [None, None, *pictures]})
    samples = read_epoch(open_source(tmp_path / "table.jsonl", streaming), len(files) + 2)
    assert numbers_of(samples, files) == [-1, -1, *range(len(files))]
    assert {sample.name.split(" of ")[0] for sample in samples if not sample.data} == {"row 0", "row 1"}


class Server(ThreadingHTTPServer):
    """Serves `files` under their numbers, with the faults that `faults` has for the next requests of a path."""

    def __init__(self, files):
        self.files, self.faults, self.requests = files, {}, []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        self.server.requests.append(path)
        faults = self.server.faults.get(path, [])
        fault = faults.pop(0) if faults else None
        data = self.server.files[int(path[1:-4])]
        if fault == "hang":
            self.server.hold.wait(HANGS)
            return
        self.send_response(fault if isinstance(fault, int) else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
        elif fault != "drop":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextmanager
def serving(files):
    server = Server(files)
    server.hold = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.hold.set()
        server.shutdown()
        server.server_close()


@both
@pytest.mark.parametrize("name", ["table.csv", "table.jsonl"])
def test_tables_of_urls_are_read_each_image_once(name, streaming, tmp_path, files):
    with serving(files) as server:
        urls = [f"{server.url}/{number}.png?size=full" for number in range(len(files))]
        write_table(tmp_path / name, {"url": urls})
        source = open_source(tmp_path / name, streaming)
        samples = [source.read(number) for number in range(len(files))]
        assert numbers_of(samples, files) == list(range(len(files)))
        assert {sample.name for sample in samples} == set(urls)
        assert sorted(server.requests) == sorted(f"/{number}.png" for number in range(len(files)))


@pytest.mark.parametrize(
    "faults, requests, read",
    [
        ([503], 2, True),
        (["cut"], 2, True),
        ([503, 503], 2, False),
        (["cut", "drop"], 2, False),
        ([404], 1, False),
        (["hang", "hang"], 2, False),
    ],
)
def test_url_is_tried_twice_and_then_has_no_bytes(faults, requests, read, tmp_path, files, monkeypatch):
    monkeypatch.setattr("dinov2_hf.data.fetch._TIMEOUT", 0.3)
    with serving(files) as server:
        server.faults["/1.png"] = list(faults)
        write_table(tmp_path / "table.csv", {"url": [f"{server.url}/{number}.png" for number in range(3)]})
        samples = {sample.index: sample for sample in map(open_source(tmp_path / "table.csv").read, range(3))}
        assert [samples[0].data, samples[2].data] == [files[0], files[2]]
        assert samples[1].data == (files[1] if read else b"")
        assert samples[1].name == f"{server.url}/1.png"
        assert server.requests.count("/1.png") == requests


def test_url_of_no_server_has_no_bytes_and_is_named(tmp_path, files):
    with serving(files) as server:
        url = f"{server.url}/0.png"
    write_table(tmp_path / "table.csv", {"url": [url]})
    sample = open_source(tmp_path / "table.csv").read(0)
    assert (sample.data, sample.name) == (b"", url)


def test_split_chooses_the_rows(paths, files):
    validation = open_source(paths["splits"], split="validation")
    assert numbers_of([validation.read(number) for number in range(5)], files) == list(range(5))
    assert validation.read(5).epoch == 1


def test_slice_of_a_split_of_a_folder_is_read(paths, files):
    assert_holds(open_source(paths["flat"], split="train[:10]"), files[:10])


@both
def test_splits_of_a_folder_of_tables_can_be_joined(streaming, tmp_path, dataset, files):
    dataset.select(range(12)).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    dataset.select(range(12, 23)).to_parquet(tmp_path / "validation.parquet")
    assert_holds(open_source(tmp_path, streaming), files[:12])
    assert_holds(open_source(tmp_path, streaming, split="train+validation"), files)


@both
def test_configuration_of_a_set_chooses_its_files(streaming, tmp_path, dataset, files):
    for name, rows in [("first", range(12)), ("second", range(12, 23))]:
        dataset.select(rows).to_parquet(tmp_path / f"{name}.parquet")
    lines = [f"- config_name: {name}\n  data_files: {name}.parquet" for name in ("first", "second")]
    (tmp_path / "README.md").write_text("\n".join(["---", "configs:", *lines, "---", ""]))
    assert_holds(open_source(tmp_path, streaming, name="second"), files[12:])


def test_named_image_column_is_read(files, tmp_path):
    encoded = [{"bytes": data, "path": None} for data in files]
    columns = {"first": encoded, "second": encoded[::-1]}
    Dataset.from_dict(columns, features=Features({"first": Image(), "second": Image()})).save_to_disk(tmp_path / "two")
    unnamed = open_source(tmp_path / "two").read(0)
    second = open_source(tmp_path / "two", image_column="second").read(0)
    assert unnamed.data == files[unnamed.index]
    assert second.data == files[::-1][second.index]


@both
def test_samples_of_a_folder_are_named_by_their_files(streaming, paths, files):
    source = open_source(paths["folder"], streaming)
    for number in range(len(files)):
        sample = source.read(number)
        with open(sample.name, "rb") as file:
            assert file.read() == sample.data


def test_samples_of_a_table_are_named_by_their_rows(paths, files):
    sample = open_source(paths["table.parquet"]).read(7)
    assert sample.name == f"row {sample.index}"
    sample = open_source(paths["saved"], streaming=True).read(7)
    assert sample.name == f"row {files.index(sample.data)}"


def test_samples_of_streamed_tables_are_named_by_row_and_file(paths, files):
    source = open_source(paths["tables"], streaming=True)
    for number in range(len(files)):
        sample = source.read(number)
        file, row = divmod(files.index(sample.data), 12)
        assert sample.name == f"row {row} of {paths['tables'] / f'train-{file}.parquet'}"


def test_deleted_file_and_missing_value_give_no_bytes(tmp_path, files):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(files[index])
    values = [{"bytes": None, "path": str(tmp_path / f"{index}.png")} for index in range(3)] + [None]
    stored = Dataset.from_dict({"image": values}, features=Features({"image": Image()}))
    (tmp_path / "1.png").unlink()
    source = MapSource(find_images(Loaded(stored, [], None), SourceConfig()), seed=0)
    samples = {sample.index: sample for sample in map(source.read, range(4))}
    assert [samples[index].data for index in range(4)] == [files[0], b"", files[2], b""]
    assert samples[1].name == str(tmp_path / "1.png") and samples[3].name == "row 3"


@both
def test_images_in_an_archive_are_read(streaming, tmp_path, files):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for index, data in enumerate(files):
            archive.writestr(f"{index:02}.png", data)
    assert_holds(open_source(tmp_path, streaming), files)


@both
def test_empty_folder_is_refused(streaming, paths):
    message = refusal(path=str(paths["empty"]), streaming=streaming)
    assert str(paths["empty"]) in message and "empty folder" in message and "put images into it" in message


@pytest.mark.parametrize("name", ["inner/", "notes.bin"])
def test_folder_without_anything_to_read_is_refused(name, tmp_path):
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"\0")
    message = refusal(path=str(tmp_path))
    assert str(tmp_path) in message and "no images or tables" in message


@both
def test_missing_folder_is_refused(streaming, tmp_path):
    path = str(tmp_path / "nowhere")
    message = refusal(path=path, streaming=streaming)
    assert message.startswith(f"{path} does not exist; give a folder of images")


def test_missing_relative_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "./nowhere does not exist" in refusal(path="./nowhere")


def test_file_of_another_kind_is_refused_naming_those_that_can_be_read(tmp_path):
    (tmp_path / "table.xlsx").write_text("a,b\n")
    message = refusal(path=str(tmp_path / "table.xlsx"))
    assert "table.xlsx is a .xlsx file" in message
    for suffix in (".parquet", ".arrow", ".tar", ".csv", ".json", ".jsonl"):
        assert suffix in message


@pytest.mark.parametrize("name, text", [("table.json", '{"file": '), ("table.parquet", "no parquet")])
@both
def test_file_that_is_not_what_its_name_says_is_refused_naming_it(streaming, name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert str(tmp_path / name) in refusal(path=str(tmp_path / name), streaming=streaming)


@both
@pytest.mark.parametrize("kind", ["folder", "tables", "splits"])
def test_unknown_split_is_refused_naming_those_there_are(kind, streaming, paths):
    message = refusal(path=str(paths[kind]), split="test", streaming=streaming)
    assert "split='test' is not in" in message and str(paths[kind]) in message
    assert "train" in message.removeprefix("split='test'").replace(str(paths[kind]), "")


@both
@pytest.mark.parametrize("kind", ["saved", "table.parquet", "splits"])
def test_slice_of_a_split_is_read_or_refused_but_not_ignored(kind, streaming, paths, files):
    try:
        source = open_source(paths[kind], streaming, split="train[:10]")
    except ValueError as error:
        assert "train[:10]" in str(error)
    else:
        assert_holds(source, files[:10])


@both
def test_missing_column_is_refused_naming_those_there_are(streaming, paths):
    message = refusal(path=str(paths["saved"]), image_column="image", streaming=streaming)
    assert str(paths["saved"]) in message and "image_column='image'" in message
    assert "its columns are id, picture, kind, code, text" in message


@both
@pytest.mark.parametrize("name", TABLES)
def test_set_without_images_is_refused_naming_its_columns(name, streaming, dataset, tmp_path):
    columns = dataset.remove_columns("picture")[:]
    message = refusal(path=str(write_table(tmp_path / name, columns)), streaming=streaming)
    assert "its columns are id, kind, code, text" in message and "image_column=" in message


@both
def test_column_of_another_type_is_refused_naming_type_and_remedy(streaming, paths):
    message = refusal(path=str(paths["saved"]), image_column="code", streaming=streaming)
    assert "'code'" in message and "int64" in message and "cast_column" in message


@both
def test_set_without_rows_is_refused(streaming, dataset, tmp_path):
    dataset.select([]).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="no data|no rows|no samples"):
        open_source(tmp_path / "table.parquet", streaming).read(0)


@both
def test_csv_without_rows_is_refused_naming_it(streaming, tmp_path):
    (tmp_path / "table.csv").write_text("file\n")
    assert str(tmp_path / "table.csv") in refusal(path=str(tmp_path / "table.csv"), streaming=streaming)
