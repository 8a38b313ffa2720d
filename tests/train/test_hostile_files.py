"""Files that would run code, or that name files elsewhere, at every way into the package: none of them does."""

import contextlib
import io
import json
import pickle
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov2_hf import Dinov2Model
from dinov2_hf.cli import main
from dinov2_hf.runs.checkpoint import find_checkpoints

from ..tiny import without_heads
from .damages import Springs, hostile_pickle, sign

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------------------- the ways in


def example(name):
    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"examples/{name}.py", *map(str, arguments)])
            runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")

    return run


def resume_path(path, overrides, tmp_path):
    example("pretrain")("--resume", newest(path), *overrides)


def resume_auto(path, overrides, tmp_path):
    example("pretrain")(*overrides, f"train.output_dir={run_of(path)}")


def init_path(path, overrides, tmp_path):
    example("pretrain")(*overrides, f"init.path={path}")


def teacher(path, overrides, tmp_path):
    example("distill")(*overrides, f"distill.teacher={path}")


def inspect(path, overrides, tmp_path):
    main(["inspect", str(path)])


def export(path, overrides, tmp_path):
    main(["export", str(path), str(tmp_path / "exported")])


def push(path, overrides, tmp_path):
    main(["push", str(path), "me/model", "--dry-run"])


def evaluate(path, overrides, tmp_path):
    main(["evaluate", "knn", "--model", str(path), "--data", images_of(overrides)])


def visualize(path, overrides, tmp_path):
    output = tmp_path / "pca.png"
    main(["visualize", "pca", "--model", str(path), "--images", images_of(overrides), "--output", str(output)])


def curate(path, overrides, tmp_path):
    output = tmp_path / "curated"
    pool = f"pool.web.path={images_of(overrides)}"
    main(["curate", pool, f"output_dir={output}", f"embed.model={path}", "select=all"])


def verify(path, overrides, tmp_path):
    main(["verify", str(run_of(path))])


def run_of(path):
    return path.parents[1] if path.parent.name == "checkpoints" else path


def newest(path):
    return path if path.parent.name == "checkpoints" else find_checkpoints(path / "checkpoints")[-1]


def images_of(overrides):
    return next(item.partition("=")[2] for item in overrides if item.startswith("data.train.path="))


def id_of(value):
    return value if isinstance(value, str) else value.__name__


MODELS = [init_path, teacher, inspect, export, evaluate, visualize, curate]
"""What reads a model out of anything."""


def outcome(way, path, overrides, tmp_path):
    """Exit status and what was printed."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            way(path, overrides, tmp_path)
            status = 0
        except SystemExit as ended:
            status = ended.code
    return status, output.getvalue(), errors.getvalue()


def assert_refused(way, path, overrides, tmp_path, expected):
    """In one line, with status 2; `inspect` shows the line as the reason."""
    status, output, errors = outcome(way, path, overrides, tmp_path)
    assert not (tmp_path / "sprung").exists(), "the file ran its code"
    if way is inspect:
        assert status == 0
        (line,) = [line for line in output.splitlines() if line.split()[0] == "why"]
    else:
        assert status == 2 and "Traceback" not in errors, errors
        line = errors.splitlines()[-1]
        assert "error: " in line
    assert expected in line


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoint(finished, tmp_path):
    """The only checkpoint but the newest of a copy of the finished run, to be made hostile."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for step in (4, 6):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    return run / "checkpoints" / "step-00000002"


def rewrite(checkpoint, name, **place):
    """Changes where the metadata says that a tensor or setting is."""
    path = checkpoint / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for index in metadata.storage_data:
        if index.fqn.startswith(name):
            metadata.storage_data[index] = replace(metadata.storage_data[index], **place)
    path.write_bytes(pickle.dumps(metadata))
    sign(checkpoint)


