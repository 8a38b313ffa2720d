"""No command touches a file of the user's own: refused with one line and status 2, before a model is read."""

import argparse
import hashlib
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.cli import build_program, main
from dinov2_hf.cli.train import train


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with `photos`, where each command would find its images, a model that is none, and notes."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("photos/class")
    os.makedirs("model")
    os.makedirs("full")
    for number in range(4):
        Image.fromarray(np.full((40, 40, 3), 50 * number, np.uint8)).save(f"photos/class/{number}.jpg")
    shutil.copy("photos/class/0.jpg", "own.jpg")
    shutil.copy("photos/class/0.jpg", "pca.png")  # a photograph with the name of a picture
    for name in ("model/config.json", "model/model.safetensors", "full/notes.txt", "maps.npy", "head.safetensors"):
        with open(name, "w") as file:
            file.write("{}")
    with open("list.txt", "w") as file:
        file.write("photos/class/0.jpg\nown.jpg\n")
    with open("table.csv", "w") as file:
        file.write("image\nown.jpg\n")
    with open("run.yaml", "w") as file:
        file.write("data: {train: {path: photos}}\n")
    with open("evaluation.yaml", "w") as file:
        file.write("train: {path: photos}\ntest: {path: photos}\ncache_dir: photos/features\n")
    os.makedirs("linked")
    os.symlink("../list.txt", "linked/README.md")
    os.makedirs("tuned/model")
    shutil.copy("list.txt", "tuned/finetune.pt")
    shutil.copy("list.txt", "tuned/model/notes.txt")
    return tmp_path


