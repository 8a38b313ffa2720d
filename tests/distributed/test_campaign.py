"""Ten random kills and stops over kinds of runs; `benchmarks/kill_runs.py` makes a hundred."""

import pytest

from .campaign import KINDS, OBJECTIVES, PARALLEL, SOURCES, Campaign

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


@pytest.mark.parametrize(("number", "kind"), enumerate(KINDS[:5]), ids=[kind.name for kind in KINDS[:5]])
def test_interrupted_run_leaves_what_the_uninterrupted_one_leaves(campaign, number, kind):
    came, differences = campaign.run(kind, number, interruptions=2)
    assert len(came) == 2 and not differences, [*map(str, came), *differences]
