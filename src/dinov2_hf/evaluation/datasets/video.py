"""Videos as lists of encoded frames: columns of tables, folders of frames, animated pictures.

Encoded videos are not decoded: their frames have to be extracted first.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
from datasets import Dataset

from ...config import SourceConfig
from ...data.broken import leave_out
from ...data.fetch import Missing, read_bytes
from ...data.formats import READABLE
from ...data.names import few
from ...data.opening import open_with_pillow
from ...data.sources import ImageColumn, Loaded, find_images, load
from .labeled import read_labels

logger = logging.getLogger(__name__)

_EXTRACT = "extract the frames, such as with `ffmpeg -i CLIP -qscale:v 2 CLASS/CLIP/%05d.jpg`, and give their folder"
_LISTS = (datasets.List, datasets.LargeList)
_PEEKED = 16
_MASK_MODES = ("1", "L", "P", "I", "I;16")


class Frames(Protocol):
    """The encoded frames of videos, in order."""

    fingerprint: str
    """Of all of them."""

    def __len__(self) -> int:
        """Videos."""
        ...

    def count(self, video: int) -> int:
        """Frames of `video`."""
        ...

    def read(self, video: int, frame: int) -> tuple[bytes, str]:
        """Bytes and name of a frame; `Missing` where there is none."""
        ...


class ListedFrames:
    """A column of which each value is a list of images: `datasets` images, bytes, structs of these, or paths."""

    def __init__(self, dataset: Dataset, column: str, folder: str | None) -> None:
        dataset = dataset.select_columns([column])
        self.fingerprint: str = dataset._fingerprint
        # of a list in arrow one image is read without the others
        self._images = ImageColumn(dataset.with_format("arrow"), column, folder)

    def __len__(self) -> int:
        return len(self._images)

    def count(self, video: int) -> int:
        return len(self._list(video) or ())

    def read(self, video: int, frame: int) -> tuple[bytes, str]:
        return self._images.encoded(self._list(video)[frame].as_py(), f"row {video}, frame {frame}")

    def _list(self, video: int):
        return self._images.dataset[video][self._images.name][0].values


class FolderFrames:
    """Files, one for each frame; None for a frame that there is none of."""

    def __init__(self, files: Sequence[Sequence[Path | None]]) -> None:
        self._files = files
        digest = hashlib.sha256()
        for file in (file for video in files for file in [*video, None]):
            stat = file.stat() if file else None
            digest.update(repr((str(file), stat.st_size, stat.st_mtime_ns) if stat else None).encode())
        self.fingerprint: str = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def count(self, video: int) -> int:
        return len(self._files[video])

    def read(self, video: int, frame: int) -> tuple[bytes, str]:
        file = self._files[video][frame]
        return (read_bytes(str(file)), str(file)) if file else (Missing("there is no such frame"), f"frame {frame}")


class AnimatedFrames:
    """Animated pictures (GIF, WebP, APNG), one for each video; a frame is read as a PNG file of its own."""

    def __init__(self, images: ImageColumn) -> None:
        self._images = images
        self.fingerprint: str = images.fingerprint

    def __len__(self) -> int:
        return len(self._images)

    def count(self, video: int) -> int:
        try:
            with open_with_pillow(io.BytesIO(self._images.read(video)[0])) as animation:
                return getattr(animation, "n_frames", 1)
        except Exception:  # Pillow raises anything on malformed files
            return 0

    def read(self, video: int, frame: int) -> tuple[bytes, str]:
        data, name = self._images.read(video)
        buffer = io.BytesIO()
        try:
            with open_with_pillow(io.BytesIO(data)) as animation:
                animation.seek(frame)
                animation.convert("RGB").save(buffer, "PNG", compress_level=1)
        except Exception as error:
            missing = data if isinstance(data, Missing) else Missing(f"cannot be decoded: {error}")
            return missing, f"{name}, frame {frame}"
        return buffer.getvalue(), f"{name}, frame {frame}"


class LabeledClips:
    """Clips with class labels; `labels` `[N]` are indices into `names`.

    They are a folder `CLASS/CLIP/FRAME` (under a folder of the name of the split, if there is one), or a table with
    lists of images or animated pictures and a column of labels.

    Raises:
        ValueError: no clips or labels there, encoded videos, or single images.
    """

    multi_label = False

    def __init__(self, config: SourceConfig) -> None:
        self.where = f"{config.path} (split {config.split!r})"
        folder = _folder_of_clips(config)
        if folder is not None:
            clips = [(clip, group.name) for group in _folders(folder) for clip in _folders(group)]
            self.frames: Frames = FolderFrames([_files(clip) for clip, _ in clips])
            names, self.labels = np.unique([name for _, name in clips], return_inverse=True)
            self.names: list[str] = names.tolist()
        else:
            loaded = load(config, streaming=False)
            self.frames = _frames(loaded, config)
            self.labels, self.names, several = read_labels(loaded.dataset, config)
            if several:
                raise ValueError(f"{self.where} has lists of labels; give each clip one, or name another column")
        self.fingerprint = self.frames.fingerprint

    def __len__(self) -> int:
        return len(self.frames)


class SampledFrames:
    """The same number of evenly spaced frames of every clip, one clip after the other, as extraction reads images.

    They are the middles of as many segments (DINOv2, section 7.2: 8 frames); shorter clips repeat frames.
    """

    def __init__(self, frames: Frames, per_clip: int) -> None:
        self._frames, self._per_clip = frames, per_clip
        self.fingerprint = f"{frames.fingerprint}, {per_clip} frames"

    def __len__(self) -> int:
        return len(self._frames) * self._per_clip

    def read(self, index: int) -> tuple[bytes, str]:
        """Bytes and name of a frame."""
        clip, number = divmod(index, self._per_clip)
        count = self._frames.count(clip)
        if count == 0:
            return Missing("the clip has no frames"), f"clip {clip}"
        return self._frames.read(clip, (2 * number + 1) * count // (2 * self._per_clip))


class MaskedVideos:
    """Videos with index masks of their frames: 0 background, 1, 2, … objects, 255 what does not count.

    They are a folder laid out as DAVIS 2017 (`JPEGImages/480p/VIDEO/*.jpg`, `Annotations/480p/VIDEO/*.png`, and
    `ImageSets/2017/val.txt` for the split `validation`), or a table with a list of frames (`image_column`; default: the
    first of lists of images) and a list of masks as long (`label_column`; default: `masks` or `annotations`). Frames
    but the first may have no mask.

    Raises:
        ValueError: no videos or masks there, or not as many masks as frames.
    """

    def __init__(self, config: SourceConfig) -> None:
        root = Path(os.path.expanduser(str(config.path)))
        self.where = f"{config.path} (split {config.split!r})"
        self.frames: Frames
        self.masks: Frames
        if (root / "JPEGImages").is_dir():
            pictures, annotations = (_resolution(root / name) for name in ("JPEGImages", "Annotations"))
            self.names = _listed_videos(root, config.split) or [folder.name for folder in _folders(pictures)]
            missing = [name for name in self.names if not (pictures / name).is_dir()]
            if missing:
                raise ValueError(f"{self.where} lists the video {missing[0]}, but {pictures / missing[0]} is no folder")
            files = [_files(pictures / name) for name in self.names]
            masks = [{mask.stem: mask for mask in _files(annotations / name)} for name in self.names]
            self.frames = FolderFrames(files)
            self.masks = FolderFrames([[found.get(file.stem) for file in video] for video, found in zip(files, masks)])
        else:
            loaded = load(config, streaming=False)
            features = loaded.dataset.features
            self.frames = _frames(loaded, config)
            named = [config.label_column] if config.label_column else ["masks", "annotations"]
            column = next((name for name in named if name in features and _is_list_of_images(features[name])), None)
            if column is None:
                raise ValueError(
                    f"{self.where} has no list of masks called {' or '.join(named)}; its columns are "
                    f"{few(features)}; name that of the masks with label_column="
                )
            self.masks = ListedFrames(loaded.dataset, column, loaded.folder)
            self.names = [f"{row:05}" for row in range(len(self.frames))]
            for row in range(len(self.frames)):
                if self.frames.count(row) != self.masks.count(row):
                    raise ValueError(
                        f"row {row} of {self.where} has {self.frames.count(row)} frames and {self.masks.count(row)} "
                        "masks; give a mask for each frame, None where there is none"
                    )

    def __len__(self) -> int:
        return len(self.names)

    def mask(self, video: int, frame: int) -> np.ndarray | None:
        """Indices `[H, W]`, uint8; None where there is no mask, or one that cannot be decoded, which the log names.

        Raises:
            ValueError: a picture in colours, not of indices, or of more than 254 objects.
        """
        data, name = self.masks.read(video, frame)
        if not data:
            return None
        try:
            mask = open_with_pillow(io.BytesIO(data))
            indices = np.array(mask)
        except Exception as error:
            leave_out("mask", name, error)
            return None
        if mask.mode not in _MASK_MODES:
            raise ValueError(
                f"the mask {name} has colours (mode {mask.mode}), not indices; save it as a grey or palette PNG file "
                "of 0 for the background and 1, 2, … for the objects"
            )
        if indices.max() > 255:
            raise ValueError(f"the mask {name} has the index {indices.max()}; number the objects from 1 to 254")
        return indices.astype(np.uint8)


def _frames(loaded: Loaded, config: SourceConfig) -> Frames:
    """The frames in a table: the column named, else the first of lists of images, else of animated pictures."""
    features = loaded.dataset.features
    videos = [name for name, feature in features.items() if isinstance(feature, datasets.Video)]
    lists = [name for name, feature in features.items() if _is_list_of_images(feature)]
    column = config.image_column or next(iter(lists), None)
    if column in videos or (column is None and videos):
        raise ValueError(f"{config.path} holds encoded videos (column {column or videos[0]!r}); {_EXTRACT}")
    if column is not None and column in features and isinstance(features[column], _LISTS):
        return ListedFrames(loaded.dataset, column, loaded.folder)
    animated = AnimatedFrames(find_images(loaded, config))
    if max(map(animated.count, range(min(len(animated), _PEEKED)))) <= 1:
        raise ValueError(
            f"{config.path} (split {config.split!r}) holds single images, not clips: give a folder CLASS/CLIP/FRAME, "
            "a table with lists of images, or animated pictures"
        )
    return animated


def _is_list_of_images(feature) -> bool:
    """Whether a column has lists of images or of their bytes; lists of texts might be anything and have to be named."""
    inner = feature.feature if isinstance(feature, _LISTS) else None
    if isinstance(inner, dict):
        inner = inner.get("bytes")
    return isinstance(inner, datasets.Image) or (isinstance(inner, datasets.Value) and "binary" in inner.dtype)


def _folder_of_clips(config: SourceConfig) -> Path | None:
    """The folder of the folders of classes; None where there is none.

    Raises:
        ValueError: such a folder without the split.
    """
    root = Path(os.path.expanduser(str(config.path)))
    for name in _names_of(config.split):
        if _first_image(root / name, "*/*/*"):
            return root / name
    if _first_image(root, "*/*/*"):
        if config.split != "train":
            raise ValueError(
                f"split={config.split!r} is not in {config.path}, a folder of clips that is all `train`; give another "
                f"folder for it, or put its classes into {Path(str(config.path), config.split)}"
            )
        return root
    if _first_image(root, "*/*/*/*"):
        splits = ", ".join(folder.name for folder in _folders(root))
        raise ValueError(f"split={config.split!r} is not in {config.path}; it has {splits}")
    return None


def _first_image(root: Path, pattern: str) -> Path | None:
    return next(filter(_is_image, root.glob(pattern)), None) if root.is_dir() else None


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in READABLE and file.is_file()


def _files(folder: Path) -> list[Path]:
    """The images in `folder`, by the numbers in their names."""
    return sorted(filter(_is_image, folder.iterdir()), key=_by_number) if folder.is_dir() else []


def _folders(folder: Path) -> list[Path]:
    return sorted(filter(Path.is_dir, folder.iterdir()), key=_by_number)


def _by_number(path: Path) -> list:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _names_of(split: str) -> tuple[str, ...]:
    return (split, "val") if split == "validation" else (split,)


def _resolution(folder: Path) -> Path:
    return folder / "480p" if (folder / "480p").is_dir() else folder


def _listed_videos(root: Path, split: str) -> list[str]:
    """The videos of a split of DAVIS; none where there are no lists, and all videos are taken.

    Raises:
        ValueError: lists, but none of the split.
    """
    lists = root / "ImageSets" / "2017"
    for name in _names_of(split):
        if (lists / f"{name}.txt").is_file():
            return (lists / f"{name}.txt").read_text().split()
    if lists.is_dir():
        found = ", ".join(sorted(file.stem for file in lists.glob("*.txt")))
        raise ValueError(f"split={split!r} is not among the lists of videos in {lists}; it has {found}")
    return []
