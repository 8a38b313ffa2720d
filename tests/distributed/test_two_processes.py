"""One process against two (gloo): the objective's global sums, and whole runs through the example."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from dinov2_hf.objectives.terms import SoftmaxCentering, sinkhorn_knopp


def share_of_rank(tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """An uneven split: 5 rows and the rest."""
    return tensor[:5] if rank == 0 else tensor[5:]


def worker(folder: str) -> None:
    """Runs in each of two processes: its share of what the test compares with the whole."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    inputs = load_file(f"{folder}/inputs.safetensors")
    centering = SoftmaxCentering(12)
    outputs = {"sinkhorn": sinkhorn_knopp(share_of_rank(inputs["logits"], rank), 0.07).rows()}
    # one rank without a single sample
    empty = inputs["logits"] if rank == 0 else inputs["logits"][:0]
    outputs["sinkhorn_of_one_rank"] = sinkhorn_knopp(empty, 0.07).rows()
    centering(share_of_rank(inputs["logits"], rank), 0.05)
    outputs["second"] = centering(share_of_rank(inputs["logits"] * 2, rank), 0.05).rows()
    outputs["center"] = centering.center
    save_file(outputs, f"{folder}/rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, launch):
    folder = tmp_path_factory.mktemp("ranks")
    logits = torch.randn(13, 12, generator=torch.Generator().manual_seed(0)) * 0.5
    save_file({"logits": logits}, folder / "inputs.safetensors")
    launch(2, str(Path(__file__)), str(folder))
    return logits, [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]


def test_sinkhorn_is_invariant_to_world_size(ranks):
    logits, parts = ranks
    whole = torch.cat([part["sinkhorn"] for part in parts])
    torch.testing.assert_close(whole, sinkhorn_knopp(logits, 0.07).rows(), atol=1e-6, rtol=1e-5)


def test_sinkhorn_takes_a_rank_without_samples(ranks):
    logits, parts = ranks
    assert parts[1]["sinkhorn_of_one_rank"].shape == (0, 12)
    torch.testing.assert_close(parts[0]["sinkhorn_of_one_rank"], sinkhorn_knopp(logits, 0.07).rows())


def test_centering_is_invariant_to_world_size(ranks):
    logits, parts = ranks
    centering = SoftmaxCentering(12)
    centering(logits, 0.05)
    second = centering(logits * 2, 0.05).rows()
    torch.testing.assert_close(torch.cat([part["second"] for part in parts]), second, atol=1e-6, rtol=1e-5)
    for part in parts:
        torch.testing.assert_close(part["center"], centering.center, atol=1e-6, rtol=1e-5)


@pytest.fixture
def runs(server, tiny_overrides, image_folder, tmp_path):
    """The example on one process with 8 images and on two with 4, without terms that look at one rank's batch alone."""
    overrides = [
        *tiny_overrides,
        "koleo.loss_weight=0",
        "ibot.loss_weight=0",
        "model.drop_path_rate=0",
        f"knn.reference.path={image_folder}",
        f"knn.query.path={image_folder}",
        "knn.query.split=train",
        "knn.resize_size=32",
        "knn.crop_size=32",
        "knn.batch_size=5",
        "knn.k=3",
        "knn.student=true",
    ]
    folders = []
    for processes in (1, 2):
        folder = tmp_path / f"{processes}"
        batch = f"train.batch_size={8 // processes}"
        arguments = [*overrides, batch, f"train.output_dir={folder}"]
        server.launch(processes, arguments, example="pretrain").finish_well()
        folders.append(folder)
    return overrides, folders


def test_two_processes_train_the_model_of_one(server, runs):
    overrides, folders = runs
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == [0, 2, 4, 6, 6]
    for one, two in zip(*lines, strict=True):
        for name in (
            *("loss", "grad_norm/backbone", "grad_norm/dino_head", "target_kl/dino"),
            *("knn_accuracy", "knn_accuracy/student"),
        ):
            assert (name in one) == (("loss" in one) != name.startswith("knn_accuracy"))
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)
    one, two = (load_file(folder / "export" / "model.safetensors") for folder in folders)
    for name, value in one.items():
        if not name.endswith("key.bias"):  # moved by rounding noise alone, see tests/parity/test_trajectory.py
            torch.testing.assert_close(
                two[name], value, atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name} {text}"
            )

    # a checkpoint of two processes is continued by one, and the other way round
    for folder, processes in zip(folders, (2, 1)):
        (folder / "checkpoints" / "step-00000006").rename(folder / "last")
        batch = f"train.batch_size={8 // processes}"
        arguments = [*overrides, batch, f"train.output_dir={folder}"]
        launch = server.launch(processes, arguments, example="pretrain").finish_well()
        assert f"continuing from {folder}/checkpoints/step-00000004" in launch.logs()[0]
        again = load_file(folder / "export" / "model.safetensors")
        for name, value in one.items():
            if not name.endswith("key.bias"):
                torch.testing.assert_close(again[name], value, atol=2e-5, rtol=0)


if __name__ == "__main__":
    worker(sys.argv[1])
