import csv
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from dinov2_hf.config import SourceConfig
from dinov2_hf.config.evaluations import LinearEvaluation
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation import evaluate_linear
from dinov2_hf.evaluation.augmented import Draws, RandomCrops, augmented_updates
from dinov2_hf.evaluation.linear import Inputs, LinearHeads

from .coloured import COLORS, evaluation_of, images_of, saved

QUICK = dict(iterations=40, global_batch=16, learning_rates=[1e-3, 0.1, 1.0])


def trained_alone(weight, bias, rate, batches, iterations, several):
    """A head as a stock layer under the stock optimiser and scheduler."""
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.load_state_dict({"weight": weight, "bias": bias})
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, eta_min=0)
    for inputs, targets in batches:
        logits = layer(inputs)
        if several:
            loss = (
                nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").sum(1).mean()
            )
        else:
            loss = nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return layer


@pytest.mark.parametrize("several", [False, True])
def test_heads_trained_together_are_those_trained_alone(several):
    generator = torch.Generator().manual_seed(0)
    rates, iterations = [1e-4, 1e-2, 0.3, 2.0], 25
    heads = LinearHeads(6, 5, rates, iterations, generator)
    start = [heads.tensors(index) for index in range(len(rates))]
    batches = []
    for size in [8] * (iterations - 1) + [3]:
        labels = torch.randint(0, 5, (size,), generator=generator)
        flags = torch.rand(size, 5, generator=generator) < 0.4
        batches.append((torch.randn(size, 6, generator=generator), flags if several else labels))
    for step, (inputs, targets) in enumerate(batches):
        heads.update(inputs, targets, step)
    asked = torch.randn(7, 6, generator=generator)
    for index, rate in enumerate(rates):
        alone = trained_alone(start[index]["weight"], start[index]["bias"], rate, batches, iterations, several)
        found = heads.tensors(index)
        torch.testing.assert_close(found["weight"], alone.weight.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found["bias"], alone.bias.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(heads.scores(asked, index), alone(asked).detach(), rtol=1e-4, atol=1e-5)


def test_heads_start_from_a_normal_distribution_of_a_hundredth_each_its_own():
    heads = LinearHeads(400, 50, [0.1, 0.2], 1, torch.Generator().manual_seed(0))
    first, second = heads.tensors(0), heads.tensors(1)
    assert first["weight"].std() == pytest.approx(0.01, rel=0.02) and not first["bias"].any()
    assert not torch.equal(first["weight"], second["weight"])


def test_a_head_that_diverges_leaves_the_others_alone():
    together, alone = (
        LinearHeads(3, 2, rates, 5, torch.Generator().manual_seed(0)) for rates in ([1e-2, 1e38], [1e-2])
    )
    alone._weight[:, 0] = together._weight[:, 0]
    inputs, labels = torch.randn(8, 3) * 10, torch.randint(0, 2, (8,))
    for step in range(5):
        together.update(inputs, labels, step)
        alone.update(inputs, labels, step)
    torch.testing.assert_close(together.scores(inputs, 0), alone.scores(inputs, 0))
    assert torch.isfinite(together.scores(inputs, 1)).all()


def test_inputs_are_cls_of_the_last_blocks_and_the_mean_of_the_last_ones_patches():
    parts = {"cls": torch.arange(24.0).view(2, 4, 3), "mean": torch.tensor([[[50.0] * 3], [[60.0] * 3]])}
    assert Inputs(1, False).of(parts).tolist() == [[9, 10, 11], [21, 22, 23]]
    assert Inputs(1, True).of(parts).tolist() == [[9, 10, 11, 50, 50, 50], [21, 22, 23, 60, 60, 60]]
    assert Inputs(2, True).of(parts)[0].tolist() == [6, 7, 8, 9, 10, 11, 50, 50, 50]
    assert torch.equal(Inputs(4, False).of(parts), parts["cls"].flatten(1))


@pytest.fixture
def coloured(tmp_path):
    """Eight images of each colour to learn from, and a test set of which every sixth image is labelled wrong."""
    shown = list(COLORS) * 8
    said = [shown[index + 1] if index % 6 == 0 else name for index, name in enumerate(shown)]
    test = images_of(shown, said, seed=1)
    return saved(tmp_path / "set", train=images_of(shown), validation=images_of(shown, seed=2), test=test)


def test_probe_learns_what_can_be_learnt_and_says_which_head_did(coloured, tmp_path):
    output = tmp_path / "out"
    results = list(evaluate_linear(evaluation_of(LinearEvaluation, coloured, output=output, **QUICK)))
    keys = ["accuracy_1_cls", "accuracy_1_cls_mean", "accuracy_4_cls", "accuracy_4_cls_mean"]
    assert [result.metric for result in results] == ["accuracy", *keys]
    assert results[0].value == pytest.approx(100 * 20 / 24)  # every label that is right
    assert results[0].value == max(result.value for result in results)
    assert all(result.interval[0] < result.value < result.interval[1] for result in results)
    assert "best of 12 heads on the test set" in results[0].title
    rows = list(csv.DictReader(open(output / "heads.csv")))
    assert len(rows) == 12 and max(float(row["accuracy_test"]) for row in rows) == pytest.approx(
        results[0].value, abs=1e-4
    )
    assert {(row["blocks"], row["pooling"]) for row in rows} == {(b, p) for b in "14" for p in ("cls", "cls_mean")}
    with safe_open(output / "head.safetensors", "pt") as head:
        assert json.loads(head.metadata()["classes"]) == list(COLORS)
        assert head.metadata()["learning_rate"] in results[0].note and head.metadata()["inputs"] in results[0].note
        assert len(head.get_tensor("bias")) == 3


def test_head_is_chosen_on_the_validation_set_where_there_is_one(coloured, tmp_path):
    validation = SourceConfig(coloured, "validation")
    evaluation = evaluation_of(LinearEvaluation, coloured, output=tmp_path, validation=validation, **QUICK)
    best = next(iter(evaluate_linear(evaluation)))
    assert "best of 12 heads on the validation set" in best.title
    rows = list(csv.DictReader(open(tmp_path / "heads.csv")))
    assert max(float(row["accuracy_validation"]) for row in rows) == 100.0  # no label of the validation set is wrong
    assert best.value == pytest.approx(100 * 20 / 24)


def test_images_of_several_labels_get_the_mean_average_precision(tmp_path):
    shown = list(COLORS) * 6
    said = [["red", "green"] if name == "green" else [name] for name in shown]  # every green thing is red as well
    path = saved(tmp_path, train=images_of(shown, said), test=images_of(shown, said, seed=1))
    results = list(evaluate_linear(evaluation_of(LinearEvaluation, path, **QUICK)))
    assert results[0].metric == results[0].kind == "mean_average_precision" and results[0].value > 95
    assert results[0].interval[0] <= results[0].value <= results[0].interval[1]


def test_augmented_probe_learns_as_well_and_leaves_broken_images_out(tmp_path, caplog):
    shown = list(COLORS) * 8
    said = ["blue", *shown[1:]]  # the wrong one is broken
    path = saved(tmp_path, train=images_of(shown, said, broken=(0,)), test=images_of(shown, seed=1))
    results = list(evaluate_linear(evaluation_of(LinearEvaluation, path, augment=True, **QUICK)))
    assert results[0].value == 100.0
    assert "row 0" in caplog.text


def test_probe_through_the_backbone_is_that_of_cached_features_where_crops_are_the_same(coloured, monkeypatch):
    transform = EvalTransform(12, 8, [0.5] * 3, [0.25] * 3)
    monkeypatch.setattr(RandomCrops, "_crop", lambda self, data, rng: torch.from_numpy(transform.pixels(data)))
    cached, through = (
        [
            (result.title, result.value)
            for result in evaluate_linear(evaluation_of(LinearEvaluation, coloured, **options))
        ]
        for options in (QUICK, QUICK | {"augment": True})
    )
    assert cached == through


def test_every_epoch_reads_each_image_once_and_crops_follow_from_seed_epoch_and_image(coloured):
    draws = Draws(10, seed=3)
    rows, epochs = (sum((list(draws.update(n, 4)[part]) for n in range(5)), []) for part in (0, 1))
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10)) and rows[:10] != rows[10:]
    assert epochs == [0] * 10 + [1] * 10
    evaluation = evaluation_of(LinearEvaluation, coloured)
    images = evaluation.labeled(evaluation.config.train)
    crops = RandomCrops(images, (8, 8), 3, (0.08, 1.0), seed=0)
    assert torch.equal(crops[5, 2][0], crops[5, 2][0])
    assert not torch.equal(crops[5, 2][0], crops[5, 3][0])
    assert crops[-1, 0][1] == -1 and crops[5, 2][1] == 5


