"""JPEG files that lack their last bytes: whether little enough is missing, and the file with its end put on."""

from __future__ import annotations

import io

import numpy as np

from .encoded import BrokenImage
from .opening import open_with_pillow

COMPLETE_ROWS = 7 / 8
"""Of the image, at least."""

_END = b"\xff\xd9"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame's header
_SCAN, _WITHOUT_LENGTH = 0xDA, {0x01, *range(0xD0, 0xD9)}


def completed(data: bytes) -> bytes:
    """The file with an end, so that it is decoded; what is missing is as libjpeg fills it.

    A row is complete where it does not depend on what follows the last byte. Every coefficient has to be in the scans
    that the file has, which rules out progressive files that lack a scan.

    Raises:
        BrokenImage: more than an eighth of the rows is missing, or a scan.
    """
    data = data.rstrip(b"\xff")  # half a marker
    if not _has_all_scans(data):
        raise BrokenImage("image file is truncated; it lacks scans, and data.truncated_jpegs reads what lacks less")
    noise = np.random.default_rng(0).integers(0, 255, 4096, dtype=np.uint8).tobytes()  # without 255: no marker
    first, second = (_pixels(data + filler + _END) for filler in (b"", noise))
    differ = (first != second).reshape(len(first), -1).any(axis=1)
    share = float(differ.argmax()) / len(first) if differ.any() else 1.0
    if share < COMPLETE_ROWS:
        raise BrokenImage(
            f"image file is truncated; {share:.0%} of its rows are complete, and data.truncated_jpegs reads files with "
            f"{COMPLETE_ROWS:.1%} or more"
        )
    return data + _END


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_with_pillow(io.BytesIO(data), max_pixels=1 << 62))  # its size was checked before


def _has_all_scans(data: bytes) -> bool:
    """Whether a scan of the last bit of every coefficient of every component has begun."""
    components: set[int] = set()
    found: dict[int, set[int]] = {}
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == 0 or marker == 0xFF or marker in _WITHOUT_LENGTH:  # inside of a scan
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if marker in _FRAMES and len(segment) > 5:
            components = set(segment[6::3][: segment[5]])
        elif marker == _SCAN and segment and len(segment) >= 2 * segment[0] + 4:
            first, last, bits = segment[2 * segment[0] + 1 : 2 * segment[0] + 4]
            if bits & 15 == 0:
                for component in segment[1 : 2 * segment[0] + 1 : 2]:
                    found.setdefault(component, set()).update(range(first, last + 1))
        position += 2 + length
    return bool(components) and all(len(found.get(component, ())) == 64 for component in components)
