import io
import json
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTModel

from dinov2_hf.backbones import Dinov2Config, Dinov2Model, StockBackbone
from dinov2_hf.config.evaluations import FinetuneEvaluation
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation import evaluate_finetune, finetune
from dinov2_hf.evaluation.classifier import Classifier
from dinov2_hf.evaluation.finetune import CHECKPOINT_FILE, learning_rate
from dinov2_hf.features import FeatureExtractor

from .coloured import COLORS, evaluation_of, images_of, saved

QUICK = dict(
    epochs=3, warmup_epochs=1, global_batch=8, learning_rate=0.05, layer_decay=0.8, resize_size=20, crop_size=16
)


def tiny(registers=0):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        image_size=16,
        num_register_tokens=registers,
    )
    return Dinov2Model(config)


def backbone_of(network):
    return FeatureExtractor.of(network, EvalTransform(20, 16, [0.5] * 3, [0.25] * 3))


@pytest.fixture
def coloured(tmp_path):
    shown = list(COLORS) * 8
    return saved(tmp_path / "set", train=images_of(shown, broken=(3,)), test=images_of(shown, seed=1))


def evaluation(path, output=None, network=None, **options):
    return evaluation_of(FinetuneEvaluation, path, backbone_of(network or tiny()), output, **(QUICK | options))


@pytest.mark.parametrize("registers", [0, 4])
def test_finetuned_model_is_one_that_stock_transformers_loads_with_the_same_figure(coloured, registers, tmp_path):
    asked = evaluation(coloured, tmp_path / "out", tiny(registers))
    before = {name: value.clone() for name, value in asked.backbone.module.state_dict().items()}
    last, best = evaluate_finetune(asked)
    assert [last.metric, best.metric] == ["accuracy", "accuracy_best"] and best.value >= last.value > 60
    assert last.interval[0] <= last.value <= last.interval[1]
    for name, value in asked.backbone.module.state_dict().items():
        assert torch.equal(value, before[name])  # a copy was trained
    folder = tmp_path / "out" / "model"
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    assert "transformers" in type(model).__module__ and model.config.id2label == dict(enumerate(COLORS))
    test = asked.labeled(asked.config.test, "test")
    right = 0
    for row in range(len(test)):
        image = Image.open(io.BytesIO(test.read(row)[0]))
        with torch.no_grad():
            right += int(model(**processor(image, return_tensors="pt")).logits.argmax() == test.labels[row])
    assert 100 * right / len(test) == pytest.approx(last.value)
    assert not (tmp_path / "out" / CHECKPOINT_FILE).exists()


def figures_of(results):
    return [(result.metric, result.value) for result in results]


