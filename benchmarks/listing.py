"""CPU seconds until a folder of many files is open.

    python benchmarks/listing.py 100000     # or: python benchmarks/data.py --listing 100000

Makes a tree of folders of 100 files each in a temporary folder, opens it as a run does, without the kept listing and
with it, then with one file more in the deepest folder, and at last as `datasets`' own folder loader opens it, twice.
The files are empty: nothing decodes them here. CPU seconds are those of the process with its threads, imports aside.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
from datasets import load_dataset_builder

from dinov2_hf.config import SourceConfig
from dinov2_hf.data.sources.load import load

_FILES_OF_FOLDER = 100


def measure_listing(num_files: int) -> None:
    """Prints a table in Markdown."""
    temporary = Path(tempfile.mkdtemp())
    datasets.config.HF_DATASETS_CACHE = temporary / "cache"
    datasets.disable_progress_bars()
    try:
        root = make_tree(temporary / "images", num_files)
        time.sleep(2.5)  # a folder that has just changed is not trusted
        print(f"{num_files:,} files in {num_files // _FILES_OF_FOLDER:,} folders\n")
        print("| | images | CPU seconds | wall seconds |")
        print("| --- | ---: | ---: | ---: |")
        config = SourceConfig(path=str(root))
        report("ours, first start", lambda: load(config, False).dataset)
        report("ours, second start", lambda: load(config, False).dataset)
        last = max(root.rglob("*.jpg"))
        shutil.copy(last, last.with_name("new.jpg"))
        report("ours, after a file was added", lambda: load(config, False).dataset)
        report("`datasets`, first start", lambda: open_with_datasets(root))
        report("`datasets`, second start", lambda: open_with_datasets(root))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_tree(root: Path, num_files: int) -> Path:
    for folder in range(num_files // _FILES_OF_FOLDER):
        path = root / f"class_{folder % 10}" / f"part_{folder:05}"
        path.mkdir(parents=True)
        for number in range(_FILES_OF_FOLDER):
            os.close(os.open(path / f"image_{number:05}.jpg", os.O_CREAT | os.O_WRONLY))
    return root


def open_with_datasets(root: Path) -> datasets.Dataset:
    builder = load_dataset_builder(str(root))
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


def report(name: str, open_source: Callable[[], datasets.Dataset]) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    images = len(open_source())
    print(
        f"| {name} | {images:,} | {time.process_time() - cpu:.2f} | {time.perf_counter() - wall:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    measure_listing(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
