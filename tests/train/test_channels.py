"""Images of other channels than red, green and blue: from files of numbers to a model that stock transformers loads."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from dinov2_hf.data import EvalTransform
from dinov2_hf.runs import RunFacts
from dinov2_hf.train import Trainer, build_accelerator
from dinov2_hf.weights import export_folder


def write_arrays(folder, channels):
    rng = np.random.default_rng(0)
    rows = ["image"]
    for index in range(8):
        coarse = rng.integers(0, 65536, (6, 7, channels), dtype=np.uint16)
        np.save(folder / f"{index}.npy", coarse.repeat(8, axis=0).repeat(8, axis=1))
        rows.append(f"{index}.npy")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def write_grey(folder, channels):
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 65536, (48, 56), dtype=np.uint16)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("channels, write", [(5, write_arrays), (1, write_grey)])
def test_run_on_other_channels_learns_and_exports(channels, write, tiny_config, tmp_path, caplog):
    (tmp_path / "images").mkdir()
    path = write(tmp_path / "images", channels)
    values = [f"colors.{name}={[value] * channels}" for name, value in (("mean", 0.5), ("std", 0.25))]
    config = tiny_config(f"data.train.path={path}", f"model.num_channels={channels}", *values)
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        trainer = Trainer.from_config(config, build_accelerator(config.train))
        before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
        teacher = trainer.run()[""]
    assert trainer.step == 6 and not trainer.broken.items
    moved = teacher["backbone"].embeddings.patch_embeddings.projection.weight
    assert moved.shape[1] == channels
    assert not torch.equal(moved, before["teacher.backbone.embeddings.patch_embeddings.projection.weight"])

    transform = EvalTransform(40, 32, config.colors.mean, config.colors.std)
    backbone = teacher.pop("backbone").eval()
    folder = export_folder(tmp_path / "export", backbone, teacher, transform, config, RunFacts())
    stock = AutoModel.from_pretrained(folder).eval()
    first = sorted((tmp_path / "images").glob("0.*"))[0].read_bytes()
    pixels = transform.normalize(torch.from_numpy(transform.pixels(first))[None])
    assert pixels.shape == (1, channels, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(stock(pixels).pooler_output, backbone(pixels).pooler_output, atol=1e-5, rtol=1e-5)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert len(processor["image_mean"]) == channels and processor["do_convert_rgb"] is False
