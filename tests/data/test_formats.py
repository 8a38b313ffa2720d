from PIL import Image

from dinov2_hf.data.formats import NEEDS_PACKAGE, PILLOW_FORMATS, PLUGINS, READABLE, remedy


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