def test_run_that_was_killed_goes_on_to_the_same_weights(coloured, tmp_path, monkeypatch):
    whole = figures_of(evaluate_finetune(evaluation(coloured, tmp_path / "whole", drop_path_rate=0.3)))
    save, calls = finetune._Run.save, []

    def save_and_die(self, epochs):
        save(self, epochs)
        calls.append(epochs)
        if epochs == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune._Run, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        list(evaluate_finetune(evaluation(coloured, tmp_path / "parts", drop_path_rate=0.3)))
    torch.manual_seed(99)
    again = figures_of(evaluate_finetune(evaluation(coloured, tmp_path / "parts", drop_path_rate=0.3)))
    assert calls == [1, 2, 3] and again == whole
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_checkpoint_of_other_settings_is_refused_naming_the_key(coloured, tmp_path, monkeypatch):
    def stop(self, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(self, epoch)

    train_epoch = finetune._Run.train_epoch
    monkeypatch.setattr(finetune._Run, "train_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        list(evaluate_finetune(evaluation(coloured, tmp_path)))
    assert (tmp_path / CHECKPOINT_FILE).is_file()
    with pytest.raises(ValueError, match="written with learning_rate=0.05, and this is learning_rate=0.01"):
        list(evaluate_finetune(evaluation(coloured, tmp_path, learning_rate=0.01)))
    other = tiny()
    other.layernorm.bias.data += 1
    with pytest.raises(ValueError, match="weights"):
        list(evaluate_finetune(evaluation(coloured, tmp_path, network=other)))


def test_checkpoint_of_release_0_5_is_read(coloured, tmp_path):
    asked = evaluation(coloured, tmp_path)
    train = asked.labeled(asked.config.train, "train")
    run = finetune._Run(asked, train)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(1)
    run.save(2)
    saved = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)
    saved["model"] = {name.replace("backbone.", "backbone.model."): value for name, value in saved["model"].items()}
    saved["settings"]["train"]["path"] = os.path.relpath(asked.config.train.path)  # as a config in that folder had it
    torch.save(saved, tmp_path / CHECKPOINT_FILE)
    again = finetune._Run(asked, train)
    assert again.resume() == 2
    for mine, theirs in zip(again.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_size_of_forwards_does_not_change_what_is_trained(coloured, tmp_path):
    # without stochastic depth, which draws its samples for each forward
    weights = []
    for batch_size in (8, 3):
        options = dict(drop_path_rate=0.0, batch_size=batch_size, epochs=2)
        list(evaluate_finetune(evaluation(coloured, tmp_path / str(batch_size), **options)))
        model = AutoModelForImageClassification.from_pretrained(tmp_path / str(batch_size) / "model")
        weights.append(model.classifier.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-3, rtol=1e-2)


def test_first_update_is_that_of_stock_adamw_on_the_naive_loss(coloured):
    """One update of one epoch without warm-up, against a plain forward over the same crops, one by one."""
    asked = evaluation(coloured, epochs=1, warmup_epochs=0, global_batch=24, drop_path_rate=0.0, weight_decay=0.1)
    train = asked.labeled(asked.config.train)
    run = finetune._Run(asked, train)
    naive = Classifier(asked.backbone.module, 3, 0.0, torch.Generator().manual_seed(0))
    groups = naive.groups(asked.config.layer_decay, 0.1)
    rate = 0.05 * 24 / 512
    optimizer = torch.optim.AdamW([group | {"lr": rate * group["lr_multiplier"]} for group in groups])
    ((chunks,),) = (list(finetune.augmented_updates(asked, train, range(1), 24, (0.08, 1.0))),)
    losses = []
    for pixels, rows in chunks:
        for image, row in zip(pixels, rows):
            if row >= 0:
                target = torch.full((3,), 0.1 / 3)
                target[train.labels[row]] += 0.9
                losses.append(-(naive(image[None]).log_softmax(1)[0] * target).sum())
    assert len(losses) == 23  # one image is broken
    (torch.stack(losses).sum() / 24).backward()
    optimizer.step()
    run.train_epoch(0)
    for (name, value), expected in zip(run.model.named_parameters(), naive.parameters()):
        if not name.endswith("key.bias"):  # has no gradient but rounding noise, which AdamW scales up
            torch.testing.assert_close(value, expected, atol=2e-6, rtol=1e-3)


def test_learning_rates_fall_by_block_and_vectors_do_not_decay():
    model = Classifier(tiny(4), 3, 0.0, torch.Generator())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)].removeprefix("backbone."): (group["lr_multiplier"], group["weight_decay"])
        for group in model.groups(0.5, 0.1)
        for parameter in group["params"]
    }
    assert found["classifier.weight"] == (1, 0.1) and found["classifier.bias"] == (1, 0)
    assert found["layernorm.weight"] == (1, 0)
    assert found["encoder.layer.1.mlp.fc1.weight"] == (0.5, 0.1) and found["encoder.layer.1.norm1.weight"] == (0.5, 0)
    assert found["encoder.layer.0.layer_scale1.lambda1"] == (0.25, 0)
    assert found["embeddings.patch_embeddings.projection.weight"] == (0.125, 0.1)
    for name in ("cls_token", "register_tokens", "position_embeddings"):
        assert found[f"embeddings.{name}"] == (0.125, 0)
    assert len(found) == len(list(model.parameters()))


def test_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    config = FinetuneEvaluation(epochs=10, warmup_epochs=2, learning_rate=1e-3, global_batch=256)
    rates = [learning_rate(config, update, 5) for update in range(50)]
    assert max(rates) == rates[10] == pytest.approx(5e-4)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[0] == pytest.approx(5e-4 / 11) and rates[30] == pytest.approx(2.5e-4) and rates[-1] < 1e-6


def test_several_labels_train_with_a_loss_for_each_class(tmp_path):
    shown = list(COLORS) * 6
    said = [["red", "green"] if name == "green" else [name] for name in shown]
    path = saved(tmp_path / "set", train=images_of(shown, said), test=images_of(shown, said, seed=1))
    last, _ = evaluate_finetune(evaluation(path, tmp_path))
    assert last.kind == "mean_average_precision" and last.value > 60
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["problem_type"] == "multi_label_classification"


def test_other_vision_transformers_are_finetuned_but_not_kept(coloured, tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    last, _ = evaluate_finetune(evaluation(coloured, tmp_path, StockBackbone(ViTModel(config)), epochs=2))
    assert last.value > 30 and not (tmp_path / "model").exists()


def test_backbone_in_a_training_run_is_refused_naming_the_remedy(coloured):
    asked = evaluation(coloured)
    asked.backbone = replace(asked.backbone, module=None, name="the teacher")
    with pytest.raises(ValueError, match="the teacher is in a training run.*fine-tune one of its checkpoints"):
        list(evaluate_finetune(asked))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 5}, "warmup_epochs=5.0 is not below epochs=5"),
        ({"layer_decay": 1.5}, "layer_decay=1.5"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not positive"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FinetuneEvaluation(**options).check()
