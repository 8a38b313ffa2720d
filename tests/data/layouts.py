"""Folders as hostile as they come, drawn from a seed, and a walker that states the rule for them in the plainest way.

Used by `test_folders.py` and `benchmarks/fuzz_folders.py`.
"""

import csv
import io
import os
import random
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SPLITS = {b"train": "train", b"val": "validation", b"validation": "validation", b"test": "test"}
IMAGES = "jpg jpeg jpe jfif JPG Jpeg png PNG bmp gif webp avif tif TIFF ppm tga npy".split()
OTHERS = "txt json xml pdf eps ps md heic jxl cr2 svg mp4 TXT".split()
NAMES = [
    *[
        b"a",
        b"b",
        b"cats",
        b"my_test_photos",
        b"training-day",
        b"steam_train",
        b"eval1",
        b"test_01",
        b"Train",
        b"tests",
    ],
    *[b"data [1]", b"[ab]*", b"50% off", b"%20", b"a?b", b"#1", b"x::y", b"zip:", b"'single'", b'"double"', b" space "],
    *[
        "émoji 🎈".encode(),
        "日本".encode(),
        b"new\nline",
        b"tab\t",
        b"\xff\xfe",
        b"caf\xe9",
        b"-dash",
        b"back\\slash",
        b"...",
    ],
    *[b"a.jpg", b"b.tar", b"$(id)", b"~", b"{x}", b"&amp;", b"semi;colon"],
]
IGNORED_NAMES = [b"Thumbs.db", b"desktop.ini", b".DS_Store", b"._a.jpg", b".hidden.jpg", b"README", b"LICENSE"]


def kind_of(name):
    """The word of the log for a file that is not read, by its name."""
    if name.startswith(b"._"):
        return "._ file"
    if name in (b".DS_Store", b"Thumbs.db", b"desktop.ini"):
        return name.decode()
    if name.startswith(b"."):
        return "hidden file"
    return os.path.splitext(name)[1].lower().decode() or "file without a suffix"


@dataclass
class Walk:
    """What a person finds who opens every folder by hand."""

    images: dict = field(default_factory=dict)
    """Content by path below the root, a tuple of names; None for a link that leads nowhere."""
    ignored: Counter = field(default_factory=Counter)
    links: int = 0


def walk(root):
    found = Walk()

    def enter(folder, path, above):
        for name in os.listdir(folder):
            file, here = os.path.join(folder, name), (*path, name)
            if os.path.isdir(file):
                if name == b"__MACOSX":
                    found.ignored["__MACOSX folder"] += 1
                elif name.startswith(b"."):
                    found.ignored["hidden folder"] += 1
                elif os.path.realpath(file) not in above:
                    found.links += os.path.islink(file)
                    enter(file, here, {*above, os.path.realpath(file)})
            elif not name.startswith(b".") and suffix_of(name) in map(str.lower, IMAGES):
                found.links += os.path.islink(file) and os.path.exists(file)
                found.images[here] = content(file)
            elif suffix_of(name) == "zip" and zipfile.is_zipfile(os.fsdecode(file)):
                members(file, here)
            elif suffix_of(name) == "zip":
                found.ignored["damaged .zip"] += 1
            elif not os.path.exists(file) and not name.startswith(b"."):
                found.ignored["dangling link"] += 1
            elif name != b"metadata.csv":
                found.ignored[kind_of(name)] += 1

    def members(file, path):
        with zipfile.ZipFile(os.fsdecode(file)) as archive:
            for member in archive.infolist():
                name = member.filename.encode()
                parts = [part for part in name.split(b"/") if part not in (b"", b".", b"..")]
                if member.is_dir():
                    continue
                if any(part.startswith(b".") or part == b"__MACOSX" for part in parts):
                    found.ignored["hidden member of a .zip"] += 1
                elif suffix_of(parts[-1]) in map(str.lower, IMAGES):
                    found.images[(*path, *parts)] = archive.read(member)
                else:
                    found.ignored[kind_of(parts[-1])] += 1

    enter(root, (), {os.path.realpath(root)})
    return found


def splits_of(images, split_folders=None):
    """Paths by split, and whether the folder has splits."""
    tops = {path[0] if len(path) > 1 else None for path in images}
    if split_folders is False or (split_folders is None and not all(top in SPLITS for top in tops)):
        return {"train": list(images)}, False
    found = {}
    for path in images:
        if len(path) > 1 and path[0] in SPLITS:
            found.setdefault(SPLITS[path[0]], []).append(path)
    return found, True


