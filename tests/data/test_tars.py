"""Tar files: every image in one is a sample, whatever its kind, its neighbours and their order."""

import io
import os
import tarfile

import datasets
import numpy as np
import pytest

from dinov2_hf.config import DataConfig, SourceConfig, TrainingSourceConfig
from dinov2_hf.data.decode import BrokenImage, open_image
from dinov2_hf.data.sources.columns import open_images
from dinov2_hf.data.sources.training import open_training_source
from dinov2_hf.evaluation.datasets import LabeledImages, LabelMaps

both = pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])


def write(path, members, mode="w", **options):
    """A tar of names and bytes in this order; None for a link to the first member."""
    with tarfile.open(path, mode, **options) as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            if data is None:
                entry.type, entry.linkname = tarfile.LNKTYPE, members[0][0]
                archive.addfile(entry)
            else:
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return path


def open_source(path, streaming=False, **options):
    train = TrainingSourceConfig(path=str(path), streaming=streaming, **options)
    return open_training_source(DataConfig(train=train, shuffle=False), 0)


def read(path, count, streaming=False, **options):
    source = open_source(path, streaming, **options)
    samples = [source.read(number) for number in range(count)]
    assert [sample.epoch for sample in samples] == [0] * count and source.read(count).epoch == 1
    return samples


def data_of(samples):
    return [sample.data for sample in samples]


@pytest.fixture(scope="module")
def kinds(files, encode):
    """Images as JPEG, PNG, WebP, TIFF and array."""
    image = np.zeros((8, 8, 3), np.uint8)
    array = io.BytesIO()
    np.save(array, image)
    encoded = {kind: encode(image, name) for kind, name in [("jpg", "JPEG"), ("webp", "WEBP"), ("tif", "TIFF")]}
    return encoded | {"png": files[0], "npy": array.getvalue()}


@both
def test_members_of_a_sample_need_not_lie_beside_each_other(streaming, tmp_path, files):
    members = [(f"{number}.txt", b"text") for number in range(3)]
    members += [(f"{number}.png", files[number]) for number in (2, 0, 1)]
    members += [(f"{number}.json", b"{}") for number in range(3)]
    samples = read(write(tmp_path / "a.tar", members), 3, streaming)
    assert data_of(samples) == [files[2], files[0], files[1]]
    assert [sample.name for sample in samples] == [f"{number}.png of {tmp_path}/a.tar" for number in (2, 0, 1)]


@both
def test_images_of_every_kind_are_samples_in_one_tar_and_a_column_chooses_one(streaming, tmp_path, kinds):
    members = [(f"{number}.{kind}", data) for number, (kind, data) in enumerate(kinds.items())]
    members += [("x.JPG", kinds["jpg"]), ("y.v2.png", kinds["png"]), ("folder/z.Png", kinds["png"])]
    path = write(tmp_path / "a.tar", members)
    assert data_of(read(path, len(members), streaming)) == [data for _, data in members]
    assert data_of(read(path, 1, streaming, image_column="webp")) == [kinds["webp"]]
    with pytest.raises(ValueError, match="lacks image_column='gif'; its members are jpg, webp"):
        open_source(path, streaming, image_column="gif")


