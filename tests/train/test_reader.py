"""A checkpoint's metadata is a pickle: that of a stranger does not run."""

import io
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

from dinov2_hf.runs.checkpoint import read_model_tensors
from dinov2_hf.runs.reader import CheckpointPlanner, CheckpointReader
from dinov2_hf.train import Trainer, build_accelerator
from dinov2_hf.weights import open_weights

from .damages import sign


@pytest.fixture
def path(finished, tmp_path):
    """A copy of a checkpoint after two updates."""
    name = "checkpoints/step-00000002"
    return Path(shutil.copytree(finished / name, tmp_path / "run" / name))


@pytest.fixture
def trainer(path, tiny_config_in):
    """A run that continues from it."""
    config = tiny_config_in(path.parents[1])
    return Trainer.from_config(config, build_accelerator(config.train))


def test_tensors_are_those_of_the_run_and_their_shapes_are_had_without_reading_them(trainer, path):
    expected = trainer.objective.state_dict()
    found, shapes = read_model_tensors(path), read_model_tensors(path, "meta")
    assert found.keys() == shapes.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert {name: (value.shape, value.dtype) for name, value in shapes.items()} == {
        name: (value.shape, value.dtype) for name, value in expected.items()
    }
    assert all(value.is_meta for value in shapes.values())


def calling(module, name, argument):
    """A pickle that calls a function with a string."""
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name, argument)]
    return b"\x80\x04" + texts[0] + texts[1] + b"\x93" + texts[2] + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "mkdir"),
        ("torch.distributed.checkpoint.metadata", "os.mkdir"),  # through what an allowed module imports
        ("torch.distributed.checkpoint.filesystem", "os"),
        ("torch", "os.mkdir"),
        ("builtins", "eval"),
    ],
)
def test_metadata_that_runs_code_is_refused_and_does_not(path, tmp_path, module, name):
    content = calling(module, name, str(tmp_path / "sprung"))
    (path / ".metadata").write_bytes(content)
    sign(path)
    with pytest.raises(
        ValueError, match=f"step-00000002 is damaged: .metadata asks for {module}.{name}, which is not part of"
    ):
        open_weights(str(path), "init.path").network()
    assert not (tmp_path / "sprung").exists()
    if name.endswith("mkdir") and module == "os":  # the pickle is one that would
        pickle.loads(content)
        assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"a": 1})], ids=["empty", "text", "other"])
def test_damaged_metadata_is_named(path, content):
    (path / ".metadata").write_bytes(content)
    sign(path)
    with pytest.raises(ValueError, match="step-00000002 is damaged: .metadata .*; there is no whole one beside it"):
        open_weights(str(path), "init.path").network()


def rewritten(path, change):
    """Changes the metadata of a checkpoint, and its checksum with it."""
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    sign(path)


def place_all(**place):
    def change(metadata):
        metadata.storage_data = {key: replace(value, **place) for key, value in metadata.storage_data.items()}

    return change


def enlarge(metadata):
    entry = metadata.state_dict_metadata["model.student.backbone.layernorm.weight"]
    entry.size = torch.Size([1 << 40])


def drop(metadata):
    del metadata.storage_data[next(iter(metadata.storage_data))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            place_all(relative_path="../step-00000002/__0_0.distcp"),
            "names '../step-00000002/__0_0.distcp', which lies out",
        ),
        (place_all(relative_path="/etc/hostname"), "names '/etc/hostname', which lies outside the folder"),
        (place_all(relative_path=""), "names '', which lies outside the folder"),
        (place_all(relative_path="__9_0.distcp"), "names __9_0.distcp, which is missing"),
        (place_all(length=1 << 40), "needs 1099511627776 bytes of __0_0.distcp"),
        (place_all(offset=-5), "needs .* bytes of __0_0.distcp"),
        (enlarge, "names tensors that are larger than the files"),
        (drop, "does not say where optimizer.param_groups.0.* is"),
    ],
)
def test_metadata_of_places_that_are_not_in_the_files_is_refused(path, change, message):
    rewritten(path, change)
    with pytest.raises(ValueError, match=f"step-00000002 is damaged: .metadata {message}"):
        open_weights(str(path), "init.path").network()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", "fast", "param_groups.0.lr is 'fast' in the checkpoint and 0"),
        ("betas", (0.9,), r"param_groups.0.betas is \(0.9,\) in the checkpoint"),
        ("params", ["elsewhere"], "param_groups.0.params is .'elsewhere'. in the checkpoint"),
    ],
)
def test_setting_of_the_optimiser_that_is_not_of_its_kind_is_refused(trainer, path, name, value, message):
    content = io.BytesIO()
    torch.save(value, content)
    file = path / "__0_0.distcp"
    place = {"offset": file.stat().st_size, "length": len(content.getvalue())}
    file.write_bytes(file.read_bytes() + content.getvalue())

    def change(metadata):
        for key in metadata.storage_data:
            if key.fqn == f"optimizer.param_groups.0.{name}":
                metadata.storage_data[key] = replace(metadata.storage_data[key], **place)

    rewritten(path, change)
    with pytest.raises(ValueError, match=f"step-00000002 cannot be loaded: .*{message}"):
        Trainer.from_config(trainer.config, trainer.accelerator)


def test_settings_of_the_optimiser_are_loaded_by_this_planner_as_torch_loads_them(trainer, path):
    """A canary of the seam: `set_element` and the planner's `mappings`."""
    states = []
    for options in ({}, {"storage_reader": CheckpointReader(path), "planner": CheckpointPlanner()}):
        _, state = get_state_dict(trainer.objective, trainer.training_step.optimizer)
        for group in state["param_groups"]:
            group.update(lr=7.0, betas=(0.1, 0.2), weight_decay=3.0)
        dcp.load({"optimizer": state}, checkpoint_id=None if options else path, no_dist=True, **options)
        states.append(state["param_groups"])
    assert states[0] == states[1] and all(group["betas"] == (0.9, 0.999) for group in states[0])
