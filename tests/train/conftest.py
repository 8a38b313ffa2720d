"""What every run inside the tests' own process needs."""

import pytest
from accelerate.state import AcceleratorState

from .running import train


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its settings for the whole process; the next run may want others."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tensors are so small that threads would only wait for each other, and for long where the machine is busy."""
    monkeypatch.setattr("dinov2_hf.train.accelerator._available_cores", lambda: 1)


@pytest.fixture(scope="session")
def finished(tiny_config_in, tmp_path_factory):
    """Folder of a run of six updates with its checkpoints after 2, 4 and 6. To be read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinov2_hf.train.accelerator._available_cores", lambda: 1)
        train(tiny_config_in(folder, "train.keep_checkpoints=3"))
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder
