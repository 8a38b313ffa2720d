"""A checkpoint's metadata is a pickle: that of a stranger does not run."""

import pickle

import pytest
import torch

from dinov2_hf.train import Pretrainer, build_accelerator
from dinov2_hf.train.checkpoint import read_model_tensors
from dinov2_hf.train.initialize import read_source

from .damages import sign


@pytest.fixture
def checkpoint(tiny_config):
    config = tiny_config("train.epochs=1")
    trainer = Pretrainer(config, build_accelerator(config.train))
    trainer.run()
    return trainer, trainer.checkpoints / "step-00000002"


def test_tensors_are_those_of_the_run_and_their_shapes_are_had_without_reading_them(checkpoint):
    trainer, path = checkpoint
    expected = trainer.model.state_dict()
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
def test_metadata_that_runs_code_is_refused_and_does_not(checkpoint, tmp_path, module, name):
    _, path = checkpoint
    content = calling(module, name, str(tmp_path / "sprung"))
    (path / ".metadata").write_bytes(content)
    sign(path)
    with pytest.raises(
        ValueError, match=f"step-00000002 is damaged: .metadata asks for {module}.{name}, which is not part of"
    ):
        read_source(str(path))
    assert not (tmp_path / "sprung").exists()
    if name.endswith("mkdir") and module == "os":  # the pickle is one that would
        pickle.loads(content)
        assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"a": 1})], ids=["empty", "text", "other"])
def test_damaged_metadata_is_named(checkpoint, content):
    _, path = checkpoint
    (path / ".metadata").write_bytes(content)
    sign(path)
    with pytest.raises(ValueError, match="step-00000002 is damaged: .metadata .*; there is no whole one beside it"):
        read_source(str(path))
