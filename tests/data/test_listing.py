"""A listing is kept, read by the next start, and made again as soon as anything below the folder changed."""

import multiprocessing
import os
import time
import zipfile
from pathlib import Path

import datasets
import pytest

from dinov2_hf.config import SourceConfig
from dinov2_hf.data.sources import folders
from dinov2_hf.data.sources.columns import open_images
from dinov2_hf.data.sources.listing import Pattern
from dinov2_hf.data.sources.load import load

from ..patience import HANGS


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "dinov2_hf_listings"


@pytest.fixture
def scans(monkeypatch):
    """Roots of the folders that were listed."""
    roots, scan = [], folders.scan

    def spy(root, *args):
        roots.append(root)
        return scan(root, *args)

    monkeypatch.setattr(folders, "scan", spy)
    return roots


@pytest.fixture
def root(tmp_path):
    """Images in a folder, below it, behind a link and in an archive, with metadata; none changed in the last minute."""
    root = tmp_path / "set"
    for name in ("a.jpg", "x/y/b.jpg", "../elsewhere/z/c.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "linked").symlink_to("../elsewhere")
    (root / "later").symlink_to("../later")
    (root / "metadata.csv").write_text("file_name,text\na.jpg,first\n")
    with zipfile.ZipFile(root / "d.zip", "w") as archive:
        archive.writestr("d.jpg", "d")
    age(tmp_path)
    return root


def age(folder):
    """Sets all times below a folder to a minute ago."""
    then = time.time() - 60
    for path, _, files in os.walk(folder):
        for file in [path, *(os.path.join(path, file) for file in files)]:
            if os.path.exists(file):
                os.utime(file, (then, then))


def names(root, **options):
    images = open_images(SourceConfig(path=str(root), **options), False)
    return [os.path.basename(images.encoded(row[images.name], "")[1]) for row in images.dataset]


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def zip_again(root):
    with zipfile.ZipFile(root / "d.zip", "w") as archive:
        archive.writestr("e.jpg", "e")


def replace_deep(root):
    os.rename(root / "x", root.parent / "old")
    write(root / "x/y/new.jpg")
    age(root / "x")


def test_second_start_lists_nothing_and_finds_the_same(root, cache, scans):
    first, second = names(root), names(root)
    assert first == second == ["a.jpg", "d.jpg", "c.jpg", "b.jpg"]
    assert scans == [str(root)]
    assert load(SourceConfig(path=str(root)), False).dataset.cache_files[0]["filename"].startswith(str(cache))


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda root: write(root / "x/y/new.jpg"), "new.jpg"),
        (lambda root: write(root / "x/new/deep/er/new.jpg"), "new.jpg"),
        (lambda root: write(root / "../elsewhere/z/new.jpg"), "new.jpg"),
        (lambda root: write(root / "../later/new.jpg"), "new.jpg"),
        (lambda root: (root / "x/y/b.jpg").rename(root / "x/y/new.jpg"), "new.jpg"),
        (lambda root: (root / "x/y/b.jpg").unlink(), None),
        (zip_again, "e.jpg"),
        (replace_deep, "new.jpg"),
    ],
    ids=["file", "folder", "behind a link", "end of a link", "renamed", "removed", "archive", "folder replaced"],
)
def test_any_change_below_the_root_is_seen(change, expected, root, cache, scans):
    before = names(root)
    change(root)
    after = names(root)
    assert len(scans) == 2
    assert set(after) - set(before) == ({expected} if expected else set())


def test_change_of_metadata_is_seen(root, cache):
    assert load(SourceConfig(path=str(root)), False).dataset["text"][0] == "first"
    (root / "metadata.csv").write_text("file_name,text\na.jpg,other\n")
    assert load(SourceConfig(path=str(root)), False).dataset["text"][0] == "other"


def test_listing_of_a_folder_that_just_changed_is_not_trusted(root, cache, scans):
    """A file that is added within the same tick of the clock leaves the time of the folder as it was."""
    write(root / "x/y/e.jpg")
    moment = os.stat(root / "x/y")
    names(root)
    write(root / "x/y/f.jpg")
    os.utime(root / "x/y", ns=(moment.st_atime_ns, moment.st_mtime_ns))
    assert "f.jpg" in names(root) and len(scans) == 2


