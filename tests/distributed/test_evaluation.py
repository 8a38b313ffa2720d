"""Protocols on labelled images: two processes against one, with a share that does not divide and a broken image."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict

FEW = ["num_workers=0", "precision=fp32", "batch_size=3"]
PROTOCOLS = {
    "knn": ["k=[1,5]", "per_class=[3]", "tries=2"],
    "linear": ["learning_rates=[0.01,0.1]", "blocks=[1,2]", "iterations=20", "global_batch=8"],
    "linear_augmented": ["learning_rates=[0.1]", "blocks=[1]", "iterations=6", "global_batch=8", "augment=true"],
    "logistic": ["c=[0.1,1.0]"],
    "finetune": ["epochs=2", "warmup_epochs=1", "global_batch=8", "drop_path_rate=0"],
    "robustness": ["corruptions=[gaussian_noise,contrast]", "severities=[1,5]"],
    "retrieval": ["k=[1,5]"],
    "copy_detection": ["train.path=null", "copies=[flip,jpeg]"],
    "propagation": ["resize_size=192", "radius=3"],
    "video": ["num_frames=4", "learning_rates=[0.1]", "iterations=10", "global_batch=8"],
    "segmentation": [
        "resize_size=64",
        "crop_size=64",
        "stride=40",
        "iterations=4",
        "warmup_iterations=1",
        "global_batch=5",
    ],
    "depth": [
        "crop=[64,64]",
        "rotation=0",
        "iterations=4",
        "warmup_iterations=1",
        "global_batch=5",
        "head=linear",
    ],
}
DATA = {"propagation": "videos", "video": "clips", "segmentation": "composed", "depth": "composed"}


def commands(folder: Path, results: Path) -> list[list[str]]:
    return [
        ["evaluate", name.removesuffix("_augmented"), "--model", str(folder / "model"), *FEW, *keys]
        + ["--data", str(folder / DATA.get(name, "images")), "test.split=train"]
        + ["--output", str(results / name), "--cache", str(results / "cache")]
        for name, keys in PROTOCOLS.items()
    ]


def worker(folder: Path, results: Path) -> None:
    from accelerate import Accelerator

    from dinov2_hf.cli import main

    def wait_for_others(module, inputs) -> None:
        """At a patch embedding, as a sharded network does it: every process takes part in every forward."""
        if torch.distributed.is_initialized() and isinstance(module, torch.nn.Conv2d) and module.stride == (8, 8):
            torch.distributed.all_reduce(torch.ones(1))

    torch.nn.modules.module.register_module_forward_pre_hook(wait_for_others)
    end_training = Accelerator.end_training
    Accelerator.end_training = lambda self: None  # the processes serve the next command too
    for command in commands(folder, results):
        main(command)
    end_training(Accelerator())


def figures(results: Path) -> dict[str, dict[str, tuple]]:
    found = {}
    for name in PROTOCOLS:
        report = json.loads((results / name / "results.json").read_text())
        found[name] = {item["metric"]: (item["value"], *(item["interval"] or ())) for item in report["results"]}
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory, image_folder, launch):
    """Figures of one process and of two, by the name of the protocol."""
    from dinov2_hf.backbones import Dinov2Config, Dinov2Model
    from dinov2_hf.data import EvalTransform, preprocessor_config

    from ..evaluation.composed import composed
    from ..evaluation.moving import as_dataset, moving_videos

    folder = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(image_folder, folder / "images")
    (folder / "images" / "blobs" / "broken.jpg").write_text("no image")
    DatasetDict(train=composed(7)).save_to_disk(folder / "composed")
    (folder / "videos").mkdir()
    as_dataset(moving_videos()).to_parquet(folder / "videos" / "train.parquet")  # shares of processes are unequal
    for number, photograph in enumerate(sorted(image_folder.rglob("*.jpg"))):  # clips of a frame and its neighbour
        clip = folder / "clips" / photograph.parent.name / f"{number // 2:02}"
        clip.mkdir(parents=True, exist_ok=True)
        shutil.copy(photograph, clip)
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32, layerscale_value=1.0
    )
    Dinov2Model(config).eval().save_pretrained(folder / "model")
    preprocessor = preprocessor_config(EvalTransform(36, 32, [0.5] * 3, [0.25] * 3))
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    found = []
    for processes in (1, 2):
        results = folder / f"results-{processes}"
        launch(processes, str(Path(__file__)), str(folder), str(results))
        found.append(figures(results))
    return found


@pytest.mark.parametrize("name", PROTOCOLS)
def test_two_processes_give_the_figures_of_one(both, name):
    one, two = (found[name] for found in both)
    assert one.keys() == two.keys() and one
    for metric, values in one.items():
        assert two[metric] == pytest.approx(values, abs=0 if name == "propagation" else 1e-3), metric


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]))
