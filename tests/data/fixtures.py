"""Small images, and the same images behind every kind of source."""

import io
import tarfile

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pillow

NUM_SAMPLES = 23
CLASSES = ["cat", "dog"]


@pytest.fixture(scope="session")
def encode():
    """Encodes a Pillow image or an array."""

    def encode(image, kind="PNG", **options):
        buffer = io.BytesIO()
        image = image if isinstance(image, Pillow.Image) else Pillow.fromarray(image)
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def photograph():
    """Draws an image as smooth as photographs are: random colours on a grid of `cell` pixels, interpolated."""

    def photograph(height, width, seed=0, cell=16):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
        return Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)

    return photograph


@pytest.fixture(scope="session")
def files(encode, photograph):
    """Encoded images, no two alike."""
    return [encode(photograph(20, 24, seed, cell=8)) for seed in range(NUM_SAMPLES)]


@pytest.fixture(scope="session")
def labels():
    return [index % 2 for index in range(NUM_SAMPLES)]


@pytest.fixture(scope="session")
def dataset(files, labels):
    """The images as a `datasets.Dataset` with columns of several types."""
    columns = {
        "id": list(range(NUM_SAMPLES)),
        "picture": [{"bytes": data, "path": None} for data in files],
        "kind": labels,
        "code": [(7, 3)[label] for label in labels],
        "text": [CLASSES[label] for label in labels],
    }
    kinds = {
        "id": Value("int64"),
        "picture": Image(),
        "kind": ClassLabel(names=CLASSES),
        "code": Value("int64"),
        "text": Value("string"),
    }
    return Dataset.from_dict(columns, features=Features(kinds))


@pytest.fixture(scope="session")
def write_tar():
    """Writes a WebDataset tar: keys to kinds of file to bytes."""

    def write_tar(path, samples):
        with tarfile.open(path, "w") as archive:
            for key, parts in samples.items():
                for kind, data in parts.items():
                    entry = tarfile.TarInfo(f"{key}.{kind}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))

    return write_tar


@pytest.fixture(scope="session")
def paths(tmp_path_factory, files, labels, dataset, write_tar):
    """The images as every kind of local source: name to path."""
    root = tmp_path_factory.mktemp("sources")
    for name in ("folder", "flat", "tables", "tars", "empty"):
        (root / name).mkdir()
    for index, (data, label) in enumerate(zip(files, labels, strict=True)):
        (root / "folder" / CLASSES[label]).mkdir(exist_ok=True)
        (root / "folder" / CLASSES[label] / f"{index:02}.png").write_bytes(data)
        (root / "flat" / f"{index:02}.png").write_bytes(data)
    dataset.select(range(12)).to_parquet(root / "tables" / "train-0.parquet")
    dataset.select(range(12, NUM_SAMPLES)).to_parquet(root / "tables" / "train-1.parquet")
    dataset.to_parquet(root / "table.parquet")
    dataset.save_to_disk(root / "saved")
    DatasetDict(train=dataset, validation=dataset.select(range(5))).save_to_disk(root / "splits")
    for tar, numbers in enumerate([range(12), range(12, NUM_SAMPLES)]):
        write_tar(root / "tars" / f"train-{tar}.tar", {f"{number:02}": {"png": files[number]} for number in numbers})
    names = ("folder", "flat", "tables", "tars", "table.parquet", "saved", "splits", "empty")
    return {name: root / name for name in names}
