"""Starting from a run, a released model, an export, an original checkpoint; what is refused; the warm-up of heads."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers import Dinov2Config as StockConfig
from transformers import Dinov2ForImageClassification as StockForImageClassification
from transformers import Dinov2Model as StockModel
from transformers import Dinov2WithRegistersForImageClassification as StockWithRegistersForImageClassification

from dinov2_hf.backbones import ViTConfig, ViTModel
from dinov2_hf.config import load_config
from dinov2_hf.data import EvalTransform
from dinov2_hf.runs import RunFacts, read_metrics
from dinov2_hf.train import Trainer, build_accelerator
from dinov2_hf.train.initialize import channel_shares
from dinov2_hf.weights import export_folder, model_from_original, to_original

from .running import train as trained

HEADS = ("dino_head", "ibot_head")
STOCK_SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8)


def started(config, resume="auto"):
    """A run before its first update."""
    return Trainer.from_config(config, build_accelerator(config.train), resume=resume)


def train(config, until=None, after_update=lambda trainer: None):
    """A run, ended after `until` updates; `after_update` gets the trainer after each."""

    def prepare(trainer):
        update_averages = trainer.objective.update_averages

        def observed(values):
            update_averages(values)
            after_update(trainer)

        trainer.objective.update_averages = observed

    return trained(config, until, prepare=prepare)


def tensors(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert different(first, second) == []


def different(first, second):
    return [name for name in first if not torch.equal(first[name], second[name])]


@torch.no_grad()
def features(backbone, pixels):
    return backbone.eval()(pixels).last_hidden_state


def shake(model):
    """Random LayerScale, tokens and biases, so that every tensor shows in the features."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lambda1" in name:
                parameter.uniform_(0.2, 0.6)
            elif parameter.ndim < 3 and "weight" not in name or "token" in name or "position" in name:
                parameter.normal_(0, 0.3)
    return model.eval()


def stock_model(folder, registers=2, image_size=56):
    """A folder as stock transformers writes it, and its model."""
    if registers:
        config = Dinov2WithRegistersConfig(**STOCK_SHAPE, image_size=image_size, num_register_tokens=registers)
        model = Dinov2WithRegistersModel(config)
    else:
        model = StockModel(StockConfig(**STOCK_SHAPE, image_size=image_size))
    shake(model).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def runs():
    return {}


@pytest.fixture
def run(runs, tiny_config, tmp_path_factory):
    """A finished run, the same for all: six updates, checkpoints at 4 and 6. To be read only."""
    if not runs:
        folder = tmp_path_factory.mktemp("source")
        runs["tiny"] = train(tiny_config("teacher.centering=softmax", f"train.output_dir={folder}"))
    trainer = runs["tiny"]
    assert trainer.step == 6
    assert different(tensors(trainer.objective.student), tensors(trainer.objective.teacher))
    return trainer


def export(run, folder):
    """The folder that a run leaves at its end."""
    transform = EvalTransform(36, 32, run.config.colors.mean, run.config.colors.std)
    teacher = dict(run.objective.teacher)
    return export_folder(folder, teacher.pop("backbone"), teacher, transform, run.config, RunFacts())


def save_original(run, path):
    """A teacher as the original training code saves it, with its heads."""
    names = {
        f"backbone.{name}": value for name, value in to_original(tensors(run.objective.teacher["backbone"])).items()
    }
    for head in HEADS:
        names |= {f"{head}.{name}": value for name, value in run.objective.teacher[head].state_dict().items()}
    torch.save({"teacher": names}, path)
    return path


# a run


@pytest.mark.parametrize("which", ["output_dir", "checkpoint"])
def test_run_hands_on_student_teacher_heads_and_centre_tensor_for_tensor(run, tiny_config, which):
    older = run.checkpoints / "step-00000004"
    path = run.folder if which == "output_dir" else older
    resumed = run if which == "output_dir" else started(run.config, resume=str(older))
    expected = tensors(resumed.objective)
    assert {"centering.dino.center", "centering.ibot.center"} <= expected.keys()
    assert expected["centering.dino.center"].abs().max() > 0

    trainer = started(tiny_config("teacher.centering=softmax", f"init.path={path}"))
    assert_equal(tensors(trainer.objective), expected)
    assert trainer.step == 0 and trainer.state.head_warmup_steps == 0
    moments = trainer.training_step.optimizer.state_dict()["state"].values()
    assert not any(value.any() for each in moments for value in each.values())


