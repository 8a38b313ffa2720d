"""Which files are images here, by suffix, and what reads the others.

Imports the standard library only.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

_SUFFIXES = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # the JPEG plug-in opens MPO files too
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "QOI": (".qoi",),
    "SGI": (".sgi",),
    "SUN": (".ras",),
    "TGA": (".tga",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}

PILLOW_FORMATS: tuple[str, ...] = tuple(_SUFFIXES)
"""Formats that Pillow may try, by its names: pictures of pixels whose decoder starts no other program.

Not on the list, though Pillow has a plug-in: EPS (starts Ghostscript), WMF, FITS, GRIB, HDF5 and BUFR (stubs or other
ranges), PSD (often without the flattened picture), icons, cursors, game textures, MPEG and FLI.
"""


@dataclass(frozen=True)
class Plugin:
    """A package that adds a format to Pillow."""

    package: str
    """Its name on PyPI."""
    module: str
    format: str
    """Pillow's name of the format."""
    suffixes: tuple[str, ...]

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


PLUGINS = (
    Plugin("pillow-heif", "pillow_heif", "HEIF", (".heic", ".heics", ".heif", ".heifs", ".hif")),
    Plugin("pillow-jxl-plugin", "pillow_jxl", "JXL", (".jxl",)),
)
"""Read as soon as the package is installed."""

_CONVERTERS = {
    "rawpy": (
        *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".kdc", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf"),
        *(".rw2", ".srw"),
    ),
    "pydicom": (".dcm", ".dicom"),
    "nibabel": (".nii",),
    "openslide-python": (".mrxs", ".ndpi", ".scn", ".svs"),
    "astropy": (".fit", ".fits"),
    "OpenEXR": (".exr",),
    "h5py": (".h5", ".hdf5"),
    "psd-tools": (".psb", ".psd"),
    "cairosvg": (".svg",),
}

NEEDS_PACKAGE: dict[str, str] = {
    **{suffix: plugin.package for plugin in PLUGINS if not plugin.installed for suffix in plugin.suffixes},
    **{suffix: package for package, suffixes in _CONVERTERS.items() for suffix in suffixes},
}
"""Lower-case suffix to the package on PyPI that would read it; see `remedy` for what to do with the package."""

READABLE: frozenset[str] = frozenset(
    [".npy"]
    + [suffix for suffixes in _SUFFIXES.values() for suffix in suffixes]
    + [suffix for plugin in PLUGINS if plugin.installed for suffix in plugin.suffixes]
)
"""Lower-case suffixes of the files that `open_image` reads."""


TABLES: dict[str, str] = {
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
}
"""Suffix of tables and archives of images to their builder in `datasets`; the first that a folder has is read."""


def remedy(suffix: str) -> str | None:
    """What to do with files that end in `suffix` (any case) and are not read; None where nothing is known."""
    package = NEEDS_PACKAGE.get(suffix.lower())
    if package is None:
        return None
    if package in _CONVERTERS:
        return f"convert to .png, .tif or .npy with the package {package}"
    return f"`pip install {package}` and they are read"


_MAGIC: tuple[tuple[int, bytes, str, str | None], ...] = (
    *((4, b"ftyp" + brand, "a HEIF picture", ".heic") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (0, b"\xff\x0a", "a JPEG XL picture", ".jxl"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture", ".jxl"),
    (128, b"DICM", "a DICOM file", ".dcm"),
    (0, b"SIMPLE  =", "a FITS file", ".fits"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", ".h5"),
    (0, b"8BPS", "a Photoshop file", ".psd"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR file", ".exr"),
    (0, b"%!PS", "a PostScript file, which is never opened", None),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript file, which is never opened", None),
    (0, b"%PDF", "a PDF file", None),
)


def what_it_is(data: bytes) -> str | None:
    """What bytes that are not read hold, and what to do; None where it is not known."""
    for offset, magic, name, suffix in _MAGIC:
        if data.startswith(magic, offset):
            advice = remedy(suffix) if suffix else "convert it to .png or .jpg"
            return f"{name}; {advice}" if advice else name
    return None
