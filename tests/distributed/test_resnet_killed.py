"""A run with batch norm over two processes that shard, killed and resumed."""

import pytest

from dinov2_hf.runs.checkpoint import read_model_tensors

from ..tiny import TINY
from .server import assert_same_tensors, newest_step

RESNET = ["model.family=resnet", "model.depths=[1,1]", "model.hidden_sizes=[16,32]", "model.embedding_size=8"]
KEYS = [*RESNET, *(key for key in TINY if not key.startswith(("model.", "ibot."))), "ibot.loss_weight=0"]


@pytest.mark.slow
def test_killed_run_over_two_processes_ends_in_the_tensors_of_the_uninterrupted_one(
    server, fsdp2, image_folder, tmp_path
):
    """Running statistics included, which are the same on both."""
    final = []
    for name, kill in (("whole", False), ("killed", True)):
        folder = tmp_path / name
        overrides = [*KEYS, f"data.train.path={image_folder}", f"train.output_dir={folder}", "train.epochs=5"]
        launch = server.launch(2, overrides, fsdp2)
        if kill:
            launch.wait_until(lambda folder=folder: newest_step(folder) >= 4, "update 4")
            launch.kill()
            assert 4 <= newest_step(folder) < 10
            launch = server.launch(2, overrides, fsdp2)
        launch.finish_well()
        final.append(read_model_tensors(folder / "checkpoints" / "step-00000010"))
    assert any(name.endswith("running_var") for name in final[0])
    assert_same_tensors(*final)
