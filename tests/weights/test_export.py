"""`dinov2-hf export`: from every source to every format, whole or not at all, with what to know said."""

import json
import os
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, pipeline

from dinov2_hf import Dinov2Config, Dinov2Model
from dinov2_hf.cli import main
from dinov2_hf.runs.metrics import read_metrics
from dinov2_hf.weights import export_source, open_weights, to_original, to_timm, write_onnx, write_original, write_timm
from dinov2_hf.weights import timm as timm_format

SUFFIX = {"hf": "", "original": ".pth", "timm": ".safetensors", "onnx": ".onnx"}


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def different(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def heads_of(networks):
    return {
        f"{name}.{key}": value
        for name, network in networks.items()
        if name.endswith("_head")
        for key, value in network.state_dict().items()
    }


def tiny_model(**settings):
    torch.manual_seed(0)
    shape = dict(num_hidden_layers=1, patch_size=8, image_size=32, num_register_tokens=2)
    model = Dinov2Model(Dinov2Config.preset("tiny", **{**shape, **settings})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["export", *map(str, arguments)])
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# a run


@pytest.mark.parametrize("which", ["output folder", "checkpoint"])
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_run_gives_a_folder_with_all_that_the_end_of_a_run_leaves(run, tmp_path, capsys, which, network):
    newest = run.checkpoints / "step-00000006"
    output = tmp_path / "exports" / "model"
    options = [] if network == "teacher" else ["--network", network]
    main(["export", str(run.folder if which == "output folder" else newest), str(output), *options])
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "config.json",
        "heads.safetensors",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    networks = getattr(run.objective, network)
    assert different(load_file(output / "model.safetensors"), state_of(networks["backbone"])) == []
    assert different(load_file(output / "heads.safetensors"), heads_of(networks)) == []
    processor = AutoImageProcessor.from_pretrained(output)
    assert [*processor.image_mean, *processor.image_std] == [0.5, 0.4, 0.3, 0.2, 0.3, 0.4]
    assert dict(processor.crop_size) == {"height": 32, "width": 32}
    config = Dinov2Config.from_pretrained(output)
    assert config.drop_path_rate == (0.0 if network == "teacher" else 0.3)
    assert config.image_size == 32 and config.num_attention_heads == 2
    report = capsys.readouterr().out
    assert (
        "checkpoint of a run, pretrained without labels" in report
        and f'AutoModel.from_pretrained("{output}")' in report
    )
    assert os.listdir(tmp_path / "exports") == ["model"]


def test_older_checkpoint_gives_its_own_weights_and_facts(run, tmp_path):
    losses = {line["step"]: line["loss"] for line in read_metrics(run.folder)}
    for step, updates in ((4, "4 of 6"), (6, "6")):
        export_source(str(run.checkpoints / f"step-0000000{step}"), tmp_path / str(step))
        card = (tmp_path / str(step) / "README.md").read_text()
        assert f"| Updates | {updates} |" in card and f"| loss | {losses[step]:.4g} |" in card
    old, new = (load_file(tmp_path / str(step) / "model.safetensors") for step in (4, 6))
    assert len(different(old, new)) > 30


def test_stock_transformers_gives_the_features_of_the_teacher(run, tmp_path):
    export_source(str(run.folder), tmp_path / "model")
    pixels = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        expected = run.objective.teacher["backbone"].eval()(pixels).last_hidden_state
        found = AutoModel.from_pretrained(tmp_path / "model")(pixels).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    pipeline("image-feature-extraction", model=str(tmp_path / "model"))


@pytest.mark.parametrize("format", ["original", "timm", "onnx"])
def test_run_goes_to_a_file_and_back_to_the_last_bit(run, tmp_path, capsys, format):
    file = tmp_path / f"model{SUFFIX[format]}"
    main(["export", str(run.folder), str(file), "--format", format])
    assert "the heads are left out" in capsys.readouterr().out
    done = export_source(str(file), tmp_path / "back")
    assert (
        different(load_file(tmp_path / "back" / "model.safetensors"), state_of(run.objective.teacher["backbone"])) == []
    )
    assert not (tmp_path / "back" / "heads.safetensors").exists() and done.remarks == []
    export_source(str(run.folder), tmp_path / "direct")
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads(
            (tmp_path / "direct" / name).read_text()
        )


# other sources


def sources(folder):
    """A path of every kind that holds the same model, and whether it tells how images are prepared."""
    model, preprocessor = tiny_model(), {"image_mean": [0.1, 0.2, 0.3]}
    state = state_of(model)
    model.save_pretrained(folder / "ours")
    AutoModel.from_pretrained(folder / "ours").save_pretrained(folder / "stock")
    (folder / "ours" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    write_original(folder / "ours.pth", model, preprocessor)
    write_timm(folder / "ours.safetensors", model, preprocessor)
    write_onnx(folder / "ours.onnx", model, preprocessor)
    torch.save(to_original(state), folder / "plain.pth")
    torch.save({"teacher": {f"backbone.{k}": v for k, v in to_original(state).items()}}, folder / "teacher.pth")
    for name in ("ours", "ours.pth", "ours.safetensors", "ours.onnx"):
        yield folder / name, True
    for name in ("stock", "plain.pth", "teacher.pth"):
        yield folder / name, False


def test_every_source_goes_to_every_format_and_none_loses_a_bit(tmp_path):
    expected = state_of(tiny_model())
    for source, tells in sources(tmp_path):
        for format in ("hf", "original", "timm"):
            output = tmp_path / "out" / f"{source.name}-{format}{SUFFIX[format]}"
            done = export_source(str(source), output, format)
            unknown = [remark for remark in done.remarks if "does not tell how images are prepared" in remark]
            assert bool(unknown) != tells
            weights = open_weights(str(output))
            assert different(weights.backbone(), expected) == []
            assert weights.config.num_attention_heads == 3
            mean = [0.1, 0.2, 0.3] if tells else [0.485, 0.456, 0.406]
            assert weights.preprocessor["image_mean"] == mean


def test_timms_own_file_is_imported(tmp_path):
    state, _ = to_timm(tiny_model(num_register_tokens=0).state_dict())
    save_file(state, tmp_path / "theirs.safetensors")
    done = export_source(str(tmp_path / "theirs.safetensors"), tmp_path / "model")
    found = Dinov2Model.from_pretrained(tmp_path / "model")
    assert found.config.interpolate_antialias and any("mask token is zero" in remark for remark in done.remarks)
    expected = state_of(tiny_model(num_register_tokens=0))
    assert different(state_of(found), expected) == ["embeddings.mask_token"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "`theirs.safetensors` (file under timm's names)" in card and "mask token is zero" in card
    assert str(tmp_path) not in card


def test_heads_of_a_source_come_along_to_hf_alone(run, tmp_path):
    export_source(str(run.folder), tmp_path / "first")
    export_source(str(tmp_path / "first"), tmp_path / "second")
    heads = heads_of(run.objective.teacher)
    assert different(load_file(tmp_path / "second" / "heads.safetensors"), heads) == []
    assert "heads.safetensors" in (tmp_path / "second" / "README.md").read_text()
    names = {f"backbone.{k}": v for k, v in to_original(state_of(run.objective.teacher["backbone"])).items()}
    torch.save({"teacher": names | heads}, tmp_path / "teacher.pth")
    arguments = [str(tmp_path / "teacher.pth"), str(tmp_path / "third"), "--num-attention-heads", "2"]
    main(["export", *arguments])
    assert different(load_file(tmp_path / "third" / "heads.safetensors"), heads) == []
    done = export_source(str(tmp_path / "first"), tmp_path / "model.safetensors", "timm")
    assert done.remarks == ["the heads are left out: timm has no place for them, --format hf has"]


def test_student_of_a_training_state_is_exported(tmp_path):
    teacher = {f"backbone.{name}": value for name, value in to_original(state_of(tiny_model())).items()}
    state = {f"teacher.{name}": value for name, value in teacher.items()}
    state |= {f"student.{name}": value + 1 for name, value in teacher.items()}
    torch.save({"model": state, "iteration": 3}, tmp_path / "state.pth")
    main(["export", str(tmp_path / "state.pth"), str(tmp_path / "student"), "--network", "student"])
    expected = {name: value + 1 for name, value in state_of(tiny_model()).items()}
    assert different(load_file(tmp_path / "student" / "model.safetensors"), expected) == []


# sizes


@torch.no_grad()
def test_image_size_makes_features_exact_where_stock_transformers_has_another_rule(tmp_path, capsys):
    """Without registers the original code, stock transformers and timm have three rules."""
    model = tiny_model(num_register_tokens=0, interpolate_offset=0.1)
    write_original(tmp_path / "model.pth", model)
    pixels = torch.randn(1, 3, 48, 48)
    expected = model(pixels).last_hidden_state
    for name, options, size in (("as-it-is", [], 32), ("resampled", ["--image-size", "48"], 48)):
        main(["export", str(tmp_path / "model.pth"), str(tmp_path / name), *options])
        note = "transformers interpolates position embeddings by another rule than this model"
        assert f"{note}: its features are the same at {size} x {size} pixels only" in capsys.readouterr().out
        difference = (AutoModel.from_pretrained(tmp_path / name)(pixels).last_hidden_state - expected).abs().max()
        assert (difference < 1e-5) == (size == 48)


@torch.no_grad()
def test_image_size_makes_features_exact_in_files(tmp_path):
    model = tiny_model(num_register_tokens=0, interpolate_offset=0.1)
    write_original(tmp_path / "model.pth", model)
    pixels = torch.randn(1, 3, 24, 56)
    expected = model(pixels).last_hidden_state
    for format in ("timm", "onnx"):
        file = tmp_path / f"resampled{SUFFIX[format]}"
        main(["export", str(tmp_path / "model.pth"), str(file), "--format", format, "--image-size", "24x56"])
        found = open_weights(str(file)).build()
        assert found.config.image_size == [24, 56] and found.config.grid_size == (3, 7)
        torch.testing.assert_close(found(pixels).last_hidden_state, expected, atol=1e-5, rtol=0)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"pixel_values": pixels.numpy()})[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_folder_that_stock_transformers_cannot_run_says_so(tmp_path, capsys):
    """It takes every grid of position embeddings for a square."""
    model = tiny_model(image_size=[24, 56])
    model.save_pretrained(tmp_path / "source")
    folder = tmp_path / "model"
    main(["export", str(tmp_path / "source"), str(folder)])
    report = capsys.readouterr().out
    assert "transformers takes square images of position embeddings only" in report
    assert f'dinov2_hf.Dinov2Model.from_pretrained("{folder}")' in report
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        AutoModel.from_pretrained(tmp_path / "model")(torch.randn(1, 3, 24, 56))
    assert different(state_of(Dinov2Model.from_pretrained(tmp_path / "model")), state_of(model)) == []


# what fails leaves nothing


class DiskFull(OSError):
    def __init__(self):
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize("source", ["run", "folder"])
def test_failure_in_the_middle_leaves_nothing(run, tmp_path, monkeypatch, capsys, format, source):
    tiny_model().save_pretrained(tmp_path / "source")
    path = run.folder if source == "run" else tmp_path / "source"

    def after_writing(write):
        def broken(*args, **kwargs):
            write(*args, **kwargs)
            raise DiskFull

        return broken

    owner, name = {
        "hf": (ModelCard, "save"),  # the last file
        "original": (torch, "save"),
        "timm": (timm_format, "save_file"),
        "onnx": (torch.onnx.ONNXProgram, "save"),
    }[format]
    monkeypatch.setattr(owner, name, after_writing(getattr(owner, name)))
    output = tmp_path / "out" / f"model{SUFFIX[format]}"
    assert "No space left on device" in fails(capsys, path, output, "--format", format)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("format", SUFFIX)
def test_a_full_disk_ends_an_export_with_one_line(tmp_path, capsys, format, small_disk):
    tiny_model().save_pretrained(tmp_path / "source")
    output = tmp_path / "out" / f"model{SUFFIX[format]}"
    with small_disk():
        line = fails(capsys, tmp_path / "source", output, "--format", format)
    assert f"{output} cannot be written: " in line and "make room on its disk" in line
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("format", SUFFIX)
def test_exported_files_have_the_mode_that_the_umask_asks_for(tmp_path, format):
    tiny_model().save_pretrained(tmp_path / "source")
    output = tmp_path / f"model{SUFFIX[format]}"
    before = os.umask(0o027)
    try:
        export_source(str(tmp_path / "source"), output, format)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "source" not in path.parts]
    assert files and {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


@pytest.mark.parametrize("format", SUFFIX)
def test_nothing_that_exists_is_overwritten(tmp_path, capsys, format):
    tiny_model().save_pretrained(tmp_path / "source")
    output = tmp_path / f"model{SUFFIX[format]}"
    output.write_text("mine")
    message = fails(capsys, tmp_path / "source", output, "--format", format)
    assert f"OUTPUT={output} exists already; give another name or remove it" in message
    assert output.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, "source"]


def test_second_file_of_an_onnx_is_not_overwritten_either(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "source")
    (tmp_path / "model.onnx.data").write_text("mine")
    assert "exists already" in fails(capsys, tmp_path / "source", tmp_path / "model.onnx", "--format", "onnx")
    assert (tmp_path / "model.onnx.data").read_text() == "mine"


def test_what_a_user_can_mend_is_said_in_one_line(run, tmp_path, capsys):
    folder = tmp_path / "source"
    tiny_model(image_size=[32, 48]).save_pretrained(folder)
    odd = {name: value for name, value in to_original(state_of(run.objective.teacher["backbone"])).items()}
    torch.save(odd, tmp_path / "odd.pth")
    missing, out = tmp_path / "nothing", tmp_path / "out"
    for arguments, message in (
        ((missing, out), f"SOURCE={missing} is not a run, a folder with a model, an original, timm or ONNX file"),
        ((f"{missing}.pth", out), f"SOURCE={missing}.pth does not exist"),
        ((folder, f"{out}.pt", "--format", "original"), f"OUTPUT={out}.pt does not end in .pth"),
        ((folder, f"{out}.onnx"), "looks like a file, and the format hf is a folder; leave .onnx out"),
        ((folder, f"{out}.pth", "--format", "original"), "image_size=[32, 48] is not square"),
        ((folder, out, "--network", "student"), "holds one network, not a student beside its teacher"),
        ((folder, out, "--student", "small"), "is not a run, so it has no students by name"),
        ((run.folder, out, "--student", "small"), "has no student 'small'; its further students: none"),
        ((tmp_path / "odd.pth", out), "its width 32 is not a multiple of the usual 64 channels; give --num-attention-"),
        ((folder, out, "--image-size", "30"), "height=30 is not a multiple of patch_size=8; use 24 or 32"),
        ((folder, out, "--image-size", "0"), "'0' is not a size; give pixels such as 224 or 224x280"),
        (
            (folder, out, "--format", "tensorrt"),
            "--format tensorrt is not one of onnx, hf, timm, torchvision, original",
        ),
    ):
        assert message in fails(capsys, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.pth", "source"]


def test_onnx_without_its_packages_names_the_extra(tmp_path, capsys, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "source")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = fails(capsys, tmp_path / "source", tmp_path / "model.onnx", "--format", "onnx")
    assert 'ONNX needs the package onnxscript; pip install "dinov2_hf[onnx]"' in message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_channels_are_not_normalised_where_nothing_tells(tmp_path):
    torch.save(to_original(state_of(tiny_model(num_channels=5))), tmp_path / "model.pth")
    done = export_source(str(tmp_path / "model.pth"), tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert (settings["image_mean"], settings["image_std"]) == ([0.0] * 5, [1.0] * 5)
    assert any("not normalised" in remark for remark in done.remarks)


def test_folder_of_a_path_with_a_dot_is_one(tmp_path):
    tiny_model().save_pretrained(tmp_path / "source")
    output = export_source(str(tmp_path / "source"), tmp_path / "model-v1.2").output
    assert (Path(output) / "model.safetensors").is_file()


def test_training_starts_from_every_source(tmp_path):
    expected = {f"backbone.{name}": value for name, value in state_of(tiny_model()).items()}
    for source, _ in sources(tmp_path):
        found = open_weights(str(source), "init.path")
        assert different(found.network("teacher"), expected) == different(found.network("student"), expected) == []
        says = source.name not in ("plain.pth", "teacher.pth")
        assert found.config.num_attention_heads == 3 and found.knows_num_attention_heads == says