def state(folder):
    """Every file below a folder: its bytes, and when it was written."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pretrain(*arguments, objective="dinov2"):
    sys.argv = ["pretrain.py", *arguments]
    train("Trains.", objective)


def distill(*arguments):
    pretrain(*arguments, objective="distill_prototypes")


TRAIN = "data.train.path=photos"
CURATE = ["curate", "select=all", "embed.model=model", "pool.w.path=photos"]
DRAW = ["--model", "model", "--images"]
KNN = ["evaluate", "knn", "--model", "model", "--data"]

CASES = {
    "run in the pool": (pretrain, [TRAIN, "train.output_dir=photos/run"]),
    "run as the pool": (pretrain, [TRAIN, "train.output_dir=photos"]),
    "run around the pool": (pretrain, [TRAIN, "train.output_dir=."]),
    "run in a mixture": (pretrain, ["data.train.path=x", "data.mix.w.path=photos", "train.output_dir=photos/run"]),
    "run by a pattern": (pretrain, ["data.train.path=photos/**/*.jpg", "train.output_dir=photos/run"]),
    "run in the neighbours": (
        pretrain,
        ["data.train.path=x", "knn.reference.path=photos", "knn.query.path=y", "train.output_dir=photos/run"],
    ),
    "run in the set of an evaluation": (
        pretrain,
        ["data.train.path=x", "evaluations.a.config=evaluation.yaml", "train.output_dir=photos/run"],
    ),
    "features of a run's evaluation": (pretrain, ["data.train.path=x", "evaluations.a.config=evaluation.yaml"]),
    "run over its start": (pretrain, [TRAIN, "init.path=model", "train.output_dir=model"]),
    "run over other files": (pretrain, [TRAIN, "train.output_dir=full"]),
    "run over a file": (pretrain, [TRAIN, "train.output_dir=own.jpg"]),
    "run by a file of the user": (pretrain, ["--config", "run.yaml", "train.output_dir=photos/class/run"]),
    "distillation in the pool": (distill, [TRAIN, "distill.teacher=model", "train.output_dir=photos/run"]),
    "distillation over its teacher": (distill, [TRAIN, "distill.teacher=model", "train.output_dir=model"]),
    "curation as the pool": (main, [*CURATE, "output_dir=photos"]),
    "curation in the pool": (main, [*CURATE, "output_dir=photos/curated"]),
    "curation around the pool": (main, [*CURATE, "output_dir=."]),
    "curation in a seed set": (
        main,
        ["curate", "embed.model=model", "pool.w.path=x", "seeds.s.path=photos", "output_dir=photos/curated"],
    ),
    "curation in an evaluation": (
        main,
        [*CURATE[:3], "pool.w.path=x", "evaluations.e.path=photos", "output_dir=photos/c"],
    ),
    "curation over its model": (main, [*CURATE, "output_dir=model"]),
    "curation over other files": (main, [*CURATE, "output_dir=full"]),
    "sheet over a photograph": (main, ["data", "show", TRAIN, "--output", "photos/class/1.jpg"]),
    "sheet in the pool": (main, ["data", "show", TRAIN, "--output", "photos/batch.png"]),
    "sheet over a table": (main, ["data", "show", "data.train.path=table.csv", "--output", "table.csv"]),
    "sheet over an image of a table": (main, ["data", "show", "data.train.path=table.csv", "--output", "own.jpg"]),
    "sheet over its configuration": (main, ["data", "show", "--config", "run.yaml", "--output", "run.yaml"]),
    "results in the data": (main, [*KNN, "photos", "--output", "photos/knn"]),
    "results in the test set": (main, [*KNN, "x", "--test", "photos", "--output", "photos"]),
    "results in another test set": (
        main,
        ["evaluate", "robustness", *KNN[2:], "x", "shifted.s.path=photos", "--output", "photos/class/r"],
    ),
    "results over other files": (main, [*KNN, "photos", "--output", "full"]),
    "results over the model": (main, [*KNN, "photos", "--output", "model"]),
    "results over a file": (main, [*KNN, "photos", "--output", "own.jpg"]),
    "features in the data": (main, [*KNN, "photos", "--cache", "photos/features"]),
    "features over a file": (main, [*KNN, "photos", "--cache", "own.jpg"]),
    "picture over its photograph": (main, ["visualize", "pca", *DRAW, "own.jpg", "--output", "own.jpg"]),
    "picture over another photograph": (main, ["visualize", "pca", *DRAW, "own.jpg"]),
    "picture of a folder in it": (main, ["visualize", "attention", *DRAW, "photos", "--output", "photos/a.png"]),
    "video among its frames": (main, ["visualize", "video", *DRAW, "photos/class", "--output", "photos/class/v.gif"]),
    "video over a photograph": (main, ["visualize", "video", *DRAW, "photos/class", "--output", "own.jpg"]),
    "picture of a list": (main, ["visualize", "similarity", *DRAW, "list.txt", "--output", "own.jpg"]),
    "picture over one of a pattern": (
        main,
        ["visualize", "matches", *DRAW, "photos/*/*.jpg", "--output", "photos/class/2.jpg"],
    ),
    "picture in a collection": (
        main,
        ["visualize", "neighbours", *DRAW, "own.jpg", "--collection", "photos", "--output", "photos/class/n.png"],
    ),
    "features in a collection": (
        main,
        ["visualize", "neighbours", *DRAW, "own.jpg", "--collection", "photos", "--cache", "photos/features"],
    ),
    "picture over a map": (
        main,
        ["visualize", "overlay", "--images", "own.jpg", "--maps", "maps.npy", "--output", "maps.npy"],
    ),
    "picture over a head": (
        main,
        ["visualize", "overlay", *DRAW, "own.jpg", "--head", "head.safetensors", "--output", "head.safetensors"],
    ),
    "picture over the model": (main, ["visualize", "pca", *DRAW, "own.jpg", "--output", "model/model.safetensors"]),
    "picture below a file": (main, ["visualize", "pca", *DRAW, "own.jpg", "--output", "own.jpg/pca.png"]),
    "export over the model": (main, ["export", "model", "model"]),
    "export over a file of the model": (main, ["export", "model", "model/model.safetensors", "--format", "timm"]),
    "export over another folder": (main, ["export", "model", "full"]),
    "classifier over other files": (main, ["evaluate", "finetune", *KNN[2:], "photos", "--output", "tuned"]),
    "metrics in the file that a card links to": (main, [*KNN, "photos", "--output", "new", "--card", "linked"]),
    "metrics in a card that is not there": (
        main,
        [*KNN, "photos", "--output", "new", "--card", "full"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_no_command_changes_what_it_did_not_make(case, folder, capsys, monkeypatch):
    monkeypatch.setattr("dinov2_hf.features.open.open_weights", lambda *_, **__: pytest.fail("a model was read before"))
    command, arguments = CASES[case]
    before = state(folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit) as ended:
        command(*arguments) if command is not main else main(arguments)
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in line and "; " in line
    assert state(folder) == before and not list(folder.glob("photos/run*")) and not os.path.exists("new")


# ----------------------------------------------------------------------------------------- every option that is written

WRITTEN = {
    "pretrain --output": ["pretrain", "photos"],
    "distill --output": ["distill", "photos", "--model", "model"],
    "data show --output": ["data", "show", "photos"],
    "curate --output": ["curate", "photos", "--model", "model", "select=all"],
    "evaluate --output": [*KNN, "photos"],
    "evaluate --cache": [*KNN, "photos"],
    "evaluate --card": [*KNN, "photos", "--output", "new"],
    "visualize pca --output": ["visualize", "pca", "own.jpg", "--model", "model"],
    "visualize attention --output": ["visualize", "attention", "own.jpg", "--model", "model"],
    "visualize heads --output": ["visualize", "heads", "own.jpg", "--model", "model"],
    "visualize video --output": ["visualize", "video", "photos/class", "--model", "model"],
    "visualize matches --output": ["visualize", "matches", "own.jpg", "own.jpg", "--model", "model"],
    "visualize neighbours --output": [
        "visualize",
        "neighbours",
        "own.jpg",
        "--collection",
        "photos",
        "--model",
        "model",
    ],
    "visualize neighbours --cache": [
        *["visualize", "neighbours", "own.jpg", "--collection", "photos", "--model", "model", "--output", "new.png"]
    ],
    "visualize similarity --output": ["visualize", "similarity", "own.jpg", "--model", "model"],
    "visualize overlay --output": ["visualize", "overlay", "own.jpg", "--maps", "maps.npy"],
    "export --output": ["export", "model", "--format", "timm"],
}
"""A command line without the option, for every option that names what a command writes."""
FOLDERS = {"pretrain", "distill", "curate", "evaluate", "--cache"}
READ = {
    *("--model", "--data", "--test", "--collection", "--config", "--import", "--maps", "--head", "--classes", "--repo"),
    *("--resume",),
}
PLAIN = {
    *("--allow", "--collection-split", "--count", "--device", "--for", "--format", "--fps", "--from", "--heads"),
    *("--host", "--ignored", "--image-size", "--images", "--keys", "--kind", "--mass", "--message", "--network"),
    *("--num-attention-heads", "--objective"),
    *("--pairs", "--point", "--port", "--revision", "--spacing", "--split", "--stage", "--student", "--tag", "--to"),
    *("--unit", "--workers", "-k"),
}
"""Options that name no file that is written. An option that is in no list here has to be added to one."""


def options_of(parser, name=""):
    """Every option of a command line that takes a value, with the command before it."""
    for command in parser.subcommands:
        for word, each in command.choices.items():
            yield from options_of(each, f"{name} {word}".strip())
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and not parser.subcommands and action.help != argparse.SUPPRESS:
            yield name, action.option_strings[0]


def test_every_option_that_is_written_is_in_the_list():
    found = {f"{name} {option}" for name, option in options_of(build_program()) if option not in READ | PLAIN}
    assert found == set(WRITTEN)


@pytest.mark.parametrize("kind", ["below a file", "of the other kind", "with too long a name", "where nothing can be"])
@pytest.mark.parametrize("option", WRITTEN)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(option, kind, folder, capsys, monkeypatch):
    monkeypatch.setattr("dinov2_hf.features.open.open_weights", lambda *_, **__: pytest.fail("a model was read before"))
    monkeypatch.setattr(
        "dinov2_hf.weights.export.open_weights", lambda *_, **__: pytest.fail("a model was read before")
    )
    is_folder = bool(FOLDERS & set(option.split()))
    suffix = "" if is_folder else ".safetensors" if option.startswith("export") else ".png"
    paths = {
        "below a file": f"own.jpg/deep/new{suffix}",
        "of the other kind": "own.jpg" if is_folder else f"kinds/new{suffix}",
        "with too long a name": f"deep/{'n' * 300}/new{suffix}",
        "where nothing can be": f"/proc/new{suffix}",  # even by root
    }
    os.makedirs(f"kinds/new{suffix}")
    before = state(folder)
    with pytest.raises(SystemExit) as ended:
        main([*WRITTEN[option], option.split()[-1], paths[kind]])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "error: " in said and "; " in said and paths[kind] in said
    assert state(folder) == before and not os.path.exists("new") and not os.path.exists("deep")


def test_an_own_picture_is_drawn_again_and_nothing_else_is_replaced(folder, capsys):
    show = ["data", "show", TRAIN, "--images", "2", "crops.global_size=28", "crops.num_local=0", "model.patch_size=14"]
    main(show)
    first = (folder / "batch.png").read_bytes()
    main([*show, "train.seed=1"])
    assert (folder / "batch.png").read_bytes() != first
    with Image.open("batch.png") as picture:
        assert picture.text["Software"] == "dinov2_hf"
    shutil.copy("own.jpg", "batch.png")
    with pytest.raises(SystemExit):
        main(show)
    assert (folder / "batch.png").read_bytes() == (folder / "own.jpg").read_bytes()
