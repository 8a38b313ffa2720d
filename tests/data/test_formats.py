import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from dinov2_hf.data import formats, load_image
from dinov2_hf.data.decode import BrokenImage, open_image
from dinov2_hf.data.formats import NEEDS_PACKAGE, PILLOW_FORMATS, PLUGINS, READABLE, remedy
from dinov2_hf.visualize.overlays import read_map


def test_suffixes_are_those_of_pillow_for_the_formats_on_the_list():
    known = Image.registered_extensions()
    assert set(PILLOW_FORMATS) <= set(Image.OPEN)
    plugins = {suffix for plugin in PLUGINS for suffix in plugin.suffixes}
    for suffix in READABLE - plugins - {".npy", ".mpo"}:
        assert known[suffix] in PILLOW_FORMATS


def test_formats_that_start_a_program_or_hold_no_picture_are_not_on_the_list():
    assert not {"EPS", "WMF", "FITS", "GRIB", "HDF5", "BUFR", "MPEG", "PSD"} & set(PILLOW_FORMATS)


def test_each_suffix_that_is_not_read_names_its_package():
    assert not READABLE & set(NEEDS_PACKAGE)
    for suffix, package in NEEDS_PACKAGE.items():
        assert package in remedy(suffix.upper())
    assert remedy(".txt") is None
    assert ".heic" in READABLE or remedy(".heic") == "`pip install pillow-heif` and they are read"


def refused(data):
    with pytest.raises(BrokenImage) as caught:
        open_image(data).decode()
    return str(caught.value)


def test_avif_is_read_where_pillow_reads_it(encode, photograph):
    image = photograph(40, 60)
    data = encode(image, "AVIF", quality=95)
    opened = open_image(data)
    assert (opened.width, opened.height) == (60, 40)
    np.testing.assert_array_equal(
        opened.decode()[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


@pytest.mark.parametrize("kind", ["JPEG2000", "PPM", "TGA", "QOI", "PCX", "SGI", "BMP", "DIB", "WEBP"])
def test_every_format_on_the_list_is_read(kind, encode, photograph):
    data = encode(photograph(40, 60), kind)
    np.testing.assert_array_equal(
        open_image(data).decode()[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\0\0\0\x18ftypheic" + bytes(60), "a HEIF picture; .*pillow-heif"),
        (b"\xff\x0a" + bytes(60), "a JPEG XL picture; .*pillow-jxl-plugin"),
        (bytes(128) + b"DICM" + bytes(60), "a DICOM file; convert .* pydicom"),
        (b"%PDF-1.7\n" + bytes(60), "a PDF file"),
        (b"8BPS\0\1" + bytes(60), "a Photoshop file; .*psd-tools"),
    ],
)
def test_what_is_not_read_is_named_with_the_package_that_would_read_it(data, message):
    assert re.search(message, refused(data))


def postscript(as_dos_file):
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n0 0 20 20 rectfill\nshowpage\n%%EOF\n"
    head = b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 30, len(text), 0, 0, 0, 0) + b"\xff\xff"
    return head + text if as_dos_file else text


@pytest.mark.parametrize("as_dos_file", [False, True])
def test_no_postscript_starts_ghostscript_under_any_name(as_dos_file, tmp_path, monkeypatch):
    mark = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    data = postscript(as_dos_file)
    with pytest.raises((OSError, ValueError)):
        Image.open(io.BytesIO(data)).load()
    assert mark.exists()  # Pillow by itself does

    mark.unlink()
    assert "PostScript" in refused(data)
    for name in ("photo.jpg", "photo.eps", "map.png"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BrokenImage):
            load_image(tmp_path / name)
        with pytest.raises(ValueError):
            read_map(data, name)
    assert not mark.exists()


def test_pillow_opens_files_in_one_place_of_the_package():
    source = Path(formats.__file__).parents[1]
    found = {}
    for path in source.rglob("*.py"):
        for call in re.findall(r"\bImage\.open\((.*)", path.read_text()):
            if not call.startswith('buffer, formats=("JPEG",)'):  # what was written just before
                found[path.name] = call
    assert list(found) == ["opening.py"] and "formats=" in found["opening.py"]


def test_documentation_lists_the_suffixes_that_are_read():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (read,) = re.findall(r"^\| read \| (.*) \|$", page, re.MULTILINE)
    plugins = {suffix for plugin in PLUGINS for suffix in plugin.suffixes}
    assert set(re.findall(r"\.\w+", read)) == READABLE - plugins