def decodes(data):
    """Whether Pillow, or numpy, makes pixels of it."""
    try:
        if data.startswith(b"\x93NUMPY"):
            return np.load(io.BytesIO(data)).size > 0
        Image.open(io.BytesIO(data)).load()
    except Exception:
        return False
    return True


def content(file):
    return open(file, "rb").read() if os.path.exists(file) else None


def suffix_of(name):
    return os.path.splitext(name)[1][1:].lower().decode(errors="replace")


class Layout:
    """A folder at `root`, drawn from `seed`; `split_folders` is how it is to be read."""

    def __init__(self, root, seed):
        self.random = random.Random(seed)
        self.root = os.fsencode(root)
        self._number = 0
        os.makedirs(self.root)
        draw = self.random
        self.split_folders = draw.choice([None, None, None, None, True, False])
        tops = draw.choice(
            [
                [b"train", b"val"],
                [b"train", b"validation", b"test"],
                [b"val", b"test"],
                [b"train"],
                [b"train", b"val", *draw.sample(NAMES, 1)],
                draw.sample(NAMES, 2),
                draw.sample(NAMES, 3),
                [],
            ]
        )
        folders = [()]
        for top in tops:
            folders.append((top,))
            for _ in range(draw.randrange(3)):
                folders.append(
                    (*draw.choice([folder for folder in folders if folder[:1] == (top,)]), draw.choice(NAMES))
                )
        beside = not tops or draw.random() < 0.2
        for folder in folders:
            os.makedirs(self.path(*folder), exist_ok=True)
        for folder in folders:
            if folder or beside:
                for _ in range(draw.randrange(4)):
                    self.add_image(*folder)
            for _ in range(draw.randrange(3)):
                self.add_other(*folder)
            if draw.random() < 0.12 and (folder or beside):
                self.add_zip(*folder)
        self.add_image(*(folders[-1] if tops else ()))
        if not walk(self.root).images:
            self.write(self.image("png"), b"an image.png")
        for _ in range(draw.randrange(4)):
            self.add_link(folders)
        if draw.random() < 0.2:
            self.add_hidden(*draw.choice(folders))
        if draw.random() < 0.2:
            self.add_metadata()

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    def write(self, data, *parts):
        path = self.path(*parts)
        if not os.path.lexists(path):
            with open(path, "wb") as file:
                file.write(data)

    def image(self, suffix):
        """An encoded image like no other, or now and then bytes that are none."""
        self._number += 1
        if self.random.random() < 0.1:
            return b"broken %d" % self._number
        if suffix.lower() == "npy":
            buffer = io.BytesIO()
            np.save(buffer, np.full((3, 3, 3), self._number, dtype=np.uint8))
            return buffer.getvalue() + b"%d" % self._number
        mark = b"%08d" % self._number
        return encoded(suffix.lower()) + (b"\0\0\0\x10free" + mark if suffix.lower() == "avif" else mark)

    def name(self, suffix):
        return self.random.choice(NAMES) + b"." + suffix.encode()

    def add_image(self, *folder):
        suffix = self.random.choice(IMAGES)
        self.write(self.image(suffix), *folder, self.name(suffix))

    def add_other(self, *folder):
        draw = self.random
        if draw.random() < 0.4:
            self.write(b"x", *folder, draw.choice(IGNORED_NAMES))
        else:
            self.write(b"x", *folder, self.name(draw.choice([*OTHERS, "tar", "csv", "parquet", "zip"])))

    def add_zip(self, *folder):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for _ in range(self.random.randrange(4)):
                suffix = self.random.choice(IMAGES)
                places = ["", "cats/", "../../", "/abs/", "__MACOSX/", ".git/", "a/b/", "train/", "日本/"]
                name = f"{self.random.choice(places)}{self._number}.{suffix}"
                archive.writestr(name, self.image(suffix))
            archive.writestr("nested.zip", b"PK")
            archive.writestr("folder/", b"")
        self.write(buffer.getvalue(), *folder, self.name("zip"))

    def add_link(self, folders):
        draw = self.random
        folder, target = draw.choice(folders), draw.choice(folders)
        names = {
            "folder": (draw.choice(NAMES), self.path(*target)),
            "file": (self.name(draw.choice(IMAGES)), draw.choice(self.files())),
            "dangling": (draw.choice(NAMES) + draw.choice([b"", b".jpg", b".txt"]), b"nowhere"),
            "itself": (b"loop", b"loop"),
        }
        name, target = names[draw.choice(["folder", "folder", "file", "dangling", "itself"])]
        if not os.path.lexists(self.path(*folder, name)):
            os.symlink(target, self.path(*folder, name))

    def files(self):
        return sorted(os.path.join(folder, name) for folder, _, names in os.walk(self.root) for name in names)

    def add_hidden(self, *folder):
        name = self.random.choice([b"__MACOSX", b".git", b".cache"])
        if not os.path.lexists(self.path(*folder, name)):
            os.makedirs(self.path(*folder, name))
            self.add_image(*folder, name)

    def add_metadata(self):
        """Names some images of the root's folders, and one that is not there."""
        images = [path for path in walk(self.root).images if not any(part.endswith(b".zip") for part in path)]
        rows = [b"/".join(path) for path in images if self.random.random() < 0.6]
        with open(self.path(b"metadata.csv"), "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "caption"])
            for row in (*rows, b"missing.jpg"):
                try:
                    writer.writerow([row.decode(), "text"])
                except UnicodeDecodeError:
                    continue


def encoded(suffix, made={}):  # noqa: B006 - encoded once
    if suffix not in made:
        kinds = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "tiff": "TIFF"}
        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, kinds.get(suffix, suffix.upper()))
        made[suffix] = buffer.getvalue()
    return made[suffix]


