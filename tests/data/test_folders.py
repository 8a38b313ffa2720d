"""Every image of a folder is read, and what is not read is said."""

import logging
import os
import re
import zipfile

import datasets
import numpy as np
import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from dinov2_hf.config import DataConfig, SourceConfig, TrainingSourceConfig
from dinov2_hf.data.decode import open_image
from dinov2_hf.data.sources.columns import open_images
from dinov2_hf.data.sources.load import load
from dinov2_hf.data.sources.training import open_training_source
from dinov2_hf.evaluation.datasets import LabeledImages

from .layouts import Layout, decodes, differences, walk

both = pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO, "dinov2_hf")
    return caplog


@pytest.fixture
def line(log):
    """The last line of the log about a source."""
    return lambda: [record.getMessage() for record in log.records if record.name == "dinov2_hf.data.sources.load"][-1]


def make(root, *names, **others):
    """Files below `root`, each of which holds its own name."""
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(os.fsencode(name))
    return root


def open_source(streaming=False, shuffle=False, **options):
    return open_training_source(
        DataConfig(train=TrainingSourceConfig(streaming=streaming, **options), shuffle=shuffle), 0
    )


def read(path, streaming=False, **options):
    """What the files of a folder hold, in the order in which they are read."""
    source, contents = open_source(streaming, path=str(path), **options), []
    while (sample := source.read(len(contents))).epoch == 0:
        contents.append(os.fsdecode(sample.data))
    return contents