def plant(checkpoint, name, marker):
    """Puts a pickle that runs code in the place of a tensor or setting."""
    content = io.BytesIO()
    torch.save(Springs(marker), content)
    file = checkpoint / "__0_0.distcp"
    offset = file.stat().st_size
    file.write_bytes(file.read_bytes() + content.getvalue())
    rewrite(checkpoint, name, offset=offset, length=len(content.getvalue()))


def hostile_metadata(checkpoint, marker):
    (checkpoint / ".metadata").write_bytes(hostile_pickle(marker))
    sign(checkpoint)


def elsewhere(checkpoint, marker):
    rewrite(checkpoint, "model.", relative_path=str(shutil.copy(checkpoint / "__0_0.distcp", marker.parent / "secret")))


STATES = {
    "metadata": (hostile_metadata, ".metadata asks for posix.mkdir, which is not part of a checkpoint"),
    "place": (elsewhere, "which lies outside the folder of the checkpoint"),
    "weights": (lambda path, marker: plant(path, "model.", marker), "cannot be loaded"),  # of student and teacher
    "moments": (lambda path, marker: plant(path, "optimizer.state.", marker), "cannot be loaded"),
    "settings": (lambda path, marker: plant(path, "optimizer.param_groups.0.lr", marker), "cannot be loaded"),
}
ALL = [resume_path, resume_auto, verify, *MODELS]
READ = {
    "metadata": ALL,
    "place": ALL,
    "weights": [way for way in ALL if way is not inspect],  # which reads the shapes in the metadata
    "moments": [resume_path, resume_auto, verify],
    "settings": [resume_path, resume_auto, verify],
}
"""What reads which of them; what does not, goes on."""


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind, ways in READ.items() for way in ways], ids=id_of)
def test_checkpoint_of_a_stranger_runs_no_code(checkpoint, tiny_overrides, finished, tmp_path, way, kind):
    act, expected = STATES[kind]
    act(checkpoint, tmp_path / "sprung")
    if way is verify:
        shutil.copytree(finished / "checkpoints" / "step-00000004", checkpoint.with_name("step-00000004"))
    overrides = [*tiny_overrides, f"train.output_dir={tmp_path / 'new'}"]
    assert_refused(way, checkpoint, overrides, tmp_path, expected)


@pytest.mark.parametrize(
    ("kind", "way"), [("weights", inspect), ("moments", export), ("settings", inspect), ("settings", export)], ids=id_of
)
def test_what_a_command_does_not_read_stays_closed(checkpoint, tiny_overrides, tmp_path, way, kind):
    STATES[kind][0](checkpoint, tmp_path / "sprung")
    assert outcome(way, checkpoint, tiny_overrides, tmp_path)[0] == 0
    assert not (tmp_path / "sprung").exists()


def test_pickles_of_these_tests_would_run(tmp_path):
    with contextlib.suppress(TypeError):  # what it gives is not a checkpoint
        pickle.loads(hostile_pickle(tmp_path / "one"))
    content = io.BytesIO()
    torch.save(Springs(tmp_path / "two"), content)
    content.seek(0)
    torch.load(content, weights_only=False)
    assert (tmp_path / "one").exists() and (tmp_path / "two").exists()


@pytest.mark.parametrize("kind", STATES)
def test_checkpoint_is_not_pushed(checkpoint, tiny_overrides, tmp_path, kind):
    STATES[kind][0](checkpoint, tmp_path / "sprung")
    assert_refused(push, checkpoint, tiny_overrides, tmp_path, "is a checkpoint to continue a run from")


# ------------------------------------------------------------------------------------------------- files and folders


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "export"
    main(["export", str(finished), str(folder)])
    return folder


def pickle_file(folder, marker):
    path = folder.with_suffix(".pth")
    path.write_bytes(hostile_pickle(marker))
    return path


def zip_file(folder, marker):
    path = folder.with_suffix(".pt")
    torch.save({"teacher": Springs(marker)}, path)
    return path


