"""Against the recorded values of the published schedules, three steps past the end included."""

import json
from pathlib import Path

import pytest

from dinov2_hf.train.schedules import Schedule

GOLDEN = json.loads((Path(__file__).parent / "data" / "schedules.json").read_text())
ARGUMENTS = {
    "base_value": "base_value",
    "final_value": "final_value",
    "total_iters": "total_steps",
    "warmup_iters": "warmup_steps",
    "start_warmup_value": "warmup_value",
    "frozen_iters": "frozen_steps",
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_schedule_equals_the_published_code(name):
    schedule = Schedule(**{ARGUMENTS[key]: value for key, value in GOLDEN[name]["args"].items()})
    values = [schedule[step] for step in range(len(GOLDEN[name]["values"]))]
    assert values == pytest.approx(GOLDEN[name]["values"], rel=1e-12, abs=1e-15)
