"""Values on the command line."""

from __future__ import annotations

import argparse
import re

SOURCES = (
    "a run's output folder or one of its checkpoints, an export, a folder that transformers loads or its name on the "
    "Hub, an original .pth file, a file under timm's names, an ONNX file of ours"
)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def size_of(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give pixels such as 224 or 224x280")
    return int(match[1]), int(match[2] or match[1])


def without_bars() -> None:
    """Switches off the bars of transformers while it reads weights."""
    from transformers.utils import logging

    logging.disable_progress_bar()
