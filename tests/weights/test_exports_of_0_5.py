"""Exports that dinov2_hf 0.5 wrote load: as weights, for features, with stock transformers."""

import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from dinov2_hf.features import open_backbone
from dinov2_hf.weights import inspect_path, open_weights

DATA = Path(__file__).parent / "data" / "exports_0_5.tar.xz"
EXPORTS = {  # number of registers, heads
    "registers": (2, ["dino_head", "ibot_head"]),
    "plain": (0, ["dino_head", "ibot_head"]),
    "prototypes": (0, ["dino_head", "ibot_head"]),
    "features": (0, []),
    "converted": (2, []),
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    with tarfile.open(DATA) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", EXPORTS)
@torch.no_grad()
def test_export_of_0_5_loads_with_its_heads_and_gives_the_features_of_the_stock_class(exports, name):
    path, (registers, heads) = exports / name, EXPORTS[name]
    weights = open_weights(str(path))
    saved = load_file(path / "model.safetensors")
    assert weights.backbone().keys() == saved.keys()
    assert [key for key, value in weights.backbone().items() if not torch.equal(value, saved[key])] == []
    assert weights.config.num_register_tokens == registers and list(weights.heads()) == heads
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    backbone = open_backbone(str(path))
    stock = AutoModel.from_pretrained(path)(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone.features(pixels, 1)[0].cls, stock, atol=1e-5, rtol=0)
    assert "folder that transformers loads" in inspect_path(str(path))
