"""Distillation runs: from a teacher on disk to students, with the loop's resume."""

from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config as StockConfig
from transformers import Dinov2Model as StockModel
from transformers import SwinConfig, SwinModel, VideoMAEConfig, VideoMAEModel, ViTMAEConfig, ViTMAEModel

from dinov2_hf.config import load_config, load_saved_config
from dinov2_hf.data import EvalTransform
from dinov2_hf.objectives import FeatureTeacher, PrototypeTeacher, Teacher
from dinov2_hf.runs import RunFacts
from dinov2_hf.runs.checkpoint import find_checkpoints, read_model_tensors
from dinov2_hf.runs.metrics import read_metrics
from dinov2_hf.train import Trainer, build_accelerator
from dinov2_hf.train.teachers import open_teacher
from dinov2_hf.weights import export_folder, export_source

from ..tiny import without_heads


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory):
    """A place for one pretrained run that all tests of this file distil."""
    return tmp_path_factory.mktemp("teacher")


@pytest.fixture
def teacher(teacher_run, tiny_config):
    if not (teacher_run / "run").exists():
        config = tiny_config(f"train.output_dir={teacher_run / 'run'}", "model.hidden_size=48", *COLORS)
        networks = Trainer.from_config(config, build_accelerator(config.train)).run()[""]
        transform = EvalTransform(40, 32, config.colors.mean, config.colors.std)
        backbone = networks.pop("backbone")
        export_folder(teacher_run / "run" / "export", backbone, networks, transform, config, RunFacts())
    return teacher_run / "run"


@pytest.fixture
def configure(tiny_overrides, tmp_path):
    def configure(teacher, *overrides, output="student"):
        still = ["model.drop_path_rate=0", f"distill.teacher={teacher}", f"train.output_dir={tmp_path / output}"]
        given = [*tiny_overrides, *still, *PROTOTYPES, *overrides]
        if "objective=distill_features" in overrides:
            given = without_heads(given)
        return load_config(None, given)

    return configure


COLORS = ["colors.mean=[0.5,0.4,0.3]", "colors.std=[0.2,0.25,0.3]"]
PROTOTYPES = ["objective=distill_prototypes"]
FEATURES = ["objective=distill_features", "crops.num_local=0"]


def distil(config, until=None):
    trainer = Trainer.from_config(config, build_accelerator(config.train))
    next_batch = trainer._next_batch

    def ended(loader):
        if trainer.step == until:
            raise KeyboardInterrupt
        return next_batch(loader)

    trainer._next_batch = ended
    try:
        return trainer, trainer.run()
    except KeyboardInterrupt:
        return trainer, None


def opened(kind, path):
    """A frozen teacher, as a run opens it."""
    return open_teacher("distill.teacher", Teacher(str(path), kind.of))


def state_of(trainer):
    return {name: value.clone() for name, value in trainer.objective.state_dict().items()}


@pytest.mark.parametrize("kind", ["run", "export"])
def test_student_moves_towards_its_teacher(teacher, configure, kind):
    config = configure(teacher if kind == "run" else teacher / "export", "train.epochs=20", "train.log_every=4")
    _, results = distil(config)
    lines = [line for line in read_metrics(Path(config.train.output_dir)) if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"teacher_temp", "loss/dino_global", "loss/ibot"} <= lines[0].keys()
    assert set(results) == {""} and set(results[""]) == {"backbone", "dino_head", "ibot_head"}
    assert results[""]["backbone"].config.hidden_size == 32


@pytest.mark.parametrize("features", [[], FEATURES], ids=["prototypes", "features"])
def test_resumed_distillation_equals_the_uninterrupted_one(teacher, configure, features):
    further = ["students.small.preset=tiny", "students.small.hidden_size=16", "students.small.num_attention_heads=1"]
    further += ["students.small.num_hidden_layers=1", "students.small.patch_size=8", "students.small.drop_path_rate=0"]
    source = teacher / "export" if features else teacher
    whole, results = distil(configure(source, *features, *further, output="whole"))
    assert set(results) == {"", "small"}
    config = configure(source, *features, *further, output="killed")
    distil(config, until=3)
    resumed, _ = distil(config)
    expected = state_of(whole)
    assert expected.keys() == state_of(resumed).keys()
    assert [name for name, value in state_of(resumed).items() if not torch.equal(value, expected[name])] == []


def test_checkpoint_and_saved_config_hold_the_students_alone(teacher, configure):
    config = configure(teacher)
    trainer, _ = distil(config)
    checkpoint = find_checkpoints(Path(config.train.output_dir) / "checkpoints")[-1]
    tensors = read_model_tensors(checkpoint)
    assert {name.partition(".")[0] for name in tensors} == {"student", "average"}
    widths = {tensors[f"{role}.backbone.layernorm.weight"].shape[0] for role in ("student", "average")}
    assert widths == {32}
    assert load_saved_config(checkpoint / "config.yaml") == config
    assert isinstance(load_saved_config(teacher / "config.yaml"), type(load_config(None, ["data.train.path=x"])))


