"""ResNets under the names of torchvision and timm, and the checkpoints of the published DINO code around them."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from dinov2_hf.backbones import ResNetConfig, ResNetModel
from dinov2_hf.config import RESNET_PRESETS
from dinov2_hf.weights import export_source, inspect_path, open_weights
from dinov2_hf.weights.torchvision import config_from_resnet, from_torchvision, to_torchvision, torchvision_usage

RECORDED = Path(__file__).parents[1] / "parity" / "data" / "resnet_steps.safetensors"
SMALL = RESNET_PRESETS["resnet18"] | {"depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def published():
    """State dicts of the published code: networks of student and teacher, under `backbone.` and `head.`."""
    tensors = load_file(RECORDED)
    return {
        role: {
            name.removeprefix(f"final.{role}."): value
            for name, value in tensors.items()
            if name.startswith(f"final.{role}.")
        }
        for role in ("student", "teacher")
    }


def backbone_of(network):
    return {name.removeprefix("backbone."): value for name, value in network.items() if name.startswith("backbone.")}


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) and value.dtype == other[name].dtype for name, value in one.items())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A ResNet of torchvision's widths after a batch, and its folder."""
    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig(**SMALL))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    folder = tmp_path_factory.mktemp("small") / "export"
    model.eval().save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("preset", ["resnet18", "resnet50", "resnet101"])
def test_names_are_renamed_there_and_back(preset):
    with torch.device("meta"):
        model = ResNetModel(ResNetConfig.preset(preset, num_channels=5))
    state = model.state_dict()
    names = to_torchvision(state)
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer4.1.bn2.num_batches_tracked"} < set(names)
    assert ("layer1.0.downsample.0.weight" in names) == (preset != "resnet18") and "layer2.0.downsample.1.bias" in names
    again = from_torchvision(names)
    assert list(again) == list(state)
    assert config_from_resnet(again).to_dict() == model.config.to_dict()


def test_recorded_names_of_torchvision_are_read_and_written_exactly(published):
    state = backbone_of(published["student"])
    same(to_torchvision(from_torchvision(state)), state)


def of_distributed(network):
    return {f"module.{name}": value for name, value in network.items()}


