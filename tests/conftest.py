"""A tiny run on a few generated photographs."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.config import load_config

from .hub.fixtures import hub, hub_login, hub_process  # noqa: F401 - fixtures for every folder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """24 photographs of 40 x 48 pixels in a folder for each of two classes."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(24):
        name = ("stripes", "blobs")[index % 2]
        (folder / name).mkdir(exist_ok=True)
        coarse = rng.integers(0, 255, (5, 6, 3) if name == "blobs" else (10, 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
        image.save(folder / name / f"{index:02}.jpg", quality=90)
    return folder


@pytest.fixture
def tiny_overrides(image_folder, tmp_path):
    """Dotted overrides of a run of six updates that takes a second or two."""
    return [
        "model.preset=tiny",
        "model.hidden_size=32",
        "model.num_hidden_layers=2",
        "model.num_attention_heads=2",
        "model.patch_size=8",
        "model.num_register_tokens=2",
        "model.drop_path_rate=0.3",
        "model.layerscale_value=0.1",
        "crops.global_size=32",
        "crops.local_size=16",
        "crops.num_local=2",
        "dino.num_prototypes=24",
        "dino.hidden_dim=16",
        "dino.bottleneck_dim=8",
        "ibot.num_prototypes=20",
        "ibot.hidden_dim=16",
        "ibot.bottleneck_dim=8",
        "ibot.separate_head=true",
        "optim.warmup_epochs=1",
        "optim.freeze_last_layer_epochs=0.5",
        "optim.base_lr=0.02",
        "teacher.warmup_temp_epochs=1",
        f"data.train.path={image_folder}",
        "data.num_workers=0",
        "train.batch_size=4",
        "train.epochs=3",
        "train.epoch_length=2",
        "train.log_every=2",
        "train.checkpoint_epochs=1",
        "train.precision=fp32",
        f"train.output_dir={tmp_path / 'run'}",
    ]


@pytest.fixture
def tiny_config(tiny_overrides):
    """Builds the tiny run's configuration with further overrides."""
    return lambda *overrides: load_config(None, [*tiny_overrides, *overrides])
