"""What a run says of images that are read under a condition."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.runs import read_metrics

from .running import train


@pytest.fixture
def folder(image_folder, tmp_path):
    """Photographs, one without its last bytes, and pictures of 12 bits in 16."""
    good = sorted(image_folder.rglob("*.jpg"))
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        shutil.copy(good[index], folder / f"{index}.jpg")
    (folder / "short.jpg").write_bytes(good[6].read_bytes()[:-2])
    ramp = np.linspace(0, 4095, 48 * 48).reshape(48, 48).astype(np.uint16)
    for name in ("deep", "deeper"):
        Image.fromarray(ramp).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("switch", [False, True])
def test_truncated_jpegs_are_broken_or_read_and_counted_as_what_they_are(switch, folder, tiny_config, caplog):
    config = tiny_config(f"data.train.path={folder}", f"data.truncated_jpegs={switch}", "train.epochs=4")
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        train(config)
    output = Path(config.train.output_dir)
    last = read_metrics(output)[-1]
    assert (last["broken_images"], last.get("truncated_images")) == ((0.0, 1.0) if switch else (1.0, None))
    (line,) = (output / "broken.txt").read_text().splitlines()
    kind, name, reason = line.split("\t")
    assert (kind, Path(name).name) == ("truncated" if switch else "image", "short.jpg")
    messages = [record.getMessage() for record in caplog.records]
    assert sum(message.startswith("truncated image: ") for message in messages) == switch
    assert sum("nearly black; if the images have 12 bits, set data.bits=12" in message for message in messages) == 1


def test_bits_of_the_images_are_not_said_where_they_are_set(folder, tiny_config, caplog):
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        train(tiny_config(f"data.train.path={folder}", "data.bits=12"))
    assert not any("nearly black" in record.getMessage() for record in caplog.records)
