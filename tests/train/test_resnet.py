"""Runs with a ResNet: batch norm in student and average, resume, exports, and what is done with them."""

import pytest
import torch
import transformers as hf
from accelerate.state import AcceleratorState

from dinov2_hf import evaluate, extract_features
from dinov2_hf.config import load_config
from dinov2_hf.features import open_backbone
from dinov2_hf.objectives import find_objective
from dinov2_hf.runs.checkpoint import find_checkpoints, read_model_tensors
from dinov2_hf.train import Trainer, build_accelerator, verify
from dinov2_hf.train.initialize import initialize
from dinov2_hf.visualize import (
    attention_maps,
    find_foreground,
    match_patches,
    open_picture,
    patch_features,
    pca_colors,
    similarity_maps,
)
from dinov2_hf.weights import export_source, inspect_path, open_weights

from ..tiny import TINY
from .running import train

RESNET = ["model.family=resnet", "model.depths=[1,1]", "model.hidden_sizes=[16,32]", "model.embedding_size=8"]
KEYS = [*RESNET, *(key for key in TINY if not key.startswith(("model.", "ibot."))), "ibot.loss_weight=0"]
DINO = [*(key for key in KEYS if not key.startswith("ibot.")), "objective=dino", "dino.batch_norm=true"]
DINO += ["optim.optimizer=sgd", "optim.base_lr=0.05"]


def config_in(folder, images, *keys):
    return load_config(None, [*KEYS, f"data.train.path={images}", f"train.output_dir={folder}", *keys])


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory):
    """The folder of a run of six updates."""
    folder = tmp_path_factory.mktemp("resnet") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinov2_hf.train.accelerator._available_cores", lambda: 1)
        train(config_in(folder, image_folder))
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture(scope="module")
def export(run, tmp_path_factory):
    """Its export."""
    return export_source(str(run), tmp_path_factory.mktemp("exports") / "resnet").output


def statistics(tensors, place):
    """Running statistics and counters of a network, by their names in the backbone."""
    prefix = f"{place}.backbone."
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and ("running" in name or "tracked" in name)
    }


def test_killed_run_ends_in_the_tensors_of_the_uninterrupted_one(run, image_folder, tmp_path):
    """Running statistics and counters included."""
    config = config_in(tmp_path / "killed", image_folder)
    train(config, until=3)
    train(config)
    whole, killed = (
        read_model_tensors(find_checkpoints(folder / "checkpoints")[-1]) for folder in (run, tmp_path / "killed")
    )
    assert whole.keys() == killed.keys()
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    counters = {name: int(value) for name, value in whole.items() if name.endswith("num_batches_tracked")}
    # the student sees global and local crops of six updates, the teacher the global ones
    assert {name.split(".")[0]: count for name, count in counters.items()} == {"student": 12, "teacher": 6}


def test_killed_run_of_dino_with_batch_norm_in_its_head_ends_as_the_uninterrupted_one(image_folder, tmp_path):
    final = []
    for name, stops in (("whole", [None]), ("killed", [3, None])):
        keys = [*DINO, f"data.train.path={image_folder}", f"train.output_dir={tmp_path / name}"]
        for until in stops:
            train(load_config(None, keys), until=until)
        final.append(read_model_tensors(find_checkpoints(tmp_path / name / "checkpoints")[-1]))
    whole, killed = final
    assert whole.keys() == killed.keys() and all(torch.equal(value, killed[name]) for name, value in whole.items())
    statistics = [name for name in whole if "running_var" in name and "dino_head" in name]
    assert {name.split(".")[0] for name in statistics} == {"student", "teacher"}
    assert not any(torch.equal(whole[name], torch.ones_like(whole[name])) for name in statistics)


def test_stretch_of_a_run_is_verified(run):
    assert verify.verify_run(run).equal


def test_average_has_running_statistics_of_its_own(run):
    tensors = read_model_tensors(find_checkpoints(run / "checkpoints")[-1])
    student, teacher = statistics(tensors, "student"), statistics(tensors, "teacher")
    assert student.keys() == teacher.keys()
    assert not any(torch.equal(value, teacher[name]) for name, value in student.items())


