"""How a command ends that cannot be done: one line, one status, however many processes there are."""

import json
import os
import subprocess
import sys

import pytest
import torch

from dinov2_hf.api.process import computing_on
from dinov2_hf.cli import build_program, main
from dinov2_hf.cli.parser import Parser

ONE = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE")


@pytest.fixture
def say(tmp_path, monkeypatch, capsys):
    """What a process of a launch by torchrun says of an error; its folder is that which torchrun gives it."""

    def run(rank, message):
        folder = tmp_path / str(rank)
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
        with pytest.raises(SystemExit) as ended:
            Parser(prog="dinov2-hf pretrain").fail(message)
        assert ended.value.code == 2
        assert json.loads((folder / "error.json").read_text())["message"]["message"] == message
        return capsys.readouterr().err

    return run


def test_processes_of_a_launch_print_an_error_once(say):
    assert say(1, "x does not exist") == "dinov2-hf: error: x does not exist\n"
    assert say(0, "x does not exist") == say(2, "process 1: x does not exist") == ""


def test_errors_that_differ_are_all_printed(say):
    assert say(0, "the disk is full") == "dinov2-hf: error: the disk is full\n"
    assert say(1, "x does not exist") == "dinov2-hf: error: x does not exist\n"


def test_an_error_of_several_lines_is_printed_on_one(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "nowhere" / "0" / "error.json"))
    with pytest.raises(SystemExit) as ended:
        build_program().fail("one\ntwo", status=1)
    assert ended.value.code == 1 and capsys.readouterr().err == "dinov2-hf: error: one two\n"


def test_output_that_is_closed_early_is_not_an_error():
    command = f"{sys.executable} -m dinov2_hf pretrain --keys | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("A pretraining run") and done.stderr == ""


# -------------------------------------------------------------------------------------------------------------- device

COMPUTES = {
    "pretrain": "pretrain IMAGES --output run",
    "distill": "distill IMAGES --model teacher --output run",
    "verify": "verify run",
    "curate": "curate IMAGES --model m --output curated select=all",
    "evaluate": "evaluate knn --model m --data IMAGES",
    "visualize": "visualize pca IMAGES --model m",
    "page": "visualize page m",
}


@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus"])
@pytest.mark.parametrize("name", COMPUTES)
def test_a_device_that_cannot_be_used_is_refused_in_one_line(name, device, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [str(image_folder) if word == "IMAGES" else word for word in COMPUTES[name].split()]
    before = {key: os.environ.get(key) for key in ONE}
    with pytest.raises(SystemExit) as ended:
        main([*words, "--device", device])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(f"dinov2-hf: error: device={device} cannot be used: ")
    assert said.count("\n") == 1 and not list(tmp_path.iterdir())
    assert {key: os.environ.get(key) for key in ONE} == before


def test_accelerate_takes_the_device_until_the_block_ends(monkeypatch):
    for key in ONE:
        monkeypatch.delenv(key, raising=False)
    with computing_on("cpu") as device:
        assert device.type == "cpu" and os.environ["ACCELERATE_USE_CPU"] == "true"
    assert not any(key in os.environ for key in ONE)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:3")
    with computing_on("cpu"):
        assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cuda:3"
    with computing_on(None):
        assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cuda:3"


def test_one_device_for_several_processes_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("dinov2_hf.api.process.usable_device", torch.device)  # which this machine may lack
    with pytest.raises(ValueError, match="device=cuda:1 is one device for several processes; use cuda"):
        with computing_on("cuda:1"):
            pass
    with computing_on("cuda"):
        assert os.environ["ACCELERATE_USE_CPU"] == "false" and "ACCELERATE_TORCH_DEVICE" not in os.environ


def test_curation_on_other_machines_refuses_a_device_of_this_one(capsys):
    words = "curate x --model m --output o select=all executor.kind=slurm executor.partition=p --device cpu"
    with pytest.raises(SystemExit):
        main(words.split())
    assert "--device cpu is for this machine and executor.kind=slurm computes on others" in capsys.readouterr().err