def test_run_with_new_heads_hands_on_both_backbones_and_no_centre(run, tiny_config):
    trainer = started(tiny_config("teacher.centering=softmax", f"init.path={run.folder}", "init.heads=false"))
    for role in ("student", "teacher"):
        ours, theirs = getattr(trainer.objective, role), getattr(run.objective, role)
        assert_equal(tensors(ours["backbone"]), tensors(theirs["backbone"]))
        for head in HEADS:
            assert different(tensors(ours[head]), tensors(theirs[head]))
            assert_equal(tensors(trainer.objective.student[head]), tensors(trainer.objective.teacher[head]))
    assert all((center == 0).all() for center in trainer.objective.centering.state_dict().values())
    assert trainer.state.head_warmup_steps == 2


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("size", [24, 48])
def test_run_goes_on_at_another_image_size_with_the_same_features(tiny_config, tmp_path, registers, size):
    architecture = f"model.num_register_tokens={registers}"
    source = train(tiny_config(architecture, f"train.output_dir={tmp_path / 'source'}"))
    config = tiny_config(architecture, f"init.path={source.folder}", f"crops.global_size={size}")
    trainer = started(config)
    before, after = tensors(source.objective), tensors(trainer.objective)
    resized = [f"{role}.backbone.embeddings.position_embeddings" for role in ("student", "teacher")]
    assert before.keys() == after.keys()
    assert [name for name in before if before[name].shape != after[name].shape] == resized
    assert [name for name in before if name not in resized and not torch.equal(before[name], after[name])] == []
    pixels = torch.randn(3, 3, size, size)
    for role, name in zip(("student", "teacher"), resized):
        assert after[name].shape == (1, 1 + (size // 8) ** 2, 32)
        networks = [getattr(one.objective, role)["backbone"] for one in (source, trainer)]
        assert [network.config.grid_size for network in networks] == [(4, 4), (size // 8, size // 8)]
        expected, found = (features(network, pixels) for network in networks)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    done = train(config)
    assert done.step == 6 and done.state.head_warmup_steps == 0
    assert all(torch.isfinite(value).all() for value in done.objective.state_dict().values())
    assert all(line["loss"] > 0 and line["skipped_updates"] == 0 for line in read_metrics(done.folder))


# a folder that transformers loads


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("image_size", [16, 32, 56])
def test_stock_model_gives_its_features_at_our_image_size(tiny_config, tmp_path, registers, image_size):
    stock = stock_model(tmp_path / "stock", registers, image_size)
    trainer = started(tiny_config(f"model.num_register_tokens={registers}", f"init.path={tmp_path / 'stock'}"))
    pixels = torch.randn(3, 3, 32, 32)
    for role in (trainer.objective.teacher, trainer.objective.student):
        torch.testing.assert_close(features(role["backbone"], pixels), features(stock, pixels), atol=1e-5, rtol=0)
    assert_equal(tensors(trainer.objective.student), tensors(trainer.objective.teacher))


@pytest.mark.parametrize("registers", [0, 2])
def test_stock_classifier_gives_its_backbone(tiny_config, tmp_path, registers):
    if registers:
        config = Dinov2WithRegistersConfig(**STOCK_SHAPE, image_size=32, num_register_tokens=registers, num_labels=3)
        stock = shake(StockWithRegistersForImageClassification(config))
    else:
        stock = shake(StockForImageClassification(StockConfig(**STOCK_SHAPE, image_size=32, num_labels=3)))
    stock.save_pretrained(tmp_path / "stock")
    trainer = started(tiny_config(f"model.num_register_tokens={registers}", f"init.path={tmp_path / 'stock'}"))
    pixels, inner = torch.randn(3, 3, 32, 32), stock.dinov2_with_registers if registers else stock.dinov2
    found = features(trainer.objective.teacher["backbone"], pixels)
    torch.testing.assert_close(found, features(inner, pixels), atol=1e-5, rtol=0)


def test_grid_that_is_not_square_is_resampled_as_the_source_does(tiny_config, tmp_path):
    """2 x 8 patches, as many as the 4 x 4 of our crops."""
    stock = stock_model(tmp_path / "stock", 2, [16, 64])
    assert stock.embeddings.position_embeddings.shape == (1, 17, 32)
    trainer = started(tiny_config(f"init.path={tmp_path / 'stock'}"))
    positions = stock.embeddings.position_embeddings.detach()
    grid = positions[:, 1:].reshape(1, 2, 8, 32).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)
    expected = torch.cat((positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 16, 32)), dim=1)
    found = trainer.objective.teacher["backbone"].embeddings.position_embeddings
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_new_heads_are_trained_alone_before_the_backbone_moves(tiny_config, tmp_path):
    """Two updates of the heads; the scale of the backbone's learning rate then rises from 0.1 in steps of 0.3."""
    stock_model(tmp_path / "stock")
    config = tiny_config(f"init.path={tmp_path / 'stock'}", "init.head_warmup_epochs=1", "optim.warmup_epochs=2")
    states, rates = [tensors(started(config).objective)], []

    def after_update(trainer):
        states.append(tensors(trainer.objective))
        groups = trainer.training_step.optimizer.param_groups
        rates.append([(group["is_backbone"], group["lr"] / group["lr_multiplier"]) for group in groups])

    trainer = train(config, after_update=after_update)
    assert trainer.state.head_warmup_steps == 2 and len(states) == 7

    first = states[0]
    student = [name for name in first if name.startswith("student.backbone.")]
    teacher = [name for name in first if name.startswith("teacher.backbone.")]
    heads = [name for name in first if name.startswith(("student.dino_head.", "student.ibot_head."))]
    assert len(student) == len(teacher) == 44 and len(heads) == 16
    for state in states[1:3]:
        assert [name for name in student if not torch.equal(state[name], first[name])] == []
        for name in teacher:
            torch.testing.assert_close(state[name], first[name], atol=1e-6, rtol=0)
    assert [name for name in heads if torch.equal(states[2][name], first[name])] == []
    moved = states[3]
    assert [name for name in student if torch.equal(moved[name], first[name])] == []
    assert max((states[6][name] - first[name]).abs().max() for name in teacher) > 1e-6

    for step, (update, scale) in enumerate(zip(rates, [0.0, 0.0, 0.1, 0.4, 0.7, 1.0], strict=True)):
        lr = trainer.schedules["lr"][step]
        assert [rate for is_backbone, rate in update if is_backbone] == pytest.approx([lr * scale] * 8)
        for rate in (rate for is_backbone, rate in update if not is_backbone):
            assert rate in (pytest.approx(lr), trainer.schedules["last_layer_lr"][step])
    logged = {line["step"]: line["backbone_lr_scale"] for line in read_metrics(trainer.folder)}
    assert logged == pytest.approx({2: 0.0, 4: 0.4, 6: 1.0})


def test_warm_up_of_heads_can_be_switched_off(tiny_config, tmp_path):
    stock_model(tmp_path / "stock")
    config = tiny_config(f"init.path={tmp_path / 'stock'}", "init.head_warmup_epochs=0")
    first = tensors(started(config).objective.student["backbone"])
    trainer = train(config, until=2)  # the learning rate of the first update is 0
    assert trainer.state.head_warmup_steps == 0
    assert all(trainer.schedules["backbone_lr_scale"][step] == 1.0 for step in range(6))
    after = tensors(trainer.objective.student["backbone"])
    assert len(different(first, after)) == 44


# one of our exports


def test_export_hands_on_its_heads_and_needs_no_warm_up(run, tiny_config, tmp_path):
    folder = export(run, tmp_path / "export")
    trainer = started(tiny_config(f"init.path={folder}"))
    for role in (trainer.objective.student, trainer.objective.teacher):
        assert_equal(tensors(role), tensors(run.objective.teacher))
    assert trainer.state.head_warmup_steps == 0


def test_export_with_new_heads_hands_on_the_backbone_and_warms_them_up(run, tiny_config, tmp_path):
    folder = export(run, tmp_path / "export")
    trainer = started(tiny_config(f"init.path={folder}", "init.heads=false", "init.head_warmup_epochs=2"))
    for role in (trainer.objective.student, trainer.objective.teacher):
        assert_equal(tensors(role["backbone"]), tensors(run.objective.teacher["backbone"]))
    for head in HEADS:
        assert len(different(tensors(trainer.objective.teacher[head]), tensors(run.objective.teacher[head]))) >= 4
        assert_equal(tensors(trainer.objective.student[head]), tensors(trainer.objective.teacher[head]))
    assert trainer.state.head_warmup_steps == 4


def test_one_head_that_is_missing_starts_anew_and_the_other_goes_on(run, tiny_config, tmp_path):
    file = export(run, tmp_path / "export") / "heads.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name.startswith("dino_head.")}, file)
    trainer = started(tiny_config(f"init.path={tmp_path / 'export'}"))
    for role in (trainer.objective.student, trainer.objective.teacher):
        assert_equal(tensors(role["dino_head"]), tensors(run.objective.teacher["dino_head"]))
        assert different(tensors(role["ibot_head"]), tensors(run.objective.teacher["ibot_head"]))
    assert_equal(tensors(trainer.objective.student["ibot_head"]), tensors(trainer.objective.teacher["ibot_head"]))
    assert trainer.state.head_warmup_steps == 2


# original names


def test_original_backbone_is_taken_and_gets_new_heads(run, tiny_config, tmp_path):
    torch.save(to_original(tensors(run.objective.teacher["backbone"])), tmp_path / "plain.pth")
    trainer = started(tiny_config(f"init.path={tmp_path / 'plain.pth'}"))
    for role in (trainer.objective.student, trainer.objective.teacher):
        assert_equal(tensors(role["backbone"]), tensors(run.objective.teacher["backbone"]))
    assert trainer.state.head_warmup_steps == 2


@pytest.mark.parametrize("with_student", [False, True])
def test_original_teacher_hands_on_its_heads(run, tiny_config, tmp_path, with_student):
    path = save_original(run, tmp_path / "teacher.pth")
    if with_student:  # a whole training state, the student in it with other weights
        saved = torch.load(path, weights_only=True)["teacher"]
        state = {f"student.{name}": value + 1 for name, value in saved.items()}
        state |= {f"teacher.{name}": value for name, value in saved.items()} | {"dino_loss.center": torch.zeros(1, 24)}
        torch.save({"model": state, "iteration": 7}, path)
    trainer = started(tiny_config(f"init.path={path}"))
    for role in (trainer.objective.student, trainer.objective.teacher):
        assert_equal(tensors(role), tensors(run.objective.teacher))
    assert trainer.state.head_warmup_steps == 0


@pytest.mark.parametrize("size", [24, 48])
@pytest.mark.parametrize("registers", [0, 2])
def test_original_model_keeps_its_features_at_another_image_size(tiny_config, tmp_path, size, registers):
    """The original code interpolates without registers by a scale factor with an offset, with them to a size."""
    shake(source := started(tiny_config(f"model.num_register_tokens={registers}")).objective.teacher["backbone"])
    state = to_original(tensors(source))
    torch.save(state, tmp_path / "original.pth")
    original = model_from_original(state, num_attention_heads=2)
    assert original.config.interpolate_offset == (0.0 if registers else 0.1)
    settings = [f"model.num_register_tokens={registers}", f"crops.global_size={size}"]
    trainer = started(tiny_config(*settings, f"init.path={tmp_path / 'original.pth'}"))
    pixels = torch.randn(3, 3, size, size)
    expected = features(original, pixels)
    torch.testing.assert_close(features(trainer.objective.teacher["backbone"], pixels), expected, atol=1e-5, rtol=0)


# the family vit


@pytest.mark.parametrize("kind", ["stock", "original", "original with a mask token"])
@pytest.mark.parametrize("takes_masks", [True, False])
def test_weights_of_dino_start_a_run_with_or_without_masks(tiny_overrides, tmp_path, caplog, kind, takes_masks):
    """DINO has no token for masked patches, iBOT has one: one that is missing starts as in a run from scratch."""
    caplog.set_level(logging.INFO, "dinov2_hf")
    shape = STOCK_SHAPE | {"intermediate_size": 128, "image_size": 32}
    has_token = kind.endswith("mask token")
    model = shake(ViTModel(ViTConfig(**shape, layer_norm_eps=1e-6, use_mask_token=has_token)))
    path = tmp_path / ("source" if kind == "stock" else "source.pth")
    model.save_pretrained(path) if kind == "stock" else torch.save(to_original(tensors(model)), path)
    keys = [key for key in tiny_overrides if "register" not in key and "layerscale" not in key]
    keys += ["model.family=vit", f"model.mask_token={str(takes_masks).lower()}", f"init.path={path}"]
    keys += [] if takes_masks else ["ibot.loss_weight=0"]
    trainer = started(load_config(None, keys))
    expected, token = tensors(model), "embeddings.mask_token"
    found = tensors(trainer.objective.teacher["backbone"])
    assert (token in found) == takes_masks
    assert [name for name in found if name in expected and not torch.equal(found[name], expected[name])] == []
    if takes_masks and not has_token:
        assert (found[token] == 0).all()
    assert ("the token for masked patches is new" in caplog.text) == (takes_masks and not has_token)
    assert ("its token for masked patches is left out" in caplog.text) == (has_token and not takes_masks)


@pytest.mark.parametrize("keys", [["objective=dino"], ["objective=dino", "dino.batch_norm=true"], ["objective=ibot"]])
def test_full_checkpoint_of_the_published_code_hands_on_its_backbone_and_head(tiny_config, tmp_path, keys):
    """The student behind DistributedDataParallel, `head.…`; iBOT's prototypes of patches are `last_layer2`."""
    torch.manual_seed(3)  # another start than that of the run below
    source = started(tiny_config(*keys, "train.seed=5")).objective.teacher
    state = {f"backbone.{name}": value for name, value in to_original(tensors(source["backbone"])).items()}
    state |= {f"head.{name}": value for name, value in tensors(source["dino_head"]).items()}
    student = {f"module.{name}": value + 1 for name, value in state.items()}
    state.pop("backbone.masked_embed", None)  # the teacher of iBOT has none
    torch.save({"student": student, "teacher": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    trainer = started(tiny_config(*keys, f"init.path={tmp_path / 'checkpoint.pth'}"))
    assert trainer.state.head_warmup_steps == 0
    assert any("last_layer2" in name for name in state) == (keys == ["objective=ibot"])
    for role in (trainer.objective.student, trainer.objective.teacher):
        for name in ("backbone", "dino_head"):
            assert_equal(tensors(role[name]), tensors(source[name]))


# another number of channels


def channels_config(tiny_config, folder, channels, *overrides):
    values = [f"colors.{name}={[0.5] * channels}" for name in ("mean", "std")]
    return tiny_config(f"init.path={folder}", f"model.num_channels={channels}", *values, *overrides)


@pytest.mark.parametrize("how", ["mean", "repeat"])
@pytest.mark.parametrize("old, new", [(3, 1), (3, 2), (3, 4), (3, 6), (3, 7), (5, 3), (1, 3)])
def test_shares_of_channels_keep_the_sum_over_equal_channels(how, old, new):
    shares = channel_shares(old, new, how)
    assert shares.shape == (new, old) and (shares >= 0).all()
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(old))
    if how == "mean":
        assert (shares == shares[0, 0]).all()
    else:
        assert (shares.argmax(dim=1) == torch.arange(new) % old).all()


@pytest.mark.parametrize("how", ["mean", "repeat"])
@pytest.mark.parametrize("channels", [1, 4, 6])
def test_grey_images_keep_their_features_in_another_number_of_channels(tiny_config, tmp_path, how, channels):
    """So that k-NN at update 0 is that of the source."""
    stock = stock_model(tmp_path / "stock", image_size=32)
    trainer = started(channels_config(tiny_config, tmp_path / "stock", channels, f"init.channels={how}"))
    grey = torch.randn(3, 1, 32, 32)
    expected = features(stock, grey.expand(-1, 3, -1, -1))
    for role in (trainer.objective.teacher, trainer.objective.student):
        found = features(role["backbone"], grey.expand(-1, channels, -1, -1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_first_convolution_in_three_ways(tiny_config, tmp_path, caplog):
    projection = "embeddings.patch_embeddings.projection.weight"
    given = stock_model(tmp_path / "stock", image_size=32).state_dict()[projection]
    found = {}
    for how in ("mean", "repeat", "random"):
        with caplog.at_level("INFO", logger="dinov2_hf"):
            config = channels_config(tiny_config, tmp_path / "stock", 4, f"init.channels={how}")
            trainer = started(config)
        assert f"first convolution from 3 to 4 channels by init.channels={how}" in caplog.text
        student, teacher = (
            tensors(role["backbone"]) for role in (trainer.objective.student, trainer.objective.teacher)
        )
        assert_equal(student, teacher)
        found[how] = student
        assert different(found["mean"], student) in ([], [projection])
    torch.testing.assert_close(found["mean"][projection], given.sum(dim=1, keepdim=True).expand(-1, 4, -1, -1) / 4)
    torch.testing.assert_close(
        found["repeat"][projection], given[:, [0, 1, 2, 0]] / torch.tensor([2, 1, 1, 2])[:, None, None]
    )
    config.init.path, config.init.channels = None, None
    assert torch.equal(found["random"][projection], tensors(started(config).objective.student["backbone"])[projection])


def test_another_number_of_channels_is_refused_naming_the_key(tiny_config, tmp_path):
    stock_model(tmp_path / "stock")
    message = refusal(channels_config(tiny_config, tmp_path / "stock", 5))
    assert message == (
        f"init.path={tmp_path / 'stock'} has 3 channels, and model.num_channels=5; set init.channels=mean, repeat or "
        "random, or model.num_channels=3"
    )


# the rule of position embeddings


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_run_without_registers_chooses_the_rule_of_its_position_embeddings(tiny_config, tmp_path, offset, caplog):
    """The original code without registers has the offset, transformers has not."""
    config = tiny_config("model.num_register_tokens=0", f"model.interpolate_offset={offset}")
    backbone = shake(started(config).objective.teacher["backbone"])
    state = to_original(tensors(backbone))
    pixels = torch.randn(3, 3, 24, 40)
    original = model_from_original(state, num_attention_heads=2, interpolate_offset=offset)
    torch.testing.assert_close(features(backbone, pixels), features(original, pixels), atol=1e-6, rtol=0)
    other = model_from_original(state, num_attention_heads=2, interpolate_offset=0.1 - offset)
    assert (features(backbone, pixels) - features(other, pixels)).abs().max() > 1e-3

    folder = export(train(config), tmp_path / "export")
    assert json.loads((folder / "config.json").read_text())["interpolate_offset"] == offset
    torch.save(state, tmp_path / "original.pth")
    with caplog.at_level("INFO", logger="dinov2_hf"):
        started(
            tiny_config(
                "model.num_register_tokens=0",
                f"model.interpolate_offset={offset}",
                f"init.path={tmp_path / 'original.pth'}",
                f"train.output_dir={tmp_path / 'other'}",
            )
        )
    said = "crops of other sizes than the global ones differ: model.interpolate_offset=0, 0.1 there"
    assert (said in caplog.text) == (offset == 0)


# what is refused


def refusal(config, kind=ValueError):
    """The message, of one line, with which `config` is refused."""
    with pytest.raises(kind) as caught:
        started(config)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message and config.init.path in message
    return message


@pytest.mark.parametrize("name", ["nowhere", "nowhere.pth", "empty"])
def test_nothing_at_the_path_is_refused(tiny_config, tmp_path, name):
    (tmp_path / "empty").mkdir()
    message = refusal(tiny_config(f"init.path={tmp_path / name}"), FileNotFoundError)
    assert message.startswith(f"init.path={tmp_path / name} ")


ARCHITECTURES = [
    ("model.hidden_size=64", "embeddings.cls_token is [1, 1, 32] there and [1, 1, 64] here"),
    ("model.num_hidden_layers=3", "is absent there and [32] here"),
    ("model.num_hidden_layers=1", "is [32] there and absent here"),
    ("model.num_register_tokens=0", "embeddings.register_tokens is [1, 2, 32] there and absent here"),
    ("model.num_register_tokens=4", "embeddings.register_tokens is [1, 2, 32] there and [1, 4, 32] here"),
    ("model.patch_size=16", "projection.weight is [32, 3, 8, 8] there and [32, 3, 16, 16] here"),
    ("model.use_swiglu_ffn=true", "mlp.fc1.bias is [128] there and absent here"),
]
PROTOTYPES = [
    ("dino.num_prototypes=30", "last_layer.weight_g is [24, 1] there and [30, 1] here"),
    ("ibot.num_prototypes=30", "last_layer.weight_g is [20, 1] there and [30, 1] here"),
    ("ibot.bottleneck_dim=4", "last_layer.weight_v is [20, 8] there and [20, 4] here"),
]


@pytest.mark.parametrize("kind", ["run", "export", "original"])
def test_another_architecture_is_refused_naming_the_keys_to_set(run, tiny_config, tmp_path, kind):
    path = run.folder
    if kind == "export":
        path = export(run, tmp_path / "export")
    elif kind == "original":
        path = save_original(run, tmp_path / "teacher.pth")
    for override, difference in ARCHITECTURES:
        message = refusal(tiny_config(f"init.path={path}", override))
        assert message.startswith("the backbone at init.path=") and difference in message, message
        assert override.split("=")[0] in message.split("; set ")[1]
    for override, difference in PROTOTYPES:
        message = refusal(tiny_config(f"init.path={path}", override))
        section, key = override.split("=")[0].split(".")
        assert message.startswith(f"the {section}_head at init.path=") and difference in message, message
        assert f"{section}.{key}" in message and message.endswith(", or init.heads=false")
        trainer = started(tiny_config(f"init.path={path}", override, "init.heads=false"))  # the remedy
        assert trainer.state.head_warmup_steps == 2
    if kind != "original":  # there nothing tells
        message = refusal(tiny_config(f"init.path={path}", "model.num_attention_heads=4"))
        assert "has 2 attention heads and here it would have 4; set model.num_attention_heads=2" in message


def test_stock_model_of_another_architecture_is_refused(tiny_config, tmp_path):
    stock_model(tmp_path / "stock", registers=0)
    message = refusal(tiny_config(f"init.path={tmp_path / 'stock'}"))
    assert "embeddings.register_tokens is absent there and [1, 2, 32] here" in message
    assert "model.num_register_tokens" in message


def test_file_that_could_run_code_is_refused_and_does_not(tiny_config, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    torch.save({"teacher": {"cls_token": Trap()}}, tmp_path / "trap.pth")
    message = refusal(tiny_config(f"init.path={tmp_path / 'trap.pth'}"))
    assert "holds other objects than tensors" in message and "save the state dict alone with torch.save" in message
    assert not (tmp_path / "sprung").exists()


def test_damaged_or_foreign_original_files_are_refused(run, tiny_config, tmp_path):
    path = save_original(run, tmp_path / "teacher.pth")
    whole = torch.load(path, weights_only=True)["teacher"]

    def message_of(content):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        return refusal(tiny_config(f"init.path={path}"))

    assert "is damaged or holds" in message_of(path.read_bytes()[:2000])
    assert "is damaged or holds" in message_of(b"not a file of torch")
    assert "is damaged or holds" in message_of(b"")
    for lacking in ("pos_embed", "patch_embed.proj.weight", "norm.bias", "blocks.1.attn.qkv.weight"):
        message = message_of({"teacher": {k: v for k, v in whole.items() if k != f"backbone.{lacking}"}})
        assert "init.path=" in message and ("lacks" in message or "absent there" in message)
    assert "'conv1.weight' does not belong to a DINOv2 backbone" in message_of({"conv1.weight": torch.ones(1)})
    for content in ([torch.ones(1)], torch.ones(1), {}, {"teacher": None}):
        assert "not a whole DINOv2 backbone" in message_of(content)


def test_folder_without_weights_is_refused(tiny_config, tmp_path):
    stock_model(tmp_path / "stock")
    (tmp_path / "stock" / "model.safetensors").unlink()
    message = refusal(tiny_config(f"init.path={tmp_path / 'stock'}"), FileNotFoundError)
    assert "is not a run, a folder with a model" in message and "no file named model.safetensors" in message


def test_weights_that_are_not_those_of_the_config_are_refused(tiny_config, tmp_path):
    """transformers itself would fill what is missing at random, and drop what is too much."""
    stock_model(tmp_path / "stock")
    config = tiny_config(f"init.path={tmp_path / 'stock'}")
    file = tmp_path / "stock" / "model.safetensors"
    whole = load_file(file)
    layer = {name: value for name, value in whole.items() if name.startswith("encoder.layer.1.")}
    for change, named in (
        ({"layernorm.weight": None}, "layernorm.weight is missing"),
        (dict.fromkeys(layer), "encoder.layer.1.attention.attention.key.bias is missing (and 17 tensors more)"),
        ({"layernorm.weight": torch.ones(5)}, "layernorm.weight is [5] and not [32]"),
        (
            {name.replace(".1.", ".2."): value.clone() for name, value in layer.items()},
            "encoder.layer.2.attention.attention.key.bias has no place (and 17 tensors more)",
        ),
    ):
        state = {name: value for name, value in (whole | change).items() if value is not None}
        save_file(state, file, metadata={"format": "pt"})
        message = refusal(config)
        beginning = f"the weights at init.path={tmp_path / 'stock'} do not fit the config.json beside them: "
        assert message == f"{beginning}{named}; fetch or export the model again"
    file.write_bytes(file.read_bytes()[:1000])
    assert f"init.path={tmp_path / 'stock'} cannot be read: " in refusal(config)
    (tmp_path / "stock" / "config.json").write_text("{")
    assert "is not a valid JSON file" in refusal(config, FileNotFoundError)


def test_damaged_heads_are_refused(run, tiny_config, tmp_path):
    folder = export(run, tmp_path / "export")
    (folder / "heads.safetensors").write_bytes(b"x" * 100)
    assert f"init.path={folder} cannot be read: " in refusal(tiny_config(f"init.path={folder}"))


def test_model_of_another_type_is_refused(tiny_config, tmp_path):
    settings = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    CLIPVisionModel(CLIPVisionConfig(**settings, image_size=32, patch_size=8)).save_pretrained(tmp_path / "clip")
    message = refusal(tiny_config(f"init.path={tmp_path / 'clip'}"))
    assert message.startswith(f"init.path={tmp_path / 'clip'} cannot be read: model_type='clip_vision_model'")
    assert message.endswith("; give a DINOv2 model that transformers loads")


# resuming


def test_resumed_run_needs_its_source_no_more_and_keeps_the_warm_up(run, tiny_config, tmp_path):
    """Killed in the warm-up of the heads; the source is then gone."""
    folder = export(run, tmp_path / "export")
    overrides = [f"init.path={folder}", "init.heads=false", "init.head_warmup_epochs=1.5", "train.checkpoint_epochs=1"]
    whole = train(tiny_config(*overrides, f"train.output_dir={tmp_path / 'whole'}"))
    config = tiny_config(*overrides, f"train.output_dir={tmp_path / 'parts'}")
    train(config, until=3)
    shutil.rmtree(folder)
    written = json.loads((Path(config.train.output_dir) / "checkpoints" / "step-00000002" / "run.json").read_text())
    assert written["head_warmup_steps"] == 3
    again = started(config)
    assert again.step == 2 and again.state.head_warmup_steps == 3
    scales = [again.schedules["backbone_lr_scale"][step] for step in range(6)]
    assert scales[:3] == [0.0] * 3 and scales[3] > 0
    again.run()
    assert_equal(tensors(again.objective), tensors(whole.objective))
    elsewhere = tiny_config(*overrides[1:], f"train.output_dir={tmp_path / 'parts'}")  # nor its name
    assert started(elsewhere).state.head_warmup_steps == 3