def pickle_in_a_folder(folder, marker):
    (folder / "model.safetensors").unlink()
    torch.save(Springs(marker), folder / "pytorch_model.bin")
    return folder


def pickle_under_another_name(folder, marker):
    torch.save(Springs(marker), folder / "model.safetensors")
    return folder


def index(folder, name):
    """Names the weights in an index: they are there and could be read."""
    content = json.dumps({"metadata": {}, "weight_map": {"layernorm.weight": name}})
    (folder / "model.safetensors.index.json").write_text(content)
    return folder


def index_of_a_parent(folder, marker):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    return index(folder, "../secret.safetensors")


def index_of_an_absolute_path(folder, marker):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    return index(folder, str(folder.parent / "secret.safetensors"))


def index_of_a_link(folder, marker):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "part.safetensors").symlink_to(folder.parent / "secret.safetensors")
    return index(folder, "part.safetensors")


def code_of_its_own(folder, marker):
    """A model of a class that lies beside its weights."""
    (folder / "modeling.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


FILES = {
    "pickle": (pickle_file, "is damaged or holds other objects than tensors"),
    "zip": (zip_file, "is damaged or holds other objects than tensors"),
    "pickle in a folder": (pickle_in_a_folder, "model.safetensors"),
    "pickle under another name": (pickle_under_another_name, ""),
    "index of a parent": (index_of_a_parent, "which lies outside its folder"),
    "index of an absolute path": (index_of_an_absolute_path, "which lies outside its folder"),
    "index of a link": (index_of_a_link, "which lies outside its folder"),
    "code of its own": (code_of_its_own, ""),
}
SOME = ["pickle", "index of a parent", "code of its own"]


@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for kind in FILES for way in MODELS if kind in SOME or way in (init_path, teacher)],
    ids=id_of,
)
def test_model_of_a_stranger_runs_no_code_and_reads_no_file_elsewhere(
    exported, tiny_overrides, tmp_path, monkeypatch, way, kind
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers can ask whether code may run
    make, expected = FILES[kind]
    path = make(Path(shutil.copytree(exported, tmp_path / "model")), tmp_path / "sprung")
    overrides = (
        [*without_heads(tiny_overrides), "objective=distill_features", "crops.num_local=0"]
        if way is teacher
        else tiny_overrides
    )
    assert_refused(way, path, overrides, tmp_path, expected)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "code of its own"])
def test_model_of_a_stranger_is_not_pushed(exported, tiny_overrides, tmp_path, kind):
    make, _ = FILES[kind]
    folder = make(Path(shutil.copytree(exported, tmp_path / "model")), tmp_path / "sprung")
    assert_refused(push, folder, tiny_overrides, tmp_path, "")


@pytest.mark.parametrize("make", [index_of_a_parent, index_of_an_absolute_path, index_of_a_link])
def test_classes_read_no_file_elsewhere(exported, tmp_path, make):
    folder = make(Path(shutil.copytree(exported, tmp_path / "model")), tmp_path / "sprung")
    with pytest.raises(ValueError, match="model.safetensors.index.json names '.*', which lies outside its folder"):
        Dinov2Model.from_pretrained(folder)


def test_parts_in_the_cache_of_the_hub_are_read(exported, tmp_path):
    """There the files of a snapshot are links to `blobs`."""
    snapshot = tmp_path / "models--me--model" / "snapshots" / "abc"
    shutil.copytree(exported, snapshot)
    (tmp_path / "models--me--model" / "blobs").mkdir()
    blob = (snapshot / "model.safetensors").rename(tmp_path / "models--me--model" / "blobs" / "123")
    part = snapshot / "model-00001-of-00001.safetensors"
    part.symlink_to(blob)
    names = dict.fromkeys(load_file(part), part.name)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    found = Dinov2Model.from_pretrained(snapshot).state_dict()
    expected = Dinov2Model.from_pretrained(exported).state_dict()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