def refusal(path, **options):
    with pytest.raises(ValueError) as caught:
        load(SourceConfig(path=str(path), **options), False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- splits


@pytest.mark.parametrize(
    "names",
    [
        [*(f"IMG_{number}.jpg" for number in range(9)), "steam_train.jpg"],
        ["eval1.jpg", "img_train_3.jpg", "test_01.jpg", "test_02.jpg"],
        ["holiday/1.jpg", "my_test_photos/2.jpg", "training-day/3.jpg"],
        [*(f"photo_{number}.jpg" for number in range(10)), "test.png"],
        ["train.jpg"],
        ["test.jpg", "val.jpg"],
        ["other/1.jpg", "test/2.jpg", "train/3.jpg"],
        ["1.jpg", "test/2.jpg", "train/3.jpg"],
        ["set/test/2.jpg", "set/train/3.jpg"],
        ["Train/1.jpg", "VAL/2.jpg"],
        ["train_1/1.jpg", "train_2/2.jpg"],
    ],
    ids=lambda names: names[-1].replace("/", "_"),
)
@both
def test_words_of_splits_in_names_hide_no_image(streaming, names, tmp_path):
    assert read(make(tmp_path, *names), streaming) == sorted(names, key=os.fsencode)


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train", ["train/a/1.jpg", "train/b/2.jpg"]),
        ("validation", ["val/a/3.jpg", "validation/4.jpg"]),
        ("test", ["test/5.jpg"]),
        ("train[1:]", ["train/b/2.jpg"]),
        ("validation[:50%]", ["val/a/3.jpg"]),
        ("test+train[:1]", ["test/5.jpg", "train/a/1.jpg"]),
    ],
)
@both
def test_folders_of_splits_are_splits_if_no_image_lies_elsewhere(streaming, split, expected, tmp_path, line):
    names = ["train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "validation/4.jpg", "test/5.jpg"]
    make(tmp_path, *names, "docs/readme.txt", "labels.txt")
    assert read(tmp_path, streaming, split=split) == expected
    assert f"{len(expected)} image" in line() and f"split {split} (also: " in line()


def test_line_counts_the_images_of_other_splits(tmp_path, line):
    make(tmp_path, "train/1.jpg", "train/2.jpg", "val/1.jpg", *(f"test/{number}.jpg" for number in range(3)))
    assert len(read(tmp_path)) == 2
    assert line() == f"data.train: {tmp_path}: 2 images; split train (also: 1 in validation, 3 in test)"


def test_split_that_is_missing_is_asked_for_naming_those_there_are(tmp_path):
    make(tmp_path, "val/1.jpg", "test/2.jpg")
    message = refusal(tmp_path)
    assert "split='train' is not in" in message and "it has validation, test: choose one with split=" in message


def test_split_of_a_folder_without_splits_is_all_of_it_or_refused(tmp_path):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    assert read(tmp_path, split="train") == ["a/1.jpg", "b/2.jpg"]
    assert "which is all `train`" in refusal(tmp_path, split="validation")
    assert "split='train[:x]' is not in" in refusal(tmp_path, split="train[:x]")


def test_key_forces_either_reading(tmp_path, line):
    names = ["extra/3.jpg", "train/1.jpg", "val/2.jpg"]
    make(tmp_path, *names)
    assert read(tmp_path) == names
    assert read(tmp_path, split_folders=True) == ["train/1.jpg"]
    assert "(also: 1 in validation)" in line() and "1 image outside of the folders of splits left out" in line()
    make(tmp_path / "only", "train/1.jpg", "val/2.jpg")
    assert read(tmp_path / "only", split_folders=False) == ["train/1.jpg", "val/2.jpg"]
    make(tmp_path / "none", "a/1.jpg")
    assert "split_folders=true" in refusal(tmp_path / "none", split_folders=True)
    assert "split_folders=True is for folders" in refusal(tmp_path / "only/train/1.jpg", split_folders=True)


# --- what lies beside


@pytest.mark.parametrize(
    "others, said",
    [
        (["1.txt", "2.txt"], ["2 .txt"]),
        (["1.json", "1.txt", "2.json", "2.txt"], ["2 .json", "2 .txt"]),
        (["labels/1.xml"], ["1 .xml"]),
        (["1.pdf", "2.eps", "3.PS"], ["1 .eps", "1 .pdf", "1 .ps"]),
        (["Thumbs.db", ".DS_Store", "._a.jpg"], ["1 .DS_Store", "1 ._ file", "1 Thumbs.db"]),
        (["__MACOSX/._a.jpg", "__MACOSX/b.jpg"], ["1 __MACOSX folder"]),
        ([".git/a.jpg", ".cache/x/b.jpg", ".a.jpg"], ["1 hidden file", "2 hidden folders"]),
        (["LICENSE", "README.md"], ["1 .md", "1 file without a suffix"]),
        (["a.tar", "b.csv"], ["1 .csv", "1 .tar"]),
        (["a.cr2"], ["1 .cr2 (convert to .png, .tif or .npy with the package rawpy)"]),
    ],
    ids=lambda value: value[0],
)
def test_files_beside_images_are_counted_by_type(others, said, tmp_path, line):
    images = ["images/a.jpg", "images/b.jpg"]
    make(tmp_path, *images, *others)
    assert read(tmp_path) == images
    ignored = line().partition("; ignored ")[2].partition(";")[0]
    assert sorted(re.split(r", (?=\d)", ignored), key=lambda part: part[2:]) == said


def test_line_says_how_to_read_archives_beside_images(tmp_path, line):
    read(make(tmp_path, "a.jpg", "shard-0.tar"))
    assert "to read the .tar files, give a pattern such as **/*.tar as a source of its own" in line()


def test_line_stays_short_with_many_types(tmp_path, line):
    read(make(tmp_path, "a.jpg", *(f"{number}.{number:03}" for number in range(500))))
    assert len(line()) < len(str(tmp_path)) + 250 and "492 of 492 other kinds" in line()


def test_folder_of_nothing_that_can_be_read_says_what_it_holds(tmp_path):
    make(tmp_path, "a.txt", "b.txt", "c.dcm")
    message = refusal(tmp_path)
    assert "no images or tables that can be read: it holds 2 .txt, 1 .dcm (convert" in message and "pydicom" in message


# --- links


@both
def test_links_are_followed_and_counted(streaming, tmp_path, line):
    make(tmp_path / "elsewhere", "1.jpg", "sub/2.jpg")
    make(tmp_path / "set", "own/3.jpg")
    (tmp_path / "set/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/again").symlink_to("linked")
    (tmp_path / "set/own/4.jpg").symlink_to("3.jpg")
    contents = read(tmp_path / "set", streaming)
    assert contents == ["1.jpg", "sub/2.jpg", "1.jpg", "sub/2.jpg", "own/3.jpg", "own/3.jpg"]
    assert "6 images" in line() and "3 links followed" in line()


def test_loops_of_links_end(tmp_path, line):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/itself").symlink_to("itself")
    (tmp_path / "b/across").symlink_to("../a")
    assert read(tmp_path) == ["a/1.jpg", "b/2.jpg", "a/1.jpg"]
    assert "1 link followed" in line() and "2 links in a loop not followed (a/up, b/across/up)" in line()


def test_dangling_link_is_named_like_a_broken_image(tmp_path, line):
    make(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "class").symlink_to("not mounted")
    source = open_source(path=str(tmp_path))
    sample = source.read(1)
    assert sample.name == str(tmp_path / "b.jpg") and sample.data == b""
    assert "2 images" in line() and "2 dangling links (b.jpg, class)" in line()


def test_pipe_under_the_name_of_an_image_is_not_opened(tmp_path, line):
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    assert read(tmp_path) == ["a.jpg"]
    assert "1 special file" in line()


# --- names and types

NAMES = [
    *["data [1]", "[ab]*", "50% off", "%20", "a?b", "#1", "x::y", "zip:", "http:", "it's", '"quoted"', " space ", "~"],
    *["new\nline", "tab\t", "émoji 🎈", "\udcff\udcfe", "caf\udce9", "back\\slash", "-dash", "a.jpg", "b.tar"],
]


@both
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_of_folder_and_file_is_read(streaming, name, tmp_path, line):
    root = os.path.join(tmp_path, name)
    names = [f"{name}/{name}.jpg", f"{name}/{name}.JPG", f"{name}/plain.Png"]
    make(root, *names)
    assert sorted(read(root, streaming)) == sorted(names)
    assert "\n" not in line() and line().isprintable()
    sample = open_source(streaming, path=root).read(0)
    assert sample.name.isprintable() and sample.name.startswith(str(tmp_path))


def test_every_suffix_that_can_be_decoded_is_read(tmp_path):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    kinds = {"JPG": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "avif": "AVIF", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}
    for suffix, kind in kinds.items():
        pixels.save(tmp_path / f"a.{suffix}", kind)
    np.save(tmp_path / "a.npy", np.asarray(pixels))
    source = open_source(path=str(tmp_path))
    names = [os.path.basename(source.read(number).name) for number in range(8)]
    assert sorted(names) == sorted([*(f"a.{suffix}" for suffix in kinds), "a.npy"])
    for number in range(8):
        assert open_image(source.read(number).data).decode()[0].shape == (3, 8, 8)


# --- archives


@both
def test_members_of_zip_files_are_images_of_the_folder(streaming, tmp_path, line):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for name in ("b.jpg", "../../evil.jpg", "/abs.png", "__MACOSX/b.jpg", "notes.txt", "inner.zip", "日本/é.png"):
            archive.writestr(name, name)
        archive.writestr("b.jpg", "the second of this name")
    make(tmp_path, "test.jpg")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    contents = read(tmp_path, streaming)
    assert sorted(contents) == sorted(
        ["../../evil.jpg", "/abs.png", "b.jpg", "the second of this name", "日本/é.png", "test.jpg"]
    )
    assert "6 images" in line() and "1 damaged .zip" in line() and "broken.zip cannot be read" in line()
    assert read(tmp_path / "train.zip", streaming) == contents[1:]


def test_damaged_member_of_a_zip_file_is_broken_and_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"x" * 100)
        archive.writestr("b.jpg", b"y" * 100)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"x" * 100) + 5] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    source = open_source(path=str(tmp_path))
    first, second = source.read(0), source.read(1)
    assert first.name == f"{tmp_path}/a.zip/a.jpg" and "damaged archive" in first.data.reason
    assert second.data == b"y" * 100


