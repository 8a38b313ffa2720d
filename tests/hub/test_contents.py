"""What may leave the machine: names on a list, and what those files must not hold."""

import json
import pickle
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import EvalResult
from safetensors.numpy import save_file

from dinov2_hf import Dinov2Config, Dinov2Model
from dinov2_hf.config import load_config
from dinov2_hf.data import evaluation_transform
from dinov2_hf.hub.contents import read_contents
from dinov2_hf.runs import RunFacts
from dinov2_hf.weights import model_card

NAMES = ["README.md", "config.json", "heads.safetensors", "model.safetensors", "preprocessor_config.json"]
HERE = str(Path(__file__).resolve())


def set_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2))


def test_what_is_not_on_the_list_is_left_out(export):
    for name in ("LICENSE", "model.onnx", "onnx/model.onnx", "model.onnx.data", "onnx/model.onnx_data"):
        (export / name).parent.mkdir(exist_ok=True)
        (export / name).write_text("a")
    for name in ("config.yaml", "metrics.jsonl", "loss.png", "notes/README.md", "other.safetensors", "events.tfevents"):
        (export / name).parent.mkdir(exist_ok=True)
        (export / name).write_text("/home/jane/secret")
    (export / ".cache").mkdir()
    (export / ".cache" / "config.json").write_text("{}")
    contents = read_contents(export)
    more = ["LICENSE", "model.onnx", "onnx/model.onnx", "model.onnx.data", "onnx/model.onnx_data"]
    assert sorted(contents.files) == sorted(NAMES + more)
    expected = ["config.yaml", "events.tfevents", "loss.png", "metrics.jsonl", "notes/README.md", "other.safetensors"]
    assert contents.left_out == expected and contents.adapted == []


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "teacher.pth", "training_args.bin", "rest.pkl", "Model.PT", "last.ckpt", "sub/x.pickle"],
)
def test_pickles_are_refused(export, name):
    (export / name).parent.mkdir(exist_ok=True)
    (export / name).write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=f"is not pushed: {name} is a pickle, which runs code .*; fix or remove"):
        read_contents(export)


def test_pickle_under_the_name_of_weights_is_refused(export):
    (export / "model.safetensors").write_bytes(pickle.dumps({"weight": 1.0}))
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        read_contents(export)


def test_weights_that_were_cut_short_are_refused(export):
    path = export / "heads.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="heads.safetensors is not a whole safetensors file"):
        read_contents(export)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "optimizer-0.json", "scheduler.json", "optim.npz"])
def test_files_of_an_optimizer_are_refused(export, name):
    (export / name).write_text("")
    with pytest.raises(ValueError, match=f"{name} holds the state of an optimizer"):
        read_contents(export)


