"""A tiny backbone and a few of the bundled photographs."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.data import EvalTransform
from dinov2_hf.features import FeatureExtractor

CLOTHING = Path(__file__).parents[2] / "examples" / "data" / "clothing"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="session")
def tiny_model():
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        image_size=32,
        num_register_tokens=2,
        layerscale_value=1.0,
    )
    return Dinov2Model(config).eval()


@pytest.fixture(scope="session")
def backbone(tiny_model):
    """Two blocks of width 32 with patches of 8 pixels and two registers."""
    return FeatureExtractor.of(tiny_model, EvalTransform(36, 32, MEAN, STD), "tiny")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Six of the bundled photographs as files, portrait and landscape."""
    folder = tmp_path_factory.mktemp("photographs")
    rows = pq.read_table(CLOTHING / "test.parquet", columns=["image"])["image"].to_pylist()
    for row in (8, 12, 16, 24, 40, 92):
        (folder / f"{row:03}.jpg").write_bytes(rows[row]["bytes"])
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def model_folder(tiny_model, tmp_path_factory):
    """The backbone as `transformers` loads it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    return folder