def test_readings_of_one_folder_are_kept_apart(root, cache, scans):
    write(root.parent / "set2/train/1.jpg")
    write(root.parent / "set2/val/2.jpg")
    age(root.parent)
    for _ in range(2):
        assert names(root.parent / "set2") == ["1.jpg"]
        assert names(root.parent / "set2", split_folders=False) == ["1.jpg", "2.jpg"]
        assert names(root.parent / "set2/*/*.jpg") == ["1.jpg", "2.jpg"]
    assert len(scans) == 3


@pytest.mark.parametrize("damage", ["cut table", "cut facts", "no table", "empty facts", "odd facts"])
def test_damaged_cache_is_made_again(damage, root, cache, scans):
    first = names(root)
    table, facts = next(cache.glob("*.arrow")), next(cache.glob("*.json"))
    if damage == "cut table":
        table.write_bytes(table.read_bytes()[:100])
    elif damage == "no table":
        table.unlink()
    else:
        facts.write_bytes({"cut facts": facts.read_bytes()[:50], "empty facts": b"", "odd facts": b"[1]"}[damage])
    assert names(root) == first and len(scans) == 2


def test_cache_that_cannot_be_written_is_done_without(root, tmp_path, monkeypatch, scans):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    assert names(root) == names(root) == ["a.jpg", "d.jpg", "c.jpg", "b.jpg"]
    assert len(scans) == 2


def test_one_process_lists_while_the_others_wait(root, cache, tmp_path, monkeypatch):
    scan = folders.scan

    def slow(path, *args):
        with open(tmp_path / "scans", "a") as file:
            file.write("x")
        time.sleep(0.3)
        return scan(path, *args)

    def read(barrier, results):
        barrier.wait()
        results.put(names(root))

    monkeypatch.setattr(folders, "scan", slow)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=read, args=(barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=HANGS) for _ in processes]
    for process in processes:
        process.join()
    assert found == [["a.jpg", "d.jpg", "c.jpg", "b.jpg"]] * 4
    assert (tmp_path / "scans").read_text() == "x"


def test_fingerprint_notices_a_file_that_changed_in_its_place(root, cache, scans):
    def fingerprint(**options):
        return open_images(SourceConfig(path=str(root), **options), options.get("streaming", False)).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint(streaming=True) == before
    assert fingerprint(split="train[:2]") != before
    (root / "x/y/b.jpg").write_text("changed")
    assert fingerprint() != before
    assert scans == [str(root)]  # the folder still has the same files


def test_listing_for_resume_depends_on_names_and_not_on_the_place(root, tmp_path, cache):
    listing = load(SourceConfig(path=str(root)), False).listing()
    root.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert load(SourceConfig(path=str(moved)), True).listing() == listing
    assert listing["count"] == 4
    (moved / "a.jpg").rename(moved / "aa.jpg")
    assert load(SourceConfig(path=str(moved)), False).listing()["digest"] != listing["digest"]


@pytest.mark.parametrize(
    "pattern, matching, others",
    [
        ("/r/**/*.jpg", ["a.jpg", "x/a.jpg", "x/y/a.jpg"], ["a.png", "x/a.jpg.txt"]),
        ("/r/*/[!a].jpg", ["x/b.jpg"], ["b.jpg", "x/a.jpg", "x/y/b.jpg"]),
        ("/r/x*/**", ["x/a", "xx/y/z"], ["y/a"]),
        ("/r/**/x/**/?.jpg", ["x/a.jpg", "y/x/z/a.jpg"], ["y/a.jpg", "x/ab.jpg"]),
        ("/r/a[[]1].jpg", ["a[1].jpg"], ["a1.jpg"]),
    ],
)
def test_patterns_match_as_those_of_glob(pattern, matching, others):
    found = Pattern(pattern)
    assert found.root == "/r"
    assert [name for name in [*matching, *others] if found.matches(name)] == matching
    for name in matching:
        parts = Path(name).parts[:-1]
        assert all(found.enters(depth, part) for depth, part in enumerate(parts))
