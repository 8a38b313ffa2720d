import math

import pytest

from dinov2_hf.config import SourceConfig, load_config
from dinov2_hf.config.evaluations import FineGrainedEvaluation, LabeledSetConfig, LogisticEvaluation
from dinov2_hf.evaluation import evaluate_fine_grained, evaluate_logistic

from .coloured import COLORS, evaluation_of, images_of, saved


@pytest.fixture
def sets(tmp_path):
    """Three sets: of one label, of several, and one whose figure is the mean over classes."""
    shown = list(COLORS) * 10
    said = [["red", "green"] if name == "green" else [name] for name in shown]
    wrong = ["blue", "blue", *shown[2:]]
    paths = {
        "plain": saved(tmp_path / "plain", train=images_of(shown), test=images_of(shown, wrong, seed=1)),
        "several": saved(tmp_path / "several", train=images_of(shown, said), test=images_of(shown, said, seed=1)),
        "means": saved(tmp_path / "means", train=images_of(shown), test=images_of(shown[:4], wrong[:4], seed=1)),
    }
    # without a path of its own the test set is a split of the same
    table = {name: LabeledSetConfig(SourceConfig(path)) for name, path in paths.items()}
    table["means"].metric = "mean_per_class_accuracy"
    return paths, table


def test_every_set_has_the_figure_that_it_has_alone_and_the_last_is_their_mean(sets):
    paths, table = sets
    results = list(evaluate_fine_grained(evaluation_of(FineGrainedEvaluation, None, sets=table, c=[1.0, 10.0])))
    assert [result.dataset for result in results] == ["plain", "several", "means", "all sets"]
    kinds = ["accuracy", "mean_average_precision", "mean_per_class_accuracy"]
    assert [result.kind for result in results[:3]] == kinds
    assert [result.metric for result in results] == [f"{kind}_{name}" for kind, name in zip(kinds, paths)] + ["mean"]
    for result, path in zip(results, paths.values()):
        options = {"metric": "mean_per_class_accuracy"} if result.dataset == "means" else {}
        (alone,) = evaluate_logistic(evaluation_of(LogisticEvaluation, path, c=[1.0, 10.0], **options))
        assert (alone.value, alone.interval, alone.title) == (result.value, result.interval, result.title)
    assert results[-1].value == pytest.approx(sum(result.value for result in results[:3]) / 3)
    low = math.sqrt(sum((result.value - result.interval[0]) ** 2 for result in results[:3])) / 3
    assert results[-1].interval[0] == pytest.approx(results[-1].value - low)
    assert results[0].value == pytest.approx(100 * 28 / 30)


def test_a_set_that_cannot_be_learnt_is_named(sets, tmp_path):
    _, table = sets
    table["dull"] = LabeledSetConfig(
        SourceConfig(saved(tmp_path / "dull", train=images_of(["red"] * 9), test=images_of(["red"])))
    )
    with pytest.raises(ValueError, match="dull.*are of the class red"):
        list(evaluate_fine_grained(evaluation_of(FineGrainedEvaluation, None, sets=table, c=[1.0])))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ([], "sets is empty; give sets"),
        (["sets.pets.test.split=test"], "sets.pets.train.path is not set"),
        (["sets.pets.train.path=/pets", "sets.pets.metric=f1"], "sets.pets.metric='f1' is not one of"),
        (["sets.pets.train.path=/pets", "train.path=/pets"], "train.path='/pets' belongs to no set"),
        (["sets.pets.train.path=/pets", "test.path=/pets"], "test.path='/pets' belongs to no set"),
        (["sets.pets.train.pth=/pets"], "did you mean sets.pets.train.path"),
    ],
)
def test_impossible_settings_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides, FineGrainedEvaluation)