# --- labels and metadata, as `datasets` has them


@pytest.mark.parametrize(
    "names",
    [
        ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg"],
        ["train/cat/1.jpg", "train/dog/2.jpg", "train/zebra/3.jpg"],
        ["a/cat/1.jpg", "a/dog/2.jpg", "b/cat/3.jpg"],
        ["cat/1.jpg", "dog/2.jpg", "dog/puppy/3.jpg"],
        ["cat/1.jpg", "cat/2.jpg"],
        ["1.jpg", "2.jpg"],
        ["cat-2/1.jpg", "cat/2.jpg", "cat.3/4.jpg"],
    ],
    ids=lambda names: names[-1].replace("/", "_"),
)
def test_rows_and_labels_of_ordinary_folders_are_those_of_datasets(names, tmp_path):
    make(tmp_path, *names)
    ours = load(SourceConfig(path=str(tmp_path)), False).dataset
    theirs = load_dataset("imagefolder", data_dir=str(tmp_path), split="train")
    assert ours.features == theirs.features
    undecoded = [dataset.cast_column("image", datasets.Image(decode=False)) for dataset in (ours, theirs)]
    assert [row["image"]["path"] for row in undecoded[0]] == [row["image"]["path"] for row in undecoded[1]]
    if "label" in ours.features:
        assert ours["label"][:] == theirs["label"][:]