def test_average_normalises_by_the_batch_in_training_and_by_running_statistics_in_evaluation(image_folder, tmp_path):
    objective = find_objective(config_in(tmp_path, image_folder))(config_in(tmp_path, image_folder))
    backbone = objective.networks[""].average["backbone"]
    images = torch.randn(4, 3, 32, 32)
    found = {}
    for mode in (True, False):
        objective.train(mode)
        assert not backbone.training
        together = backbone.features(images)[0].cls[:2]
        found[mode] = (together - backbone.features(images[:2])[0].cls).abs().max()
    assert found[True] > 1e-2 and found[False] < 1e-6


def test_export_has_the_features_of_the_average_in_evaluation_mode(run, export):
    pixels = torch.randn(3, 3, 32, 48)
    stock = hf.ResNetModel.from_pretrained(export).eval()
    ours, of_run = (open_backbone(str(path)) for path in (export, run))
    with torch.no_grad():
        expected = stock(pixels)
    for backbone in (ours, of_run):
        (found,) = backbone.features(pixels, 1)
        torch.testing.assert_close(found.cls, expected.pooler_output.flatten(1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.patches, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    card = (export / "README.md").read_text()
    assert "residual network" in card and "pooler_output" in card and "register" not in card
    for path in (run, export):
        text = inspect_path(str(path))
        assert "1, 1 bottleneck blocks, widths 16, 32" in text and "float32" in text


@pytest.mark.parametrize("source", ["run", "export"])
def test_run_starts_from_weights_with_their_running_statistics(run, export, image_folder, tmp_path, source):
    path = {"run": run, "export": export}[source]
    config = config_in(tmp_path, image_folder, f"init.path={path}")
    objective = find_objective(config)(config)
    initialize(objective, config.init)
    weights = open_weights(str(path))
    for role, networks in zip(("student", "teacher"), objective.networks[""]):
        expected = weights.backbone(role)
        for name, value in networks["backbone"].state_dict().items():
            assert torch.equal(value, expected[name]), name


def test_run_continues_from_a_file_of_torchvision_with_other_channels(image_folder, tmp_path):
    from dinov2_hf.backbones import ResNetConfig, ResNetModel
    from dinov2_hf.config import RESNET_PRESETS

    keys = ["model.preset=resnet18", "model.depths=[1,1,1,1]", "model.num_channels=1", "init.channels=mean"]
    ResNetModel(ResNetConfig(**RESNET_PRESETS["resnet18"] | {"depths": [1, 1, 1, 1]})).save_pretrained(
        tmp_path / "first"
    )
    file = export_source(str(tmp_path / "first"), tmp_path / "resnet.pth", "torchvision").output
    given = [
        key for key in KEYS if not key.startswith(("model.depths", "model.hidden", "model.embedding", "crops.local"))
    ]
    given.append("crops.local_size=32")
    colors = ["colors.mean=[0.5]", "colors.std=[0.25]", f"init.path={file}"]
    config = load_config(None, [*given, *keys, *colors, f"data.train.path={image_folder}", "train.output_dir=x"])
    objective = find_objective(config)(config)
    initialize(objective, config.init)
    first = objective.student["backbone"].embedder.embedder.convolution.weight
    whole = open_weights(str(file)).backbone()["embedder.embedder.convolution.weight"]
    torch.testing.assert_close(first, whole.sum(dim=1, keepdim=True))


def test_masks_are_refused(image_folder, tmp_path):
    config = config_in(tmp_path, image_folder, "ibot.loss_weight=1")
    with pytest.raises(ValueError, match="model.family=resnet takes no masks.*ibot.loss_weight=0"):
        find_objective(config)(config)


def test_gradient_checkpointing_changes_no_number(run, image_folder, tmp_path):
    """Running statistics neither: a block that runs twice counts a batch once."""
    trained = train(config_in(tmp_path / "run", image_folder, "model.gradient_checkpointing=true"))
    expected = read_model_tensors(find_checkpoints(run / "checkpoints")[-1])
    for name, value in trained.objective.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ what is done with it

PROTOCOLS = {
    "knn": {"k": [3]},
    "linear": {"blocks": [1], "iterations": 5, "global_batch": 8, "learning_rates": [0.01]},
    "logistic": {"c": [1.0]},
    "finetune": {"epochs": 1, "global_batch": 8, "warmup_epochs": 0, "drop_path_rate": 0},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluations_take_the_family(export, image_folder, protocol):
    keys = {"test.split": "train", "crop_size": 32, "num_workers": 0, "precision": "fp32", **PROTOCOLS[protocol]}
    report = evaluate(export, protocol, image_folder, keys=keys)
    assert report.metrics and all(0 <= value <= 100 for value in report.metrics.values())


def test_heads_on_several_blocks_are_refused_in_one_line(export, image_folder):
    keys = {"test.split": "train", "crop_size": 32, "num_workers": 0, "precision": "fp32", "blocks": [1, 2]}
    with pytest.raises(ValueError, match="layers=2.*last stage only.*blocks=1"):
        evaluate(export, "linear", image_folder, keys=keys)


def test_pictures_of_patches_are_made_and_attention_is_refused(export, image_folder):
    backbone = open_backbone(str(export))
    files = sorted((image_folder / "blobs").iterdir())[:2]
    pictures = [open_picture(path.read_bytes(), path.name, 64, backbone.stride) for path in files]
    features = [patch_features(backbone, picture) for picture in pictures]
    assert [tuple(each.shape) for each in features] == [(7, 8, 32)] * 2
    assert len(pca_colors(features, find_foreground(features))) == 2
    assert similarity_maps(features, 0, 0, 0)[1].shape == (7, 8)
    assert len(match_patches(*features)) > 0
    with pytest.raises(ValueError, match="no attention of CLS to patches; take a vision transformer"):
        attention_maps(backbone, pictures[0])


def test_features_of_images_are_extracted(export, image_folder):
    found = extract_features(export, image_folder, parts=("cls", "patches"), image_size=32)
    assert found["cls"].shape == (24, 32) and found["patches"].shape == (24, 32, 4, 4)


@pytest.mark.parametrize("objective", ["distill_features", "distill_prototypes"])
@pytest.mark.parametrize("student", ["resnet", "dinov2"])
def test_distillation_takes_the_family_as_teacher_and_as_student(run, image_folder, tmp_path, objective, student):
    """From a ResNet to a vision transformer, and to another ResNet, whose average has running statistics of use."""
    others = [key for key in TINY if key.startswith("model.") and "drop_path" not in key] + ["model.drop_path_rate=0"]
    keys = [
        *(RESNET if student == "resnet" else others),
        *(key for key in TINY if not key.startswith(("model.", "ibot."))),
    ]
    keys += [f"objective={objective}", f"distill.teacher={run}", f"data.train.path={image_folder}"]
    if objective == "distill_features":
        keys = [key for key in keys if not key.startswith(("dino.", "teacher.warmup_temp", "crops.num_local"))]
        keys.append("crops.num_local=0")
    else:
        keys.append("ibot.loss_weight=0")
    config = load_config(None, [*keys, f"train.output_dir={tmp_path / 'student'}"])
    objective = Trainer.from_config(config, build_accelerator(config.train))
    results = objective.run()[""]
    assert all(parameter.isfinite().all() for parameter in results["backbone"].parameters())
    if student == "resnet":
        tensors = read_model_tensors(find_checkpoints(tmp_path / "student" / "checkpoints")[-1])
        of_student, of_average = statistics(tensors, "student"), statistics(tensors, "average")
        moved = [name for name in of_average if "running_var" in name and not (of_average[name] == 1).all()]
        assert len(moved) == len([name for name in of_average if "running_var" in name])
        assert {int(value) for name, value in of_average.items() if "tracked" in name} == {
            int(value) for name, value in of_student.items() if "tracked" in name
        }


def test_vision_transformer_teaches_a_resnet(image_folder, tmp_path):
    teacher = load_config(None, [*TINY, f"data.train.path={image_folder}", f"train.output_dir={tmp_path / 'teacher'}"])
    train(teacher, until=2)
    keys = [
        *RESNET,
        *(key for key in TINY if not key.startswith(("model.", "ibot.", "dino.", "teacher.", "crops.num"))),
    ]
    keys += ["objective=distill_features", "crops.num_local=0", f"distill.teacher={tmp_path / 'teacher'}"]
    config = load_config(None, [*keys, f"data.train.path={image_folder}", f"train.output_dir={tmp_path / 'student'}"])
    trained = train(config)
    assert trained.step == 6
