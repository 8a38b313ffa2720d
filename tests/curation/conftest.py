"""A pool of photographs, noise and one made class with planted duplicates, and features that tell them apart.

The features are a random projection of 64 x 64 pixels, so that a cosine is a correlation of pixels: what is tested is
the pipeline, not how well a network sees.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from dinov2_hf.cli.curate import open_model
from dinov2_hf.config import load_config
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.curation import curate

from .made import NUM_DISCS, PLANTED, ROOT, disc, save


@pytest.fixture(scope="session")
def projection(tmp_path_factory):
    """A folder that `AutoModel` loads: one patch as large as the image, a block that adds nothing."""
    folder = tmp_path_factory.mktemp("projection")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=512,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=64,
        image_size=64,
        layerscale_value=1e-6,
        mlp_ratio=1,
    )
    model = Dinov2Model(config)
    with torch.no_grad():
        model.embeddings.position_embeddings.zero_()
        model.embeddings.patch_embeddings.projection.bias.zero_()
        model.embeddings.patch_embeddings.projection.weight.normal_(0, 0.01)
    model.save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def collections(tmp_path_factory):
    """Folders `pool` (16 photographs, 8 of noise, 12 discs, 20 planted duplicates), `seeds` (discs) and `test`."""
    folder = tmp_path_factory.mktemp("collections")
    photographs = load_dataset(
        "parquet", data_files=str(ROOT / "examples/data/clothing/train.parquet"), split="train[:17]"
    )
    photographs = [row["image"].convert("RGB") for row in photographs]
    rng = np.random.default_rng(0)
    images = {f"photo-{number:02}": image for number, image in enumerate(photographs[:16])}
    images |= {
        f"noise-{number}": Image.fromarray(rng.integers(0, 255, (96, 80, 3), dtype=np.uint8)) for number in range(8)
    }
    images |= {f"disc-{number:02}": disc(number) for number in range(NUM_DISCS)}
    images |= {f"disc-{number:02}-{kind}": plant(disc(number)) for kind, plant in PLANTED.items() for number in (3, 5)}
    for number, kind in enumerate(("resized", "recompressed", "recoloured")):
        images |= {f"photo-{number:02}-{kind}": PLANTED[kind](photographs[number]) for number in (number, number + 5)}
    for name, image in images.items():
        save(folder / "pool" / f"{name}.png", image)
    for number in range(4):  # of equal bytes
        (folder / "pool" / f"zz-copy-{number}.png").write_bytes((folder / f"pool/disc-{number:02}.png").read_bytes())
    for number in range(100, 106):
        save(folder / "seeds" / f"disc-{number}.png", disc(number))
    save(folder / "test" / "like-photo-04.jpg", photographs[4].resize([side * 4 // 5 for side in photographs[4].size]))
    save(folder / "test" / "other.jpg", photographs[16])
    return folder


@pytest.fixture
def overrides(projection, collections, tmp_path):
    """Dotted overrides of a curation that takes a few seconds."""
    return [
        f"output_dir={tmp_path / 'curated'}",
        f"pool.pile.path={collections / 'pool'}",
        f"seeds.discs.path={collections / 'seeds'}",
        "seeds.discs.method=nearest",
        f"seeds.discs.num_neighbours={NUM_DISCS}",
        f"evaluations.test.path={collections / 'test'}",
        "rows_per_shard=11",
        "hashes.max_distance=1",  # made pictures are much alike in their low frequencies
        f"embed.model={projection}",
        "embed.part=mean",
        "embed.num_workers=0",
        "embed.batch_size=16",
        "dedup.threshold=0.955",
        "dedup.relative_threshold=0.9",
        "report.samples=4",
    ]


@pytest.fixture
def config_of(overrides):
    return lambda *more: load_config(None, [*overrides, *more], CurationConfig)


@pytest.fixture
def run(config_of):
    """Runs a curation; what it told, line by line, and its folder."""

    def run_curation(*more, only=None):
        config, lines = config_of(*more), []
        curate(config, open_model, only, lines.append)
        return lines, Path(config.output_dir)

    return run_curation
