"""Memory of large images: how many are decoded at the same time, and what one costs."""

import multiprocessing
import runpy
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.config import CropsConfig
from dinov2_hf.data import pictures, pixel_budget
from dinov2_hf.data.crops import MultiCrop
from dinov2_hf.data.decode import BrokenImage, Decoding, open_image
from dinov2_hf.data.pixel_budget import SMALL, reserve

BUDGET = 10 * SMALL


@pytest.fixture(autouse=True)
def own_slots(tmp_path, monkeypatch):
    """Slots that no other process on the machine uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(pixel_budget, "_file", None)


def start(pixels, method="fork"):
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    given = {
        "path": pixel_budget.__file__,
        "pixels": pixels,
        "budget": BUDGET,
        "connection": there,
        "folder": tempfile.gettempdir(),
    }
    script = str(Path(__file__).with_name("holding.py"))
    process = context.Process(target=runpy.run_path, args=(script, given), daemon=True)
    process.start()
    return process, here


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_large_images_wait_for_the_budget_however_workers_are_started(method):
    first, of_first = start(6 * SMALL, method)
    assert of_first.recv() == "holds"
    second, of_second = start(6 * SMALL)
    third, of_third = start(SMALL)
    assert of_third.recv() == "holds"  # small ones do not wait
    assert not of_second.poll(0.2)
    of_first.send("go on")
    assert of_first.recv() == "gone"
    assert of_second.recv() == "holds"
    for process, connection in ((second, of_second), (third, of_third)):
        connection.send("go on")
        process.join()
    first.join()


def test_what_fits_into_the_budget_is_decoded_at_the_same_time():
    running = [start(2 * SMALL) for _ in range(4)]
    assert [connection.recv() for _, connection in running] == ["holds"] * 4
    for process, connection in running:
        connection.send("go on")
        process.join()


def test_killed_process_gives_its_pixels_back():
    process, connection = start(100 * SMALL)  # more than the budget: all of it
    assert connection.recv() == "holds"
    process.kill()
    process.join()
    with reserve(9 * SMALL, BUDGET), reserve(9 * SMALL, BUDGET):  # a process does not wait for itself
        pass


def test_without_a_file_of_slots_nothing_waits(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with reserve(9 * SMALL, BUDGET):
        process, connection = start(9 * SMALL)
        assert connection.recv() == "holds"
    connection.send("go on")
    process.join()


def test_pixels_are_held_until_the_crops_are_cut(monkeypatch, encode):
    held = []
    monkeypatch.setattr(
        "dinov2_hf.data.crops.resample",
        lambda pixels, box, size: held.append(pixel_budget._holding) or pixels[:, : size[0], : size[1]],
    )
    data = encode(Image.new("L", (2100, 2000)))
    MultiCrop(CropsConfig(global_size=32, local_size=16, num_local=1))(data, np.random.default_rng(0))
    assert held == [True] * 3 and not pixel_budget._holding


def test_reduced_jpegs_cost_what_is_decoded_and_progressive_ones_all(encode):
    image = Image.new("RGB", (800, 400))
    plain, progressive, png = (
        open_image(encode(image, kind, **options))
        for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}))
    )
    assert [opened.cost(4.5) for opened in (plain, progressive, png)] == [20_000, 320_000, 320_000]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_limit_of_pixels_decides_what_is_broken_and_gives_way_beyond_that_of_pillow(kind, encode, monkeypatch):
    data = encode(Image.new("RGB", (30, 20)), kind)
    with pytest.raises(BrokenImage, match="30 x 20 pixels are more than data.max_pixels=599"):
        open_image(data, 3, Decoding(max_pixels=599))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert open_image(data, 3, Decoding(max_pixels=600)).decode()[0].shape == (3, 20, 30)
    assert Image.MAX_IMAGE_PIXELS == 10


def most_memory(data, like, connection):
    """Sends the growth of this process's peak, in bytes, while it makes crops; `like` is a small image of its kind.

    A fork has the pages of libraries only once it has used them, so the small image goes first.
    """
    torch.set_num_threads(1)  # as data workers do: a fork has none of the threads of its parent
    crop = MultiCrop(CropsConfig(global_size=32, local_size=16, num_local=2))
    crop(like, np.random.default_rng(0))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts from what is used now
    before = status("VmRSS")
    crop(data, np.random.default_rng(0))
    connection.send(status("VmHWM") - before)


def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))


@pytest.mark.parametrize("mode, bytes_a_pixel", [("RGB", 8.5), ("P", 8.5), ("L", 8.5), ("I;16", 8.5)])
def test_large_picture_costs_little_more_than_its_pixels(mode, bytes_a_pixel, encode):
    """The decoder's 4 bytes a pixel and our 3; with Pillow's own conversions it was 13."""
    side = 3000
    data, like = (encode(Image.new(mode, (size, size)), compress_level=1) for size in (side, 64))
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=most_memory, args=(data, like, there))
    process.start()
    there.close()  # so that the end of the process ends the reading
    assert here.recv() < bytes_a_pixel * side**2
    process.join()


def test_bands_of_a_large_picture_are_the_whole(encode, photograph, monkeypatch):
    """Palettes, transparency and turns, against Pillow's conversion of the whole image."""
    monkeypatch.setattr(pictures, "LARGE", 100)
    monkeypatch.setattr(pictures, "_BAND", 1000)
    image = photograph(61, 83)
    exif = Image.Exif()
    exif[0x0112] = 6
    for picture, options in (
        (image, {"exif": exif}),
        (image.quantize(64), {}),
        (image.convert("L"), {"transparency": 7}),
        (image.convert("RGBA"), {}),
    ):
        data = encode(picture, **options)
        pixels = open_image(data).decode()[0].permute(1, 2, 0).numpy()
        expected = np.asarray(picture.convert("RGB"))
        expected = np.rot90(expected, k=-1) if options.get("exif") else expected
        np.testing.assert_array_equal(pixels, expected)
