"""Images as a person names them, and as a backbone takes them."""

import io
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from dinov2_hf.data.decode import BrokenImage
from dinov2_hf.visualize import open_collection, open_picture, open_pictures, patch_features, read_images
from dinov2_hf.visualize.pictures import model_input


def encode(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 100), (56, 56)), ((60, 100), (32, 56)), ((100, 60), (56, 32)), ((3, 300), (8, 56)), ((1, 1), (56, 56))],
)
def test_sides_are_multiples_of_the_patch_in_nearly_the_same_ratio(size, expected):
    picture = open_picture(encode(noise(*size)), "name", image_size=56, patch_size=8)
    assert picture.pixels.shape == (3, *expected)
    assert picture.shown.shape == (*expected, 3)


def test_nothing_is_cut_off():
    """The four corners of an image keep their colours."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    corners = {(0, 0): (255, 0, 0), (0, -1): (0, 255, 0), (-1, 0): (0, 0, 255), (-1, -1): (255, 255, 0)}
    for (row, column), color in corners.items():
        pixels[slice(-20, None) if row else slice(20), slice(-20, None) if column else slice(20)] = color
    shown = open_picture(encode(pixels), "name", image_size=48, patch_size=8).shown
    for place, color in corners.items():
        assert np.abs(shown[place].astype(int) - color).max() <= 2


def test_an_image_of_the_right_size_is_not_changed():
    pixels = noise(32, 48)
    assert np.array_equal(open_picture(encode(pixels), "name", image_size=48, patch_size=8).shown, pixels)


def test_a_rotated_photograph_is_upright():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 80)).save(buffer, "JPEG", exif=exif)
    assert open_picture(buffer.getvalue(), "name", image_size=80, patch_size=8).shown.shape == (80, 40, 3)


def test_a_size_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="image_size=50 is not a multiple of .*8; use 48 or 56"):
        open_picture(encode(noise(8, 8)), "name", image_size=50, patch_size=8)


@pytest.mark.parametrize("data", [b"", b"not an image", encode(noise(64, 64), "JPEG")[:900]])
def test_what_is_no_image_is_refused_by_its_name(data):
    with pytest.raises(BrokenImage, match="holiday.jpg is not an image that can be read"):
        open_picture(data, "holiday.jpg", image_size=56)


def test_an_image_of_other_channels_is_shown_in_grey():
    buffer = io.BytesIO()
    np.save(buffer, np.full((16, 16, 5), 0.5, np.float32))
    picture = open_picture(buffer.getvalue(), "bands.npy", image_size=16, patch_size=8, num_channels=5)
    assert picture.pixels.shape == (5, 16, 16)
    assert (picture.shown == 128).all()


def test_features_of_patches_are_those_of_the_model_row_by_row(backbone, tiny_model):
    picture = open_picture(encode(noise(40, 60)), "name", image_size=48, patch_size=8)
    features = patch_features(backbone, picture)
    assert features.shape == (4, 6, 32)
    with torch.no_grad():
        tokens = tiny_model(model_input(backbone, picture)).last_hidden_state
    assert tokens.shape == (1, 1 + 2 + 24, 32)  # CLS and two registers before the patches
    torch.testing.assert_close(features.flatten(0, 1), tokens[0, 3:], rtol=1e-4, atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    """Ten images, of which two cannot be decoded, and a text."""
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for index in range(10):
        path = folder / ("sub" if index >= 6 else "") / f"{index}.png"
        path.write_bytes(b"broken" if index in (0, 7) else encode(np.full((8, 8, 3), 10 * index, np.uint8)))
    (folder / "notes.txt").write_text("not an image, nor called one")
    return folder


def test_images_of_a_folder_are_evenly_spaced_and_broken_ones_are_left_out(folder, caplog):
    assert len(open_collection(str(folder))) == 10
    with caplog.at_level(logging.WARNING):
        pictures = open_pictures([str(folder)], 8, count=4)  # of 0, 3, 6 and 9
    assert [picture.name for picture in pictures] == ["3.png", "6.png", "9.png"]
    assert [int(picture.pixels[0, 0, 0]) for picture in pictures] == [30, 60, 90]
    assert "0.png is not an image" in caplog.text


def test_files_and_folders_can_be_given_together(folder):
    names = [
        p.name for p in open_pictures([str(folder / "2.png"), str(folder / "sub"), str(folder / "1.png")], 8, count=2)
    ]
    assert names == ["2.png", "6.png", "9.png", "1.png"]


def test_a_file_that_is_named_has_to_be_an_image(folder):
    with pytest.raises(BrokenImage, match="0.png is not an image"):
        open_pictures([str(folder / "0.png")], 8)
    (folder / "notes.doc").write_text("not an image")
    with pytest.raises(ValueError, match="notes.doc is a .doc file; give a folder of images, an image"):
        open_pictures([str(folder / "notes.doc")], 8)


def test_patterns_lists_and_splits_are_those_of_training(tmp_path):
    for number, name in enumerate(["train/a.png", "val/b.png", "val/c.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(np.full((8, 8, 3), number, np.uint8)))
    (tmp_path / "list.txt").write_text("val/c.png\ntrain/a.png\n")

    def names(path, split="train"):
        return [picture.name for picture in open_pictures([str(path)], 8, split=split)]

    assert names(tmp_path) == ["a.png"]
    assert names(tmp_path, "validation") == ["b.png", "c.png"]
    assert names(tmp_path / "**/*.png") == ["a.png", "b.png", "c.png"]
    assert names(tmp_path / "list.txt") == ["c.png", "a.png"]


def test_a_folder_of_nothing_but_broken_images_is_refused(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(b"broken")
    with pytest.raises(ValueError, match="has no image that can be decoded among 2; give others"):
        open_pictures([str(tmp_path)], 8, count=2)


def test_a_missing_path_is_refused():
    with pytest.raises(ValueError, match="/no/such/folder does not exist"):
        open_collection("/no/such/folder")


def test_a_set_is_read_without_labels_by_its_split(tmp_path):
    images = [{"path": None, "bytes": encode(np.full((8, 8, 3), value, np.uint8))} for value in (5, 6, 7)]
    dataset = Dataset.from_dict({"picture": images}, features=Features({"picture": ImageFeature()}))
    dataset.to_parquet(tmp_path / "test.parquet")
    collection = open_collection(str(tmp_path), "test")
    assert len(collection) == 3 and collection.read(1) == (images[1]["bytes"], "row 1")
    assert collection.fingerprint
    read = read_images([str(tmp_path)], lambda data, name: (data, name), "test", 2)
    assert read == [(images[0]["bytes"], "row 0"), (images[2]["bytes"], "row 2")]
    with pytest.raises(ValueError, match="split='train' is not in"):
        open_collection(str(tmp_path), "train")


def test_the_fingerprint_of_files_changes_with_them(folder):
    before = open_collection(str(folder)).fingerprint
    assert open_collection(str(folder)).fingerprint == before
    (folder / "3.png").write_bytes(encode(np.zeros((9, 9, 3), np.uint8)))
    assert open_collection(str(folder)).fingerprint != before
