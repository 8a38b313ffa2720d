"""Ten random kills and stops over kinds of runs; `benchmarks/kill_runs.py` makes a hundred."""

import runpy
import signal
from types import SimpleNamespace

import pytest

from .campaign import KINDS, OBJECTIVES, PARALLEL, SOURCES, Campaign, Interruption
from .server import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

SEED = 0


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    with Campaign(tmp_path_factory.mktemp("campaign"), SEED) as campaign:
        yield campaign


def test_first_kinds_cover_every_source_number_of_workers_way_of_parallel_training_and_objective():
    kinds = KINDS[:5]
    assert {kind.source for kind in kinds} == set(SOURCES)
    assert {kind.workers for kind in kinds} == {0, 1, 2}
    assert {kind.parallel for kind in kinds} == set(PARALLEL)
    assert {kind.objective for kind in kinds} == set(OBJECTIVES)
    assert len(set(KINDS)) == len(KINDS)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        pytest.param(number, kind, id=kind.name, marks=pytest.mark.slow if number else ())
        for number, kind in enumerate(KINDS[:5])
    ],
)
def test_interrupted_run_leaves_what_the_uninterrupted_one_leaves(campaign, number, kind):
    came, differences = campaign.run(kind, number, interruptions=2)
    assert len(came) == 2 and not differences, [*map(str, came), *differences]


def test_script_interrupts_runs_until_there_were_enough_and_names_those_that_differ(capsys):
    """With a campaign that makes no runs: of the third the metrics differ, the fourth fails."""

    def run(kind, number, interruptions):
        if number == 8:
            raise OSError("disk full")
        planned = [Interruption(signal.SIGKILL, "push", 2, 0.1, 0)] * interruptions
        return planned, ["metrics.jsonl, update 4: ['loss']"] * (number == 7)

    script = runpy.run_path(str(ROOT / "benchmarks" / "kill_runs.py"))
    assert script["interrupt_runs"](SimpleNamespace(run=run), kills=20, first=5) == [7, 8]
    printed = capsys.readouterr().out
    assert "20 interruptions of 5 runs" in printed and "runs that differ: 7, 8" in printed
    assert "| SIGKILL, push | 20 |" in printed and f"| {KINDS[7].name} | 5 |" in printed
    assert "update 4: ['loss']" in printed and "disk full" in printed
