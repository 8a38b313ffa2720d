"""What every command in the tests' own process needs."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """A command begins in a fresh process, and other tests leave accelerate's settings behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
