"""What a reader of the pages and the examples has: a small labelled set, and a run on it."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from datasets import Dataset

from dinov2_hf import open_run, pretrain

ROOT = Path(__file__).parents[1]
SMALL = """model.hidden_size=32 model.num_attention_heads=2 model.num_hidden_layers=2 model.num_register_tokens=2
dino.num_prototypes=24 dino.hidden_dim=16 dino.bottleneck_dim=8 data.num_workers=0 optim.warmup_epochs=0
train.batch_size=4 train.epochs=1 train.epoch_length=2 train.log_every=1 train.precision=fp32""".split()
"""Keys that shorten the recipe `quickstart` to two updates of a second."""


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """The first bundled photographs as parquet: 40 in `train`, 12 in `validation`."""
    folder = tmp_path_factory.mktemp("small")
    for split, count in (("train", 40), ("validation", 12)):
        rows = Dataset.from_parquet(str(ROOT / f"examples/data/clothing/{split}.parquet"))
        rows.select(range(count)).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def small_run(small_set, tmp_path_factory):
    """A run of two updates on it."""
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have left it
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    pretrain(small_set, folder, config="quickstart", keys=[*SMALL, "knn.reference.path=null"])
    return open_run(folder)
