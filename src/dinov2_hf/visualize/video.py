"""The attention of every frame of a video, beside the frame, as an animated picture."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.decode import BrokenImage
from ..data.fetch import read_bytes
from ..data.formats import READABLE
from ..data.opening import open_with_pillow
from ..features import FeatureExtractor
from ..files import SOFTWARE, beside
from .attention import attention_maps
from .attention_masks import MASS, attention_masks, color_heads
from .pictures import Picture, open_picture

ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
"""Suffixes of the animated pictures that are written, and their formats in Pillow."""
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".wmv"}
"""Suffixes of encoded videos, which no dependency reads."""
_SECONDS = 0.04  # of a frame where nothing says it
_SHORTEST = 0.02  # of a frame: viewers of GIF slow down what is faster
_SOFTWARE_TAG = 0x0131


@dataclass(frozen=True)
class Frames:
    """The frames of a video, read one at a time."""

    files: list[tuple[Path, int | None]]
    """Where each frame is: a file, or a frame of an animated picture."""
    seconds: float = _SECONDS
    """That a frame is shown."""

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[bytes, str]]:
        """Yields bytes and name of each frame."""
        for path, number in self.files:
            if number is None:
                yield read_bytes(str(path)), path.name
            else:
                yield _frame_of(path, number), f"{path.name}, frame {number}"

    def thinned(self, most: int | None) -> Frames:
        """At most so many of them, evenly spaced, shown for as long in all."""
        if most is None or len(self) <= most:
            return self
        kept = np.linspace(0, len(self) - 1, most).round().astype(int)
        return Frames([self.files[index] for index in kept], self.seconds * len(self) / most)


def open_frames(paths: Sequence[str]) -> Frames:
    """The frames at paths, one after the other: folders of frames, by the numbers in their names; animated pictures;
    single frames.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: an encoded video, a folder without frames, or a file that is not a picture.
    """
    files: list[tuple[Path, int | None]] = []
    seconds = 0.0
    for path in map(Path, paths):
        path = path.expanduser()
        if path.is_dir():
            found = [file for file in path.iterdir() if file.suffix.lower() in READABLE and file.is_file()]
            if not found:
                raise ValueError(f"{path} has no frames; give a folder of pictures such as 00001.jpg")
            files += [(file, None) for file in sorted(found, key=_by_number)]
            continue
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; give a folder of frames, or an animated GIF or WebP")
        if path.suffix.lower() in VIDEOS:
            raise ValueError(
                f"{path} is an encoded video, which is not read; write its frames to a folder first: "
                f"ffmpeg -i {path.name} -qscale:v 2 FOLDER/%05d.jpg"
            )
        count, duration = _animation(path)
        files += [(path, number) for number in range(count)] if count > 1 else [(path, None)]
        seconds = max(seconds, duration)
    return Frames(files, seconds or _SECONDS)


def animate_attention(
    backbone: FeatureExtractor,
    frames: Frames,
    path: Path,
    image_size: int,
    mass: float = MASS,
    heads: Sequence[int] | None = None,
) -> int:
    """Writes frames, each beside what the heads look at in it, as an animated GIF or WebP file; returns their number.

    Args:
        path: ends in `.gif` or `.webp`.
        image_size: longer side of a frame in pixels, a multiple of the patch. All frames take the size of the first.
        mass: as in `attention_masks`.
        heads: those that are shown, from 0; None: all.

    Raises:
        BrokenImage: a frame that cannot be decoded.
        ValueError: another suffix, another share, a head that is not there, no attention, frames of other proportions.
    """
    check_animation(path)
    drawn = [_drawn(backbone, picture, mass, heads) for picture in _pictures(backbone, frames, image_size)]
    _write(path, drawn, max(frames.seconds, _SHORTEST))
    return len(drawn)


def check_animation(path: Path) -> None:
    """Refuses a file that is not written as an animation.

    Raises:
        ValueError: another suffix than `.gif` and `.webp`.
    """
    if path.suffix.lower() not in ANIMATIONS:
        raise ValueError(f"{path} ends neither in .gif nor in .webp, as animations do; rename it")


def _pictures(backbone: FeatureExtractor, frames: Frames, image_size: int) -> Iterator[Picture]:
    transform = backbone.transform
    size: tuple[int, ...] = ()
    for data, name in frames:
        picture = open_picture(data, name, image_size, backbone.stride, len(transform.mean), transform.decoding)
        size = size or picture.pixels.shape
        if picture.pixels.shape != size:
            raise ValueError(
                f"{name} has {picture.pixels.shape[1]} x {picture.pixels.shape[2]} pixels and the first frame "
                f"{size[1]} x {size[2]}; give frames of one size"
            )
        yield picture


def _drawn(backbone: FeatureExtractor, picture: Picture, mass: float, heads: Sequence[int] | None) -> Image.Image:
    """A frame, and beside it the areas of the heads."""
    attention = attention_maps(backbone, picture)
    if heads is not None and (wrong := [head for head in heads if not 0 <= head < len(attention)]):
        count = len(attention)
        raise ValueError(f"head {wrong[0] + 1} is not one of the {count} heads of {backbone.name}; use 1 to {count}")
    colored = color_heads(picture, attention, attention_masks(attention, mass), heads)
    return Image.fromarray(np.concatenate((picture.shown, colored), axis=1))


def _write(path: Path, drawn: list[Image.Image], seconds: float) -> None:
    kind, milliseconds = ANIMATIONS[path.suffix.lower()], round(1000 * seconds)
    options = {"save_all": True, "append_images": drawn[1:], "duration": milliseconds, "loop": 0}
    if kind == "GIF":
        options["comment"] = SOFTWARE.encode()
    else:
        exif = Image.Exif()
        exif[_SOFTWARE_TAG] = SOFTWARE
        options |= {"exif": exif, "quality": 85}
    with beside(path) as temporary:
        drawn[0].save(temporary, kind, **options)


def _animation(path: Path) -> tuple[int, float]:
    """Number of frames of a picture, and how long one is shown in seconds, 0 where nothing says it."""
    try:
        with open_with_pillow(str(path)) as image:
            count = getattr(image, "n_frames", 1)
            image.load()  # of which WebP needs the first frame to know its duration
            return count, image.info.get("duration", 0) / 1000
    except Exception as error:  # Pillow raises anything on malformed files
        raise BrokenImage(f"{path} is not a picture that can be read: {error}; give others") from None


def _frame_of(path: Path, number: int) -> bytes:
    """A frame of an animated picture as a PNG file."""
    buffer = io.BytesIO()
    try:
        with open_with_pillow(str(path)) as image:
            image.seek(number)
            image.convert("RGB").save(buffer, "PNG", compress_level=1)
    except Exception as error:
        raise BrokenImage(f"frame {number} of {path} cannot be decoded: {error}; give another file") from None
    return buffer.getvalue()


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