WRAPPINGS = {
    "backbone": lambda networks: backbone_of(networks["teacher"]),
    "backbone with a classifier": lambda networks: (
        backbone_of(networks["teacher"]) | {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}
    ),
    "network": lambda networks: networks["teacher"],
    "full checkpoint": lambda networks: {
        "student": of_distributed(networks["student"]),
        "teacher": of_distributed(networks["teacher"]),
        "epoch": 3,
        "dino_loss": {"center": torch.zeros(1, 112)},
    },
    "full checkpoint of one process": lambda networks: {**networks, "epoch": 3},
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_published_files_are_read_whole(published, tmp_path, wrapping, suffix):
    made, path = WRAPPINGS[wrapping](published), tmp_path / f"file{suffix}"
    if suffix == ".pth":
        torch.save(made, path)
    elif wrapping.startswith("full"):
        return
    else:
        save_file({name: value.contiguous() for name, value in made.items()}, path)
    weights = open_weights(str(path))
    backbone = weights.build()
    same(to_torchvision(backbone.state_dict()), backbone_of(published["teacher"]))
    assert not backbone.training and weights.has_student == wrapping.startswith("full")
    if weights.has_student:
        student = open_weights(str(path), network="student").build()
        same(to_torchvision(student.state_dict()), backbone_of(published["student"]))
    assert bool(weights.remarks) == (wrapping == "backbone with a classifier")


def test_head_of_a_full_checkpoint_is_read(published, tmp_path):
    torch.save(WRAPPINGS["full checkpoint"](published), tmp_path / "checkpoint.pth")
    heads = open_weights(str(tmp_path / "checkpoint.pth")).heads()
    prefix = "head."
    same(
        heads["dino_head"],
        {name.removeprefix(prefix): v for name, v in published["teacher"].items() if name.startswith(prefix)},
    )


def test_counters_that_an_old_file_lacks_are_zero(published, tmp_path):
    state = {name: v for name, v in backbone_of(published["teacher"]).items() if not name.endswith("batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    found = open_weights(str(tmp_path / "old.pth")).build().state_dict()
    counters = [value for name, value in found.items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 20 and not any(counters)


@torch.no_grad()
def test_export_and_import_give_the_same_tensors(small, tmp_path):
    model, folder = small
    done = export_source(str(folder), tmp_path / "resnet.pth", "torchvision")
    state = torch.load(tmp_path / "resnet.pth", weights_only=True)
    same(dict(state), to_torchvision(model.state_dict()))
    assert "torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])" in done.usage
    export_source(str(tmp_path / "resnet.pth"), tmp_path / "again")
    same(ResNetModel.from_pretrained(tmp_path / "again").state_dict(), model.state_dict())
    weights = open_weights(str(tmp_path / "resnet.pth"))
    assert weights.preprocessor == json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())


def test_file_of_an_export_is_read_with_and_without_its_folder(small, tmp_path):
    model, folder = small
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    for path in (folder / "model.safetensors", alone):
        weights = open_weights(str(path))
        same(weights.build().state_dict(), model.state_dict())
        assert weights.config.depths == [1, 1, 1, 1]


def test_usage_names_torchvision_and_timm():
    usage = torchvision_usage("x.pth", ResNetConfig(num_channels=4))
    assert "torchvision.models.resnet50()" in usage and "model.fc = torch.nn.Identity()" in usage
    assert 'timm.create_model("resnet50", num_classes=0, in_chans=4, checkpoint_path="x.pth")' in usage
    compile(usage, "usage", "exec")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_sizes": [64, 128, 256, 256]}, "hidden_sizes=.* ResNets of torchvision have"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ],
)
def test_architectures_that_torchvision_lacks_are_not_written(tmp_path, settings, message):
    ResNetModel(ResNetConfig(**SMALL | settings)).save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        export_source(str(tmp_path / "source"), tmp_path / "file.pth", "torchvision")
    assert not (tmp_path / "file.pth").exists()


@pytest.mark.parametrize("format, suffix", [("original", ".pth"), ("timm", ".safetensors")])
def test_formats_of_vision_transformers_name_that_of_resnets(small, tmp_path, format, suffix):
    with pytest.raises(ValueError, match=f"--format {format} .* not resnet; use --format hf, onnx or torchvision"):
        export_source(str(small[1]), tmp_path / f"export{suffix}", format)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.1.conv2.weight"), "encoder.stages.1.layers.1.layer.1.convolution.weight"),
        (lambda state: state.pop("conv1.weight"), "embedder.embedder.convolution.weight"),
        (lambda state: state.update({"layer1.0.se.fc1.weight": torch.zeros(2)}), "layer1.0.se.fc1.weight"),
        (lambda state: state.update({"conv1.weight": torch.zeros(16, 3, 7, 7).to(torch.int8)}), "int8"),
    ],
)
def test_files_of_other_or_broken_networks_are_refused_in_one_line(published, tmp_path, change, message):
    state = backbone_of(published["teacher"])
    change(state)
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=message) as raised:
        open_weights(str(tmp_path / "broken.pth")).build()
    assert "\n" not in str(raised.value)


def test_inspect_describes_a_file_of_torchvision(published, tmp_path):
    torch.save(WRAPPINGS["full checkpoint"](published), tmp_path / "checkpoint.pth")
    text = inspect_path(str(tmp_path / "checkpoint.pth"))
    assert "1, 2, 1, 1 bottleneck blocks" in text and "stride" in text and "K = 112 prototypes" in text


@pytest.mark.parametrize("size", ["square", "wide"])
@torch.no_grad()
def test_features_equal_the_published_code_in_evaluation_mode(tmp_path, size):
    """See tests/parity/data/README.md: atol 1e-5, rtol 1e-4."""
    tensors, prefix = load_file(RECORDED), "init.student."
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    torch.save(state, tmp_path / "published.pth")
    (found,) = open_weights(str(tmp_path / "published.pth")).build().features(tensors[f"forward.{size}.pixel_values"])
    torch.testing.assert_close(found.cls, tensors[f"forward.{size}.pooled"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_onnxruntime_gives_the_features_at_every_size_and_the_file_is_read_exactly(small, tmp_path):
    model, folder = small
    done = export_source(str(folder), tmp_path / "model.onnx", "onnx")
    assert "last_hidden_state, pooler_output" in done.usage
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 64), (3, 3, 32, 96)):
        pixels = torch.randn(shape)
        maps, pooled = session.run(None, {"pixel_values": pixels.numpy()})
        (expected,) = model.features(pixels)
        torch.testing.assert_close(torch.from_numpy(maps), expected.patches, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(pooled), expected.cls, atol=1e-4, rtol=1e-4)
    same(open_weights(str(tmp_path / "model.onnx")).build().state_dict(), model.state_dict())