def differences(layout, split, streaming, open_source, line_of):
    """Reads a layout as a run does; what of it is not as the walker found it, as texts.

    Args:
        open_source: opens the layout by keyword arguments of a source.
        line_of: returns the line of the log.
    """
    found = walk(layout.root)
    by_split, is_split = splits_of(found.images, layout.split_folders)
    if split not in by_split:
        split = sorted(by_split)[0] if by_split else "train"
    options = {"path": os.fsdecode(layout.root), "split": split, "split_folders": layout.split_folders}
    try:
        source = open_source(streaming=streaming, **options)
    except ValueError as error:
        return [] if not by_split and "split_folders=true" in str(error) else [f"refused: {error}"]
    if not by_split:
        return ["not refused, though no folder is a split"]
    expected = [found.images[path] or b"" for path in by_split[split]]
    seen = [source.read(number) for number in range(len(expected) + 1)]
    wrong = []
    if [sample.epoch for sample in seen] != [0] * len(expected) + [1]:
        wrong.append(f"not {len(expected)} images")
    if Counter(bytes(sample.data) for sample in seen[:-1]) != Counter(expected):
        missing = set(expected) - {sample.data for sample in seen}
        wrong.append(f"images differ: {[path for path in by_split[split] if found.images[path] in missing]}")
    wrong += [f"{sample.name!r} has several lines" for sample in seen if "\n" in sample.name]
    wrong += check_line(line_of(), len(expected), split, by_split if is_split else None, found)
    return wrong


def check_line(line, count, split, by_split, found):
    """What of the line of the log is not true."""
    said = line.rpartition(f": {count:,} image")[2]
    wrong = [] if said != line and "\n" not in line else [f"{count} images are not in {line!r}"]
    ignored = re.search(r"; ignored ([^;]*)", said)
    kinds = re.sub(r" \(.*?\)", "", ignored[1]).split(", ") if ignored else []
    numbers = Counter()
    for kind in kinds:
        number, _, name = kind.partition(" ")
        numbers[re.sub(r"\b(file|folder|link|member)s\b", r"\1", name)] += int(number.replace(",", ""))
    if sum(numbers.values()) != sum(found.ignored.values()) or (len(found.ignored) <= 8 and numbers != found.ignored):
        wrong.append(f"ignored {dict(numbers)}, not {dict(found.ignored)}")
    followed = re.search(r"; (\d+) links? followed", said)
    if int(followed[1] if followed else 0) != found.links:
        wrong.append(f"{found.links} links are not in {said!r}")
    others = {name: len(paths) for name, paths in (by_split or {}).items() if name != split}
    also = re.search(r"\(also: (.*?)\)", said)
    if {part.split(" in ")[1]: int(part.split(" in ")[0]) for part in (also[1].split(", ") if also else [])} != others:
        wrong.append(f"splits {others} are not in {said!r}")
    return wrong
