"""Folders drawn at random, read as a run reads them, against a walker that opens every folder by hand.

    python benchmarks/fuzz_folders.py --layouts 2000

Hostile names, sidecars, links, loops, splits and almost-splits, archives, metadata, types: `tests/data/layouts.py`
draws them. The images that a run sees and the counts in its log have to be those of the walker. Prints each layout that
differs, by its seed, and ends with status 1 if there is one.
"""

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import datasets

from dinov2_hf.config import DataConfig, TrainingSourceConfig
from dinov2_hf.data.decode import BrokenImage, open_image
from dinov2_hf.data.sources.training import open_training_source

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/data"))
from layouts import Layout, decodes, differences, walk  # noqa: E402


class Lines(logging.Handler):
    """Keeps what the log says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def open_source(**options):
    return open_training_source(DataConfig(train=TrainingSourceConfig(**options), shuffle=False), 0)


def opens(data: bytes) -> bool:
    try:
        open_image(data).decode()
    except BrokenImage:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layouts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first layout")
    args = parser.parse_args()
    handler = Lines()
    logger = logging.getLogger("dinov2_hf.data.sources.load")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    folder = Path(tempfile.mkdtemp())
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    wrong, images, decoded, ignored = 0, 0, 0, Counter()
    start = time.perf_counter()
    try:
        for seed in range(args.seed, args.seed + args.layouts):
            layout = Layout(folder / str(seed), seed)
            split = layout.random.choice(["train", "validation", "test"])
            found = differences(layout, split, bool(seed % 2), open_source, lambda: handler.lines[-1])
            walked = walk(layout.root)
            images += len(walked.images)
            ignored += walked.ignored
            for path, data in walked.images.items():
                expected = data is not None and decodes(data)
                decoded += expected
                if opens(data or b"") != expected:
                    found.append(f"{path} {'is not' if expected else 'is'} decoded")
            for difference in found:
                print(f"layout {seed}: {difference}")
            wrong += bool(found)
            shutil.rmtree(folder / str(seed))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{args.layouts:,} layouts, {images:,} images ({decoded:,} can be decoded), {ignored.total():,} other files of "
        f"{len(ignored)} kinds: {wrong} layouts differ; {time.perf_counter() - start:.0f} s"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
