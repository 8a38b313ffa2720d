"""Workers whose batches do not fit into shared memory are refused before the run, with what to do."""

import pytest

from dinov2_hf.config import DINOv2RunConfig
from dinov2_hf.data import TrainingBatches, batch_bytes, check_shared_memory, open_training_source
from dinov2_hf.train import Trainer, build_accelerator

DOCKER = 64 * 2**20
"""Shared memory of a container that was started without an option."""


@pytest.fixture
def free(monkeypatch):
    """Sets the shared memory that is free."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return lambda count: monkeypatch.setattr("dinov2_hf.data.shared_memory.free_bytes", lambda: count)


@pytest.mark.parametrize("channels", [[], ["model.num_channels=1", "colors.mean=[0.5]", "colors.std=[0.5]"]])
def test_the_estimate_is_the_size_of_the_crops_of_a_batch(tiny_config, channels):
    config = tiny_config(*channels)
    batch = TrainingBatches(open_training_source(config.data, 0), config, 0, 1).batch(0)
    assert batch_bytes(config) == batch.global_crops.nbytes + batch.local_crops.nbytes


def test_eight_workers_of_the_default_batch_need_half_a_gigabyte_and_docker_gives_an_eighth(free):
    config = DINOv2RunConfig()
    assert 0.5e9 < 8 * 2 * batch_bytes(config) < 0.6e9
    free(DOCKER)
    with pytest.raises(ValueError) as refused:
        check_shared_memory(batch_bytes(config), 8, 1000, "data.num_workers")
    message = str(refused.value)
    assert message.startswith("data.num_workers=8 needs 0.54 GB of shared memory")
    assert "/dev/shm has 0.07 GB free" in message and "--shm-size=1g" in message and "data.num_workers=0" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("needed", "num_workers", "num_batches", "processes"),
    [(4, 2, 100, 1), (3, 2, 3, 1), (8, 2, 100, 2), (0, 0, 100, 1)],
    ids=["two batches a worker", "no more than there are", "of every process here", "no workers"],
)
def test_what_just_fits_passes_and_a_byte_less_is_refused(
    needed, num_workers, num_batches, processes, free, monkeypatch
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    free(needed * 1000)
    check_shared_memory(1000, num_workers, num_batches, "num_workers")
    if needed:
        free(needed * 1000 - 1)
        with pytest.raises(ValueError, match=f"num_workers={num_workers} needs"):
            check_shared_memory(1000, num_workers, num_batches, "num_workers")


def test_a_run_that_does_not_fit_is_refused_before_it_writes_anything(tiny_config, free, tmp_path):
    config = tiny_config("data.num_workers=2")
    free(batch_bytes(config))
    with pytest.raises(ValueError, match="data.num_workers=2 needs"):
        Trainer.from_config(config, build_accelerator(config.train))
    assert not (tmp_path / "run").exists()
