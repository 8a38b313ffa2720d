"""A run trained from Python."""

import pytest
import torch
from accelerate.state import AcceleratorState

from dinov2_hf import pretrain

from ..tiny import TINY


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """What another test left of accelerate's state would be taken for the caller's."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def trained(image_folder, tmp_path_factory):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    return pretrain(image_folder, tmp_path_factory.mktemp("api") / "run", keys=TINY)