@pytest.mark.parametrize("features", [[], FEATURES], ids=["prototypes", "features"])
def test_teacher_is_the_same_to_the_last_bit_after_a_run(teacher, configure, features):
    path = str(teacher / "export")
    before = opened(FeatureTeacher if features else PrototypeTeacher, path).state_dict()
    trainer, _ = distil(configure(path, *features))
    after = trainer.objective.teacher.state_dict()
    assert trainer.step == 6 and before.keys() == after.keys()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []


def test_distilled_run_starts_another_run(teacher, configure, tiny_config, tmp_path):
    """Continued pretraining of a distilled student takes its average as the teacher."""
    config = configure(teacher)
    _, results = distil(config)
    again = tiny_config(f"init.path={config.train.output_dir}", f"train.output_dir={tmp_path / 'again'}")
    trainer = Trainer.from_config(again, build_accelerator(again.train))
    expected = results[""]["backbone"].state_dict()
    found = trainer.objective.teacher["backbone"].state_dict()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


def test_stock_model_without_heads_teaches_features_alone(configure, tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    StockModel(StockConfig(**sizes)).save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="has no heads.*objective=distill_features"):
        distil(configure(tmp_path / "stock"))
    trainer, results = distil(configure(tmp_path / "stock", *FEATURES))
    logged = read_metrics(trainer.folder)[-1]
    assert {"teacher_momentum", "loss/cls_cosine", "loss/patch_smooth_l1"} <= logged.keys()
    assert "teacher_temp" not in logged  # nothing reads one
    assert trainer.step == 6 and set(results[""]) == {"backbone", "cls_projector", "patch_projector"}


@pytest.mark.parametrize("name", ["swin", "vit_mae"])
def test_models_of_others_teach_their_features(configure, tmp_path, name):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    swin = {"embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32, "patch_size": 4}
    model = SwinModel(SwinConfig(**swin)) if name == "swin" else ViTMAEModel(ViTMAEConfig(**sizes))
    model.save_pretrained(tmp_path / "stock")
    trainer, _ = distil(configure(tmp_path / "stock", *FEATURES))
    logged = [line["loss/patch_cosine"] for line in read_metrics(trainer.folder) if "loss/patch_cosine" in line]
    assert trainer.step == 6 and logged[-1] < logged[0]


def test_model_that_takes_no_single_images_teaches_nothing_and_is_refused_in_one_line(configure, tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    VideoMAEModel(VideoMAEConfig(**sizes)).save_pretrained(tmp_path / "video")
    with pytest.raises(
        ValueError, match="distill.teacher=.*cannot be used: VideoMAEModel cannot take an image"
    ) as caught:
        distil(configure(tmp_path / "video", *FEATURES))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [PrototypeTeacher, FeatureTeacher])
def test_teacher_is_the_same_out_of_a_run_and_out_of_its_exports(teacher, tmp_path, kind):
    """Weights, and the normalisation that it was trained with."""
    places = [teacher, find_checkpoints(teacher / "checkpoints")[-1], teacher / "export"]
    if kind is FeatureTeacher:  # of one file, without heads
        export_source(str(teacher), tmp_path / "teacher.pth", "original")
        places.append(tmp_path / "teacher.pth")
    expected, *others = (opened(kind, place).eval() for place in places)
    assert (expected.mean, expected.std) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    crops = torch.randn(4, 3, 32, 32)

    def outputs(found):
        if kind is FeatureTeacher:
            return found(crops, [0.5] * 3, [0.3] * 3)
        tokens = found(crops, torch.arange(4 * 16), [0.5] * 3, [0.3] * 3)
        return found.heads["dino_head"](tokens.cls).logits, found.heads["ibot_head"](tokens.patches).logits

    for place, other in zip(places[1:], others, strict=True):
        assert (other.mean, other.std) == (expected.mean, expected.std), place
        for found, wanted in zip(outputs(other), outputs(expected), strict=True):
            torch.testing.assert_close(found, wanted, msg=str(place))


@pytest.mark.parametrize("features", [[], FEATURES], ids=["prototypes", "features"])
def test_teacher_that_is_not_there_is_said_in_one_line(configure, tmp_path, features):
    with pytest.raises(FileNotFoundError, match="distill.teacher=.*nowhere") as caught:
        distil(configure(tmp_path / "nowhere", *features))
    assert "\n" not in str(caught.value)