def test_shares_of_processes_are_the_whole_update(coloured):
    evaluation = evaluation_of(LinearEvaluation, coloured)
    images = evaluation.labeled(evaluation.config.train)

    class Process:
        def __init__(self, index):
            self.process_index, self.num_processes = index, 3

    def rows_of(accelerator):
        asked = replace(evaluation, accelerator=accelerator)
        found = [list(chunks) for chunks in augmented_updates(asked, images, range(4), 10, (0.08, 1.0))]
        return [torch.cat([rows for _, rows in chunks]).tolist() for chunks in found]

    parts = [rows_of(Process(index)) for index in range(3)]
    whole = [list(Draws(len(images), 0).update(number, 10)[0]) for number in range(4)]
    for number in range(4):
        assert {len(part[number]) for part in parts} == {4}  # as many forwards in every process
        assert sorted(row for part in parts for row in part[number] if row >= 0) == sorted(whole[number])


@pytest.mark.parametrize(
    "train, test, message",
    [
        (images_of(["red"] * 4), images_of(["red"] * 4), "all images of .* are of the class red"),
        (images_of(["red", "green"] * 2), images_of(list(COLORS)), "has none of: blue"),
        (images_of(list(COLORS)), images_of(list(COLORS), names=["blue", "green", "red"]), "differ"),
        (images_of(list(COLORS)), images_of(list(COLORS), [[name] for name in COLORS]), "lists of labels"),
        (images_of(list(COLORS)), images_of(list(COLORS), broken=range(3)), "no image of .* can be decoded"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(train, test, message, tmp_path):
    path = saved(tmp_path, train=train, test=test)
    with pytest.raises(ValueError, match=message):
        list(evaluate_linear(evaluation_of(LinearEvaluation, path, **QUICK)))


def test_metric_that_does_not_fit_the_labels_is_refused(coloured):
    with pytest.raises(ValueError, match="metric=mean_average_precision does not fit.*use accuracy or auto"):
        list(evaluate_linear(evaluation_of(LinearEvaluation, coloured, metric="mean_average_precision")))


def test_more_blocks_than_there_are_are_refused_naming_how_many(coloured):
    with pytest.raises(ValueError, match=r"blocks=\[1, 5\] of a model of 4 blocks; use values up to 4"):
        list(evaluate_linear(evaluation_of(LinearEvaluation, coloured, blocks=[1, 5])))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rates": []}, r"learning_rates=\[\] leaves no head"),
        ({"learning_rates": [0.0]}, "learning_rates=0.0 is not positive"),
        ({"blocks": [0]}, "blocks=0 is below 1"),
        ({"pooling": ["max"]}, "pooling='max' is not one of cls, cls_mean"),
        ({"metric": "f1"}, "metric='f1' is not one of"),
        ({"iterations": 0}, "iterations=0 is not positive"),
        ({"crop_scale": [0.5, 0.2]}, "crop_scale"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LinearEvaluation(**options).check()


def test_published_grid_has_fifty_two_heads():
    config = LinearEvaluation()
    assert len(config.learning_rates) * len(config.blocks) * len(config.pooling) == 52
    assert config.iterations == 12_500