def test_classes_are_those_of_all_splits(tmp_path, line):
    make(tmp_path, "train/dog/1.jpg", "train/emu/2.jpg", "test/cat/3.jpg", "test/emu/4.jpg")
    found = LabeledImages(SourceConfig(path=str(tmp_path), split="test"))
    assert found.names == ["cat", "dog", "emu"] and found.labels.tolist() == [0, 2]
    assert "2 images, 3 classes; split test (also: 2 in train)" in line()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_columns_of_metadata_are_those_of_datasets_and_images_without_are_read_too(suffix, tmp_path, line):
    make(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg")
    table = Dataset.from_dict({"file_name": ["sub/c.jpg", "a.jpg"], "caption": ["see", "ay"], "number": [3, 1]})
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[suffix](tmp_path / f"metadata.{suffix}")
    ours = load(SourceConfig(path=str(tmp_path)), False).dataset.cast_column("image", datasets.Image(decode=False))
    theirs = load_dataset("imagefolder", data_dir=str(tmp_path), split="train")
    assert {name: str(kind) for name, kind in ours.remove_columns("image").features.items()} == {
        name: str(kind).replace("large_", "") for name, kind in theirs.remove_columns("image").features.items()
    } or ours.remove_columns("image").features == theirs.remove_columns("image").features
    assert [os.path.relpath(row["image"]["path"], tmp_path) for row in ours] == ["sub/c.jpg", "a.jpg", "b.jpg"]
    assert ours["caption"][:] == ["see", "ay", None] and ours["number"][:] == [3, 1, None]
    assert "3 images" in line() and f"1 image not named in metadata.{suffix}" in line()


def test_metadata_that_names_nothing_here_is_said(tmp_path, line):
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,x\ngone.jpg,y\n../up.jpg,z\n/etc/passwd,z\n")
    assert sorted(read(tmp_path)) == ["a.jpg", "b.jpg"]
    assert "3 names in metadata.csv of no image here (gone.jpg, ../up.jpg, /etc/passwd)" in line()


def test_nearest_metadata_has_the_row_of_an_image(tmp_path):
    make(tmp_path, "sub/a.jpg", "b.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\nsub/a.jpg,far\nb.jpg,root\n")
    (tmp_path / "sub/metadata.csv").write_text("file_name,text\na.jpg,near\n")
    found = load(SourceConfig(path=str(tmp_path)), False).dataset
    assert found["text"][:] == ["root", "near"]


def test_further_columns_of_images_are_not_trained_on(tmp_path, line):
    make(tmp_path, "a.jpg", "mask/a.png", "b.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,mask_file_name\na.jpg,mask/a.png\n")
    assert read(tmp_path) == ["a.jpg", "b.jpg"]
    loaded = load(SourceConfig(path=str(tmp_path)), False).dataset
    assert list(loaded.features) == ["image", "mask"]
    assert "1 image in further columns of metadata.csv" in line()


def test_metadata_that_names_no_files_is_a_file_like_others(tmp_path, line):
    make(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "metadata.csv").write_text("id,age\n1,2\n")
    assert LabeledImages(SourceConfig(path=str(tmp_path))).names == ["cat", "dog"]
    assert "ignored 1 metadata.csv; metadata.csv has no column file_name" in line()


def test_metadata_that_cannot_be_read_is_refused_naming_it(tmp_path):
    make(tmp_path, "a.jpg")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": \n')
    assert "metadata.jsonl cannot be read" in refusal(tmp_path)


# --- tables in folders


@pytest.mark.parametrize(
    "names, split, expected",
    [
        (["train.csv", "test.csv"], "train", "train.csv"),
        (["train-00000-of-00002.csv", "train-00001-of-00002.csv", "validation-00000-of-00001.csv"], "train", "train-"),
        (["data/val-00000-of-00001-abc.csv", "data/train-00000-of-00001-abc.csv"], "validation", "data/val"),
        (["train/a.csv", "val/b.csv"], "validation", "val/b"),
        (["steam_train.csv", "b.csv"], "train", ""),
        (["train-0.csv", "other.csv"], "train", ""),
    ],
)
def test_tables_are_splits_only_where_every_one_is_called_so(names, split, expected, tmp_path, line):
    for name in names:
        make(tmp_path, name)
        (tmp_path / name).write_text(f"file\n/{name}.jpg\n")
    images = open_images(SourceConfig(path=str(tmp_path), split=split), False)
    found = [row["file"] for row in images.dataset]
    assert sorted(found) == sorted(f"/{name}.jpg" for name in names if name.startswith(expected))
    noun = "image in 1 .csv file" if len(found) == 1 else f"images in {len(found)} .csv files"
    assert f": {len(found)} {noun}" in line()


def test_archives_come_before_the_tables_about_them(tmp_path, write_tar, line):
    for shard in range(2):
        write_tar(tmp_path / f"{shard:05}.tar", {f"{shard}": {"jpg": b"%d" % shard, "json": b"{}"}})
        make(tmp_path, f"{shard:05}.parquet", f"{shard:05}_stats.json")
    assert sorted(read(tmp_path, streaming=True)) == ["0", "1"]
    assert "2 .tar files" in line() and "2 .parquet" in line() and "2 .json" in line()


# --- patterns, lists, single files


@both
def test_patterns_of_images_are_read_in_the_order_of_their_paths(streaming, tmp_path, line):
    make(tmp_path, "b/1.jpg", "a/deep/2.jpg", "a/3.jpg", "a/4.png", "5.jpg", "a/x.txt", ".hidden/6.jpg", "a [1]/7.jpg")
    (tmp_path / "a/loop").symlink_to("..")
    assert read(tmp_path / "**/*.jpg", streaming) == ["5.jpg", "a [1]/7.jpg", "a/3.jpg", "a/deep/2.jpg", "b/1.jpg"]
    assert read(tmp_path / "*/*.jpg", streaming) == ["a [1]/7.jpg", "a/3.jpg", "b/1.jpg"]
    assert read(tmp_path / "[ab]/?.*", streaming) == ["a/3.jpg", "a/4.png", "b/1.jpg"]
    assert "3 images" in line() and "ignored 1 .txt" in line()
    assert "no file is called" in refusal(tmp_path / "c*/*.jpg")


def test_pattern_enters_only_folders_that_can_match(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "b/deep/2.jpg", "c/3.jpg")
    entered, scandir = [], os.scandir

    def spy(path):
        entered.append(os.path.relpath(path, tmp_path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spy)
    assert read(tmp_path / "[ab]/*.jpg") == ["a/1.jpg"]
    assert sorted(path for path in entered if not path.startswith("..")) == [".", "a", "b"]


@both
def test_list_of_paths_is_read_in_its_order(streaming, tmp_path, line, monkeypatch):
    make(tmp_path, "b.jpg", "sub/a #1%.jpg", "unnamed", "caf\udce9.png")
    lines = ["# a comment", "sub/a #1%.jpg", "", str(tmp_path / "b.jpg"), "unnamed", "gone.jpg", "caf\udce9.png"]
    (tmp_path / "list.txt").write_bytes(os.fsencode("\r\n".join(lines)))
    monkeypatch.chdir("/")
    contents = ["sub/a #1%.jpg", os.fsdecode(b"b.jpg"), "unnamed", "", "caf\udce9.png"]
    assert read(tmp_path / "list.txt", streaming) == contents
    assert "5 images" in line()


def test_one_image_is_a_source(tmp_path):
    make(tmp_path, "a [1].jpg")
    assert read(tmp_path / "a [1].jpg") == ["a [1].jpg"]
    make(tmp_path, "scan.dcm")
    assert "is a .dcm file (convert to .png, .tif or .npy with the package pydicom)" in refusal(tmp_path / "scan.dcm")


def test_what_was_found_is_said_on_the_main_process_only(tmp_path, log, monkeypatch):
    make(tmp_path, "a.jpg")
    monkeypatch.setenv("RANK", "1")
    read(tmp_path)
    assert log.messages == []


def test_folder_with_a_file_called_state_json_is_not_a_saved_set(tmp_path):
    assert read(make(tmp_path, "a.jpg", "state.json")) == ["a.jpg"]


# --- layouts drawn at random


@pytest.mark.parametrize("part", range(10))
def test_layouts_drawn_at_random_are_read_as_a_walker_finds_them(part, tmp_path, line, log):
    for seed in range(20 * part, 20 * part + 20):
        log.clear()
        layout = Layout(tmp_path / str(seed), seed)
        split = layout.random.choice(["train", "validation", "test"])
        assert differences(layout, split, bool(seed % 2), open_source, line) == [], seed


def test_walker_and_decoder_agree_on_what_is_an_image(tmp_path):
    for seed in range(12):
        for data in walk(Layout(tmp_path / str(seed), seed).root).images.values():
            try:
                opened = open_image(data or b"").decode()[0].numel() > 0
            except ValueError:
                opened = False
            assert opened == (data is not None and decodes(data))
