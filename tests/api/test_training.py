"""Training from Python: what is handed in, and what comes back."""

import logging
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from transformers import AutoModel

from dinov2_hf import Run, distill, fit, load_config, open_run, pretrain
from dinov2_hf.config import dotted_keys, value_at
from dinov2_hf.data import open_training_source
from dinov2_hf.train import Callback, build_objective
from dinov2_hf.weights import open_weights

from ..tiny import TINY, TINY_FEATURES

SHORT = [*TINY, "train.epochs=1", "optim.warmup_epochs=0.5", "teacher.warmup_temp_epochs=0.5"]


def params(kinds, slow):
    return [pytest.param(kind, marks=[pytest.mark.slow] if kind in slow else []) for kind in kinds]


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def as_dataset(folder: Path) -> Dataset:
    files = files_in(folder)
    columns = {"image": [str(file) for file in files], "label": [int(file.parent.name == "blobs") for file in files]}
    return Dataset.from_dict(columns, Features({"image": Image(), "label": ClassLabel(names=["stripes", "blobs"])}))


class Pictures:
    """A sequence of pictures that are opened when they are read."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return Pillow.open(self.files[index])


KINDS = {
    "a folder": lambda folder: folder,
    "a dataset": as_dataset,
    "paths": files_in,
    "pictures": lambda folder: Pictures(files_in(folder)),
    "bytes": lambda folder: [file.read_bytes() for file in files_in(folder)],
    "a source": lambda folder: open_training_source(
        load_config(None, [*SHORT, f"data.train.path={folder}"]).data, seed=0
    ),
}


@pytest.fixture
def no_pictures(monkeypatch):
    """Half of the time of a tiny run."""
    monkeypatch.setattr("dinov2_hf.api.training.plot_metrics", lambda folder: folder)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return open_weights(str(run.folder)).network()


@pytest.fixture(scope="module")
def expected(image_folder, tmp_path_factory):
    """The weights of a run on the folder that the command line trains on."""
    folder = tmp_path_factory.mktemp("expected")
    return weights_of(pretrain(None, folder, keys=[*SHORT, f"data.train.path={image_folder}"]))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", params(KINDS, slow=("bytes", "pictures")))
def test_images_give_the_weights_of_the_folder_that_they_lie_in(kind, image_folder, tmp_path, expected):
    found = weights_of(pretrain(KINDS[kind](image_folder), tmp_path / "run", keys=SHORT))
    if kind != "pictures":  # Pillow and simplejpeg round differently
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    else:
        assert all(torch.isfinite(tensor).all() for tensor in found.values())


def discs(start: int = 0):
    rng = np.random.default_rng(0)
    for number in range(24):
        picture = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        if number >= start:
            yield picture


STREAMS = {
    "a function": lambda: discs,
    "an iterable": lambda: Again(),
    "a stream": lambda: as_stream(),
}


class Again:
    def __iter__(self):
        return discs()


def as_stream():
    def rows():
        for picture in discs():
            yield {"image": Pillow.fromarray(picture)}

    return Dataset.from_generator(rows, features=Features({"image": Image()})).to_iterable_dataset()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("kind", params(STREAMS, slow=("an iterable",)))
def test_streams_are_read_in_passes(kind, tmp_path):
    run = pretrain(STREAMS[kind](), tmp_path / "run", keys=[*SHORT, "train.batch_size=16", "data.shuffle_buffer=8"])
    table = run.metrics()  # two updates of 16 images are more than a pass over 24
    assert table.index.max() == 2 and table["loss"].notna().all()
    assert "broken_images" not in table or table["broken_images"].max() == 0


@pytest.mark.usefixtures("no_pictures")
def test_run_on_images_in_memory_continues_with_them_and_is_refused_without(image_folder, tmp_path):
    files = files_in(image_folder)
    whole = pretrain(files, tmp_path / "whole", keys=TINY)

    def interrupt(step, results):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "stopped"
    stopped = pretrain(files, folder, keys=TINY, callbacks=[Callback(epochs=0.5, act=interrupt)])
    assert stopped.stopped and not stopped.exports and stopped.metrics().index.max() < 6
    with pytest.raises(ValueError, match="memory:train stands for images that were handed in from Python"):
        pretrain(None, folder, keys=[*TINY, "data.train.path=memory:train"])
    finished = pretrain(files, folder, keys=TINY)
    assert not finished.stopped and "6 updates" in repr(finished)
    ours, theirs = weights_of(finished), weights_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_process_is_left_as_it_was(image_folder, tmp_path):
    def state():
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
            "python": random.getstate(),
            "threads": torch.get_num_threads(),
            "signal": signal.getsignal(signal.SIGTERM),
            "accelerate": (dict(PartialState._shared_state), dict(AcceleratorState._shared_state)),
            "environment": dict(os.environ),
            "matplotlib": matplotlib.get_backend(),
            "logging": [(log.level, list(log.handlers)) for log in map(logging.getLogger, ("", "dinov2_hf"))],
            "folder": os.getcwd(),
            "types": torch.get_default_dtype(),
        }

    before = state()
    knn = {"reference.path": image_folder, "query.path": image_folder, "query.split": "train", "crop_size": 32}
    pretrain(image_folder, tmp_path / "run", keys=[*SHORT, *(f"knn.{key}={value}" for key, value in knn.items())])
    after = state()
    for name in before:
        assert after[name] == before[name], name
    # and a run of another precision follows
    pretrain(image_folder, tmp_path / "other", keys=[*SHORT, "train.precision=bf16"])


def test_run_says_what_it_left(trained, image_folder):
    table = trained.metrics()
    assert list(table.index) == [2, 4, 6] and table.index.name == "step"
    assert {"loss", "loss/dino_global", "lr", "epoch"} <= set(table.columns)
    assert trained.exports == {"": trained.folder / "export"} and trained.export() == trained.folder / "export"
    assert trained.pictures == [trained.folder / "loss.png"]
    assert trained.config.train.epochs == 3
    again = open_run(str(trained.folder))
    assert again.metrics().equals(table) and not again.stopped and repr(again) == repr(trained)
    assert AutoModel.from_pretrained(trained.export()).config.hidden_size == 32
    with pytest.raises(FileNotFoundError, match="is not the folder of a run: it lacks config.yaml"):
        open_run(image_folder)


def test_run_is_exported_elsewhere_too(trained, tmp_path):
    written = trained.export(tmp_path / "model.pth", format="original")
    assert written == tmp_path / "model.pth" and "cls_token" in torch.load(written, weights_only=True)
    with pytest.raises(ValueError, match="give a path for another one"):
        trained.export(format="timm")
    student = trained.export(tmp_path / "student", network="student")
    ours, average = (open_weights(str(path)).backbone() for path in (student, trained.export()))
    assert any(not torch.equal(ours[name], average[name]) for name in average)


@pytest.mark.parametrize("given", ["mapping", "texts", "sections", "a configuration", "a file"])
def test_keys_mean_the_same_however_they_are_given(given, image_folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("dinov2_hf.api.training.Training", lambda config, *_, **__: seen.append(config) or Stop())
    expected = load_config(None, [*TINY, f"data.train.path={image_folder}", "train.output_dir=x", "optim.base_lr=1e-5"])
    pairs = [item.split("=", 1) for item in TINY]
    sections = {"optim": {"base_lr": 1e-5}, "colors": {"mean": [0.485, 0.456, 0.406]}}
    own = load_config(None, [*TINY, "data.train.path=other"])
    (tmp_path / "config.yaml").write_text("optim: {base_lr: 0.5}\nobjective: dinov2\n")
    config, keys = {
        "mapping": (None, {key: number(value) for key, value in pairs} | {"optim.base_lr": 1e-5}),
        "texts": (None, [*TINY, "optim.base_lr=1e-5"]),
        "sections": (sections, [item for item in TINY if "base_lr" not in item]),
        "a configuration": (own, ["optim.base_lr=1e-5"]),
        "a file": (tmp_path / "config.yaml", [*TINY, "optim.base_lr=1e-5"]),
    }[given]
    pretrain(image_folder, "x", config=config, keys=keys)
    (found,) = seen
    assert type(found) is type(expected)
    for key in dotted_keys(expected):
        assert value_at(found, key) == value_at(expected, key), key
    assert own.data.train.path == "other"  # what a caller hands in is not changed


class Stop:
    trainer = SimpleNamespace(stopped_by=None)

    def run(self, end):
        assert not end  # the process of the caller goes on


def number(text):
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text, text)


def test_objective_and_source_of_the_caller_are_trained(image_folder, tmp_path):
    config = load_config(None, [*SHORT, "data.train.path=memory:train", f"train.output_dir={tmp_path / 'run'}"])
    objective = build_objective(config)
    before = objective.networks[""].student["backbone"].state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    run = fit(objective, files_in(image_folder))
    after = open_weights(str(run.folder), network="student").backbone()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert run.metrics().index.max() == 2 and run.exports


@pytest.mark.usefixtures("no_pictures")
def test_teacher_is_distilled(trained, image_folder, tmp_path):
    keys = [*TINY_FEATURES, "train.epochs=1", "optim.warmup_epochs=0.5"]
    run = distill(trained.folder, image_folder, tmp_path / "run", keys=keys)
    assert run.config.distill.teacher == str(trained.folder) and run.config.objective == "distill_features"
    assert any(name.startswith("loss/cls") for name in run.metrics()) and run.exports


@pytest.mark.parametrize(
    "data, error, message",
    [
        (discs(), TypeError, "an object of the type generator, which can be read once only"),
        (iter([]), TypeError, "an object of the type list_iterator, which can be read once only"),
        (7, TypeError, "train is an object of the type int; give a path"),
        ({"a": 1}, TypeError, "train is an object of the type dict; give a path"),
        ([7] * 24, ValueError, "image .* of memory:train is an object of the type int; give a path, the bytes"),
        ([], ValueError, "memory:train has no images"),
    ],
)
def test_what_holds_no_images_is_refused_in_one_line(data, error, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        pretrain(data, tmp_path / "run", keys=SHORT)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_pictures")
def test_broken_images_in_memory_are_counted_and_named(image_folder, tmp_path):
    images = [*files_in(image_folder)[:22], None, tmp_path / "missing.jpg"]
    run = pretrain(images, tmp_path / "run", keys=[*SHORT, "train.batch_size=16", "data.max_broken_share=0.5"])
    text = (run.folder / "broken.txt").read_text()
    assert "image 22 of memory:train\tNone stands for it" in text and "missing.jpg" in text
    assert run.metrics()["broken_images"].max() > 0


@pytest.mark.usefixtures("no_pictures")
def test_folder_may_have_any_name(image_folder, tmp_path):
    folder = tmp_path / "[a]: {b} #c, 'd'"
    folder.symlink_to(image_folder)
    run = pretrain(folder, tmp_path / "null # run", keys=SHORT)
    assert run.folder == tmp_path / "null # run" and run.config.data.train.path == str(folder)
