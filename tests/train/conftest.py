"""What every run inside the tests' own process needs."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its settings for the whole process; the next run may want others."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tensors are so small that threads would only wait for each other, and for long where the machine is busy."""
    monkeypatch.setattr("dinov2_hf.train.accelerator._available_cores", lambda: 1)