@both
def test_what_is_no_image_in_a_tar_is_left_out(streaming, tmp_path, files):
    members = [("a/._0.png", b"AppleDouble"), ("__MACOSX/a/0.png", b"x"), ("a/0.png", files[0]), ("a/0.mp4", b"video")]
    members += [("a/.hidden", b"x"), ("README", b"x"), (".png", b"x"), ("a/1.png", files[1])]
    path = write(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert data_of(read(path, 2, streaming)) == files[:2]


@both
def test_links_and_empty_members_are_broken_images_with_a_reason(streaming, tmp_path, files):
    members = [("0.png", files[0]), ("1.png", None), ("2.png", b""), ("3.png", files[1])]
    samples = read(write(tmp_path / "a.tar", members), 4, streaming)
    assert data_of(samples) == [files[0], b"", b"", files[1]]
    for sample, reason in zip(samples[1:3], ("a link within a tar file", "0 bytes")):
        with pytest.raises(BrokenImage, match=reason):
            open_image(sample.data)


@both
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_any_kind_are_read(format, streaming, tmp_path, files):
    names = ["x" * 40 + "/" + "y" * 60 + ".png", "caf\xe9 \N{SNOWMAN}.png", "a#b?c%20[1].png", "new\nline.png"]
    if format != tarfile.USTAR_FORMAT:
        names += ["z" * 300 + ".png", "not utf-8 \udcff.png"]
    path = write(tmp_path / "a.tar", list(zip(names, files)), format=format)
    samples = read(path, len(names), streaming)
    assert data_of(samples) == files[: len(names)]
    for sample in samples:
        sample.name.encode()


@both
def test_joined_archives_are_read_to_the_end(streaming, tmp_path, files):
    parts = [write(tmp_path / f"{number}", [(f"{number}.png", files[number])]) for number in range(3)]
    (tmp_path / "all.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert data_of(read(tmp_path / "all.tar", 3, streaming)) == files[:3]


def test_compressed_archive_is_read_in_order_and_refused_for_random_access(tmp_path, files):
    path = write(tmp_path / "a.tar", [(f"{number}.png", files[number]) for number in range(3)], "w:gz")
    assert data_of(read(path, 3, True)) == files[:3]
    with pytest.raises(ValueError, match="is compressed; decompress it, or read it in order with streaming=true"):
        open_source(path)


@pytest.mark.parametrize("harm", ["cut", "header", "empty"])
def test_broken_tar_is_refused_for_random_access_naming_it(harm, tmp_path, files):
    write(tmp_path / "0.tar", [("0.png", files[0])])
    path = write(tmp_path / "1.tar", [(f"{number}.png", files[number]) for number in range(3)])
    data = path.read_bytes()
    broken = {"cut": data[:2000], "header": data[:512] + data[512:].replace(b"ustar", b"xxxxx"), "empty": b""}
    path.write_bytes(broken[harm])
    with pytest.raises(ValueError, match=rf"{path} is a broken tar file: .*streaming=true"):
        open_source(tmp_path / "*.tar")


@both
def test_tars_without_images_are_refused_naming_what_they_hold(streaming, tmp_path):
    write(tmp_path / "a.tar", [("0.txt", b"text"), ("0.mp4", b"video")])
    with pytest.raises(ValueError, match="lacks images; its members are txt, mp4"):
        open_source(tmp_path / "a.tar", streaming)


def test_labels_come_from_the_members_of_the_same_key(tmp_path, files):
    members = [(f"{number}.cls", str(number % 2).encode()) for number in range(4)]
    members += [(f"{number}.{'jpg' if number == 1 else 'png'}", files[number]) for number in (3, 1, 0, 2)]
    members += [(f"{number}.txt", f"text {number}".encode()) for number in range(4)]
    write(tmp_path / "a.tar", members[:9])
    write(tmp_path / "b.tar", [("0.png", files[4]), ("0.cls", b"1")])  # the same key in another file
    images = LabeledImages(SourceConfig(path=str(tmp_path), label_column="cls"))
    assert [images.read(row)[0] for row in range(5)] == [files[number] for number in (3, 1, 0, 2, 4)]
    assert images.labels.tolist() == [1, 1, 0, 0, 1] and images.names == ["0", "1"]
    with pytest.raises(ValueError, match="its columns are __key__, image, cls"):
        LabeledImages(SourceConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match="rows without a value in the column 'txt'"):
        LabeledImages(SourceConfig(path=str(tmp_path), label_column="txt"))


def test_maps_come_from_the_members_of_the_same_key(tmp_path, files, encode):
    maps = [encode(np.full((20, 24), number, np.uint8)) for number in range(3)]
    members = [(f"{number}.seg.png", maps[number]) for number in range(3)]
    members += [(f"{number}.jpg", files[number]) for number in (2, 0, 1)]
    path = str(write(tmp_path / "a.tar", members))
    for options in ({"label_column": "seg.png"}, {"image_column": "jpg"}):
        images = LabelMaps(SourceConfig(path=path, **options))
        assert [images.read(row)[0] for row in range(3)] == [files[number] for number in (2, 0, 1)]
        assert [int(images.map(row).max()) for row in range(3)] == [2, 0, 1]


def test_splits_and_slices_of_tars_are_read(tmp_path, files):
    for split, numbers in [("train-00000-of-00001", range(6)), ("validation", range(6, 9))]:
        write(tmp_path / f"{split}.tar", [(f"{number}.png", files[number]) for number in numbers])
    assert data_of(read(tmp_path, 6)) == files[:6]
    assert data_of(read(tmp_path, 9, split="train+validation")) == files[:9]
    assert data_of(read(tmp_path, 4, split="train[:50%]+validation[2:]")) == [*files[:3], files[8]]
    assert data_of(read(tmp_path, 3, streaming=True, split="validation")) == files[6:9]
    for streaming in (False, True):
        with pytest.raises(ValueError, match="split='test' is not in .*train"):
            open_source(tmp_path, streaming, split="test")


def test_index_of_a_tar_copies_nothing_and_is_made_anew_where_the_file_changes(tmp_path, files, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path / "a.tar", [(f"{number}.png", data) for number, data in enumerate(files)])
    os.utime(path, (10**9, 10**9))  # old enough for its index to be kept
    for expected in (files, files[:3]):
        for _ in range(2):
            images = open_images(SourceConfig(path=str(path)), streaming=False)
            assert len(images.dataset) == len(expected)
            assert images.read(2) == (files[2], f"2.png of {path}")
            held = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
            assert sum(file.stat().st_size for file in held) < 20_000 < sum(map(len, files))
        write(path, [(f"{number}.png", data) for number, data in enumerate(files[:3])])
        os.utime(path, (11**9, 11**9))