@pytest.mark.parametrize("tensor", ["encoder.weight.exp_avg", "optimizer.state.0", "exp_avg_sq.encoder.weight"])
def test_optimizer_states_among_weights_are_refused(export, tensor):
    save_file({"encoder.weight": np.zeros(3), tensor: np.zeros(3)}, export / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model.safetensors holds the state of an optimizer \({tensor}\)"):
        read_contents(export)


@pytest.mark.parametrize("files", [["run.json"], [".metadata"], ["__0_0.distcp"]])
def test_checkpoint_of_a_run_is_not_an_export(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="is a checkpoint to continue a run from, with the state of its optimizer"):
        read_contents(tmp_path)


@pytest.mark.parametrize(
    "path",
    ["/home/jane/data", "/Users/jane/data/a.png", "/root/x", "file:///mnt/disk/set", "C:\\Users\\jane\\x", HERE]
    + [f"{tempfile.gettempdir()}/export", "/scratch/jane/run."],
)
def test_paths_of_a_machine_are_refused_with_file_and_line(export, path):
    card = (export / "README.md").read_text()
    (export / "README.md").write_text(card + f"\nTrained on `{path}` for a day.\n")
    line = len(card.splitlines()) + 2
    shown = path.removeprefix("file://").rstrip(".")
    with pytest.raises(ValueError) as caught:
        read_contents(export)
    assert f"README.md:{line} has {shown!r}, a path of a machine" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("path", ["/anywhere/at all", "/data", "D:\\models", "file:///x/y"])
def test_no_value_of_a_config_is_an_absolute_path(export, name, path):
    set_json(export / name, before=1, nested={"source": [path]})
    line = next(
        number for number, text in enumerate((export / name).read_text().splitlines(), 1) if json.dumps(path) in text
    )
    with pytest.raises(ValueError) as caught:
        read_contents(export)
    assert f"{name}:{line} has {path!r}, a path of a machine" in str(caught.value)


def test_paths_in_the_header_of_weights_are_refused(export):
    save_file({"encoder.weight": np.zeros(3)}, export / "model.safetensors", metadata={"from": "see /home/jane/run"})
    with pytest.raises(ValueError, match="model.safetensors has '/home/jane/run' in its header"):
        read_contents(export)


@pytest.mark.parametrize("trace", ["/home/jane/model.py", "/opt/conda/lib/site-packages/torch/nn.py", HERE])
def test_source_files_noted_in_a_graph_are_refused(export, trace):
    noise = np.random.default_rng(0).bytes(100_000)
    (export / "model.onnx").write_bytes(noise + b"/encoder/layer.0/attention/Add\0" + noise)
    read_contents(export)
    (export / "model.onnx").write_bytes(noise + struct.pack("<B", 0) + f'File "{trace}", line 3'.encode() + noise)
    with pytest.raises(ValueError, match="model.onnx has '.*', a path of a machine"):
        read_contents(export)


def test_examples_addresses_and_system_folders_are_not_paths_of_a_machine(export):
    text = (
        "data.train.path=/my/images, [docs](https://example.org/home/jane/x), #!/usr/bin/env python, and/or/else, 1/2/3"
    )
    (export / "README.md").write_text(f"{text}\n<img src='x'></img> ./runs/a ../b/c a/b/c //host/share ~/.cache/x\n")
    set_json(export / "config.json", ratio="3/4", kind="image/png", address="https://example.org/a/b")
    assert sorted(read_contents(export).files) == NAMES


def test_path_that_transformers_noted_is_left_away_and_a_name_stays(export):
    before = json.loads((export / "config.json").read_text())
    set_json(export / "config.json", _name_or_path="/home/jane/runs/a")
    written = (export / "config.json").read_bytes()
    contents = read_contents(export)
    assert json.loads(contents.files["config.json"]) == before
    assert contents.adapted == ["config.json: without _name_or_path, a path of the machine it was saved on"]
    assert (export / "config.json").read_bytes() == written
    set_json(export / "config.json", _name_or_path="facebook/dinov2-base")
    contents = read_contents(export)
    assert contents.files["config.json"] == export / "config.json" and contents.adapted == []


def test_access_tokens_are_refused_and_not_repeated(export):
    token = "hf_" + "a1B2" * 8
    set_json(export / "config.json", auth=token)
    (export / "README.md").write_text(f"Load\nwith token={token}.\n")
    with pytest.raises(ValueError) as caught:
        read_contents(export)
    assert "README.md:2 has what looks like an access token" in str(caught.value)
    assert "config.json:4 has what looks like an access token" in str(caught.value)
    assert token not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors", "LICENSE", "notes.txt", "onnx"])
@pytest.mark.parametrize("target", ["{outside}", "../../outside/file", "../export-other/file", "hop", "/nowhere"])
def test_links_out_of_the_folder_are_refused_by_name(export, tmp_path, name, target):
    """Files and folders, also by way of another link, or to nothing; what they lead to is not read."""
    for folder in (tmp_path / "outside", export.parent / "export-other"):
        folder.mkdir()
        (folder / "file").write_text("private")
    path = export / name
    path.unlink(missing_ok=True)
    if target == "hop":
        (export / "hop").symlink_to(tmp_path / "outside" / "file")
    outside = tmp_path / "outside" if name == "onnx" else tmp_path / "outside" / "file"
    path.symlink_to(target.format(outside=outside))
    if name == "config.json" and target == "/nowhere":  # no config.json then
        with pytest.raises(FileNotFoundError, match="has no config.json"):
            read_contents(export)
        return
    with pytest.raises(ValueError) as caught:
        read_contents(export)
    assert f"{name} is a link out of the folder" in str(caught.value) and "private" not in str(caught.value)


def test_links_that_stay_in_the_folder_are_followed(export):
    (export / "weights").mkdir()
    (export / "model.safetensors").rename(export / "weights" / "a.safetensors")
    (export / "model.safetensors").symlink_to("weights/a.safetensors")
    (export / "onnx").symlink_to("weights")
    latest = export.parent.with_name("latest")
    latest.symlink_to(export.parent)
    for folder in (export, latest / "export", latest):
        contents = read_contents(folder)
        assert sorted(contents.files) == NAMES and contents.left_out == ["onnx", "weights/a.safetensors"]


def test_an_export_that_is_a_link_out_of_the_run_is_refused(export):
    export.rename(export.parents[1] / "private")
    export.symlink_to("../private")
    with pytest.raises(ValueError, match=r"run/export is a link out of .*run; push .*/private by its own name"):
        read_contents(export.parent)
    assert sorted(read_contents(export.parents[1] / "private").files) == NAMES


def test_a_snapshot_in_the_cache_of_the_hub_is_refused(export, tmp_path):
    """It consists of links to `blobs`; a copy of it has files."""
    snapshot, blobs = tmp_path / "models--me--x" / "snapshots" / "0123", tmp_path / "models--me--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(NAMES):
        (export / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    with pytest.raises(ValueError, match="README.md is a link out of the folder; .*fix or remove that"):
        read_contents(snapshot)
    shutil.copytree(snapshot, tmp_path / "copy")
    assert sorted(read_contents(tmp_path / "copy").files) == NAMES


def test_all_reasons_are_told_together(export):
    for name in "abcdefg":
        (export / f"{name}.pt").write_text("")
    with pytest.raises(ValueError, match="a.pt is a pickle.*; e.pt is a pickle[^;]*; and 2 more; fix or remove"):
        read_contents(export)


def test_folder_without_a_whole_model_is_refused(export, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        read_contents(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no config.json, nor has its export/"):
        read_contents(tmp_path / "empty")
    export.rename(export.with_name("export-small"))
    with pytest.raises(FileNotFoundError, match="run has several exports; push them one by one: export-small"):
        read_contents(export.parent)
    export.with_name("export-small").rename(export)
    (export / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        read_contents(export)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (export / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": np.zeros(3)}, export / "model-00001-of-00002.safetensors")
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00002.safetensors, named in model.safetensors.i"):
        read_contents(export)
    save_file({"b": np.zeros(3)}, export / "model-00002-of-00002.safetensors")
    assert len(read_contents(export).files) == 7
    (export / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="model.safetensors.index.json cannot be read"):
        read_contents(export)


def test_rendered_card_may_be_pushed(export):
    with torch.device("meta"):
        backbone = Dinov2Model(Dinov2Config.preset("small"))
    config = load_config(None, ["data.train.path=/data/jane/satellite"])
    result = EvalResult(
        task_type="image-classification",
        dataset_type="imagefolder",
        dataset_name="clothing",
        metric_type="accuracy",
        metric_name="k-NN accuracy (%), k = 20",
        metric_value=32.04,
    )
    facts = RunFacts(results=[result], losses={"loss": 1.0}, license="mit")
    model_card(backbone, evaluation_transform(config), config, facts).save(export / "README.md")
    assert read_contents(export).files["README.md"] == export / "README.md"
