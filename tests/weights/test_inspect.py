"""`dinov2-hf inspect` tells what anything is, without running it."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel

from dinov2_hf import Dinov2Config, Dinov2Model
from dinov2_hf.cli import main
from dinov2_hf.objectives import DINOHead
from dinov2_hf.runs import read_metrics
from dinov2_hf.weights import export_source, inspect_path, to_original, to_timm, write_onnx, write_original, write_timm


def inspect(path, capsys):
    """The rows that the command prints, by name."""
    main(["inspect", str(path)])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == str(path)
    rows = [re.fullmatch(r"  (\S.*?)  +(\S.*)", line) for line in lines]
    assert all(rows), lines
    return {row[1]: row[2] for row in rows}


def model_of(preset, **settings):
    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config.preset(preset, **{"num_hidden_layers": 1, **settings}))


@pytest.mark.parametrize("which", ["output folder", "checkpoint"])
def test_run_is_described_with_its_progress_losses_and_heads(run, capsys, which):
    path = run.folder if which == "output folder" else run.checkpoints / "step-00000004"
    rows = inspect(path, capsys)
    step = 6 if which == "output folder" else 4
    assert rows["what"] == "checkpoint of a run, pretrained without labels (DINO + iBOT + KoLeo)"
    assert rows["checkpoint"] == f"step-0000000{step}, epoch {step // 2} of 3"
    assert rows["updates"] == f"{step} of 6"
    assert ("all checkpoints" in rows) == (which == "output folder")
    line = next(line for line in read_metrics(run.folder) if line["step"] == step)
    names = ("loss", "loss/dino_global", "loss/dino_local", "loss/ibot", "loss/koleo")
    shown = ", ".join(f"{name.removeprefix('loss/')} {line[name]:.4g}" for name in line if name in names)
    assert rows["losses"] == f"{shown} (mean up to update {step})" and shown.count(",") == 4
    assert rows["preset"] == "none of ours"
    assert rows["backbone"] == "width 32, 2 layers, 2 heads, MLP"
    assert rows["patch"] == "8 pixels, 3 channels" and rows["register tokens"] == "2"
    assert rows["image size"] == "32 x 32, a grid of 4 x 4 patches"
    assert rows["other sizes"] == "position embeddings bicubic with antialias, to the size"
    count = sum(parameter.numel() for parameter in run.objective.teacher["backbone"].parameters())
    assert rows["parameters"] == f"{count / 1e6:.2f} M" and rows["dtype"] == "float32"
    assert rows["dino_head"].startswith("K = 24 prototypes, widths 32 -> 16 -> 16 -> 8, ")
    assert rows["ibot_head"].startswith("K = 20 prototypes, widths 32 -> 16 -> 16 -> 8, ")
    assert f"dinov2-hf export {path} OUTPUT" in rows["use"] and f"init.path={path}" in rows["use"]
    assert f"examples/pretrain.py --config {run.folder / 'config.yaml'} goes on" in rows["use"]


def test_export_of_a_run_is_described_with_its_heads(run, tmp_path, capsys):
    export_source(str(run.folder), tmp_path / "model")
    rows = inspect(tmp_path / "model", capsys)
    assert rows["what"] == "folder that transformers loads"
    assert "K = 24" in rows["dino_head"] and "K = 20" in rows["ibot_head"]
    heads = inspect(tmp_path / "model" / "heads.safetensors", capsys)
    assert heads["what"] == "projection heads of a DINOv2 model" and heads["dino_head"] == rows["dino_head"]
    assert "give the folder" in heads["use"]


def test_every_kind_of_model_is_told(tmp_path, capsys):
    model = model_of("tiny", patch_size=8, image_size=32)
    model.save_pretrained(tmp_path / "ours")
    AutoModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "stock")
    write_original(tmp_path / "ours.pth", model)
    write_timm(tmp_path / "ours.safetensors", model)
    write_onnx(tmp_path / "ours.onnx", model)
    original = to_original(model.state_dict())
    torch.save(original, tmp_path / "plain.pth")
    head = {f"dino_head.{name}": value for name, value in DINOHead(192, 24, 16, 8).state_dict().items()}
    networks = {f"backbone.{name}": value for name, value in original.items()} | head
    torch.save({"teacher": networks}, tmp_path / "teacher.pth")
    both = {f"{role}.{name}": value for role in ("teacher", "student") for name, value in networks.items()}
    torch.save({"model": both, "iteration": 3}, tmp_path / "state.pth")
    save_file(to_timm(model.state_dict())[0], tmp_path / "theirs.safetensors")
    for name, what, guessed in (
        ("ours", "folder that transformers loads", False),
        ("stock", "folder that transformers loads", False),
        ("ours/model.safetensors", "folder that transformers loads", False),
        ("ours.pth", "file under the original names", False),
        ("ours.safetensors", "file under timm's names", False),
        ("ours.onnx", "ONNX file of dinov2-hf", False),
        ("plain.pth", "file under the original names", True),
        ("teacher.pth", "file under the original names, with heads", True),
        ("state.pth", "training state of the original code", True),
        ("theirs.safetensors", "file under timm's names", True),
    ):
        rows = inspect(tmp_path / name, capsys)
        assert rows["what"] == what
        assert rows["backbone"] == "width 192, 1 layer, 3 heads, MLP"
        assert ("heads of 64 channels are assumed" in rows.get("note", "")) == guessed
        assert rows["image size"] == "32 x 32, a grid of 4 x 4 patches"
        assert rows["parameters"] == f"{model.num_parameters() / 1e6:.2f} M"
        assert ("dino_head" in rows) == (name in ("teacher.pth", "state.pth"))
        assert rows["use"].startswith(f"dinov2-hf export {tmp_path / name} OUTPUT")
        if name == "plain.pth":
            assert "by a scale factor with offset 0.1" in rows["other sizes"]
        if name == "theirs.safetensors":
            assert rows["note"] == "the mask token is zero: timm's models have none"
            assert "bicubic with antialias, to the size" in rows["other sizes"]


@pytest.mark.parametrize("preset", ["tiny", "small", "base", "large", "giant"])
def test_presets_are_recognised(tmp_path, capsys, monkeypatch, preset):
    """With all their layers, of which none has weights here."""
    with torch.device("meta"):
        state = Dinov2Model(Dinov2Config.preset(preset, num_register_tokens=4, image_size=518)).state_dict()
    config = Dinov2Config.preset(preset, num_register_tokens=4, image_size=518)
    from dinov2_hf.weights import Weights
    from dinov2_hf.weights import inspect as module

    tensors = {f"backbone.{name}": value for name, value in state.items()}
    weights = Weights("SOURCE=x", "a model", config, lambda network: tensors)
    monkeypatch.setattr(module, "open_weights", lambda path, key, device: weights)
    rows = inspect("x", capsys)
    assert rows["preset"] == preset and rows["heads"] == "none"
    assert ("SwiGLU" in rows["backbone"]) == (preset == "giant")
    config.num_attention_heads //= 3 if preset == "tiny" else 2
    assert inspect("x", capsys)["preset"] == "none of ours"


def test_type_and_shape_are_those_of_the_file(tmp_path, capsys):
    model = model_of("tiny", patch_size=[8, 4], image_size=[32, 48], num_channels=5, num_register_tokens=3)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    rows = inspect(tmp_path, capsys)
    assert rows["dtype"] == "bfloat16" and rows["patch"] == "8 x 4 pixels, 5 channels"
    assert rows["image size"] == "32 x 48, a grid of 4 x 12 patches" and rows["register tokens"] == "3"


# what is no model


def test_tensors_of_something_else_are_listed(tmp_path, capsys):
    tensors = {
        "conv1.weight": torch.ones(2, 3),
        "fc.bias": torch.ones(4),
        "fc.weight": torch.ones(4, 5),
        "x": torch.ones(1),
    }
    save_file(tensors, tmp_path / "other.safetensors")
    torch.save({"model": tensors}, tmp_path / "other.pth")
    for name in ("other.safetensors", "other.pth"):
        rows = inspect(tmp_path / name, capsys)
        assert rows["what"] == "tensors, not those of a whole DINOv2 backbone"
        assert rows["tensors"] == "4: conv1.weight [2, 3], fc.bias [4], fc.weight [4, 5], …"
        assert "does not belong to a DINOv2 backbone" in rows["why"] and rows["use"] == "no command reads it"


def test_pickles_that_could_run_code_do_not(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    torch.save({"teacher": {"cls_token": Trap()}}, tmp_path / "trap.pth")
    rows = inspect(tmp_path / "trap.pth", capsys)
    assert rows["what"] == "a file that cannot be read"
    assert "holds other objects than tensors, which are not loaded as they can run code" in rows["why"]
    assert not (tmp_path / "sprung").exists()


def test_damaged_and_foreign_things_get_an_answer(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.onnx").write_bytes(b"not ONNX")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    settings = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    CLIPVisionModel(CLIPVisionConfig(**settings, image_size=32, patch_size=8)).save_pretrained(tmp_path / "clip")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / ".metadata").write_bytes(b"damaged")
    (tmp_path / "checkpoint" / "config.yaml").write_text((run.folder / "config.yaml").read_text())
    for name, why in (
        ("empty", "is not a run, a folder with a model"),
        ("notes.txt", "damaged or holds other objects"),
        ("broken.onnx", "damaged or not an ONNX file"),
        ("half", "no file named model.safetensors"),
        ("clip", "model_type='clip_vision_model'"),
        ("checkpoint", "is damaged"),
    ):
        rows = inspect(tmp_path / name, capsys)
        what = "a checkpoint that cannot be read" if name == "checkpoint" else "nothing that dinov2-hf knows"
        assert rows["what"] == what, name
        assert why in rows["why"] and rows["use"] == "no command reads it"


def test_what_is_not_there_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path / "nothing")])
    assert caught.value.code == 2
    assert f"PATH={tmp_path / 'nothing'} is not a run" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="does not exist"):
        inspect_path(str(tmp_path / "nothing.pth"))
