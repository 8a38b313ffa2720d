import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from dinov2_hf.config import SourceConfig
from dinov2_hf.config.evaluations import LogisticEvaluation
from dinov2_hf.evaluation import evaluate_logistic
from dinov2_hf.evaluation.logistic import LogisticClassifier

from .coloured import COLORS, evaluation_of, images_of, saved

QUICK = dict(c=[1e-4, 1.0, 100.0])


def problem(num_classes, count=60, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    return torch.randn(count, width, generator=generator) + torch.randn(num_classes, width, generator=generator)[
        labels
    ], labels


def penalised(weight, bias, features, labels, c):
    """The objective, in float64: the sum of the cross-entropies and the penalty of the weights."""
    logits = features.double() @ weight + bias
    return float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum") + weight.square().sum() / (2 * c))


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_fit_minimises_the_penalised_cross_entropy(c):
    features, labels = problem(3)
    fitted = LogisticClassifier.fit(features, labels, 3, c)
    assert fitted.converged

    def objective(flat):
        flat = torch.from_numpy(flat)
        return penalised(flat[:12].view(4, 3), flat[12:], features, labels, c)

    # a slow twin, by another method that is not told the gradient
    naive = minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-7})
    assert penalised(fitted.weight, fitted.bias, features, labels, c) == pytest.approx(naive.fun, rel=1e-7)
    torch.testing.assert_close(fitted.weight.flatten(), torch.from_numpy(naive.x[:12]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_decide_as_the_plain_regression_of_scikit_learn(num_classes):
    features, labels = problem(num_classes)
    plain = LogisticRegression(C=0.3, tol=1e-12, max_iter=1000).fit(features.double().numpy(), labels.numpy())
    scores = LogisticClassifier.fit(features, labels, num_classes, 0.3)(features)
    assert scores.argmax(dim=1).tolist() == plain.predict(features.double().numpy()).tolist()
    shares = scores.softmax(dim=1)[:, 1] if num_classes > 2 else scores[:, 1].sigmoid()
    np.testing.assert_allclose(shares, plain.predict_proba(features.double().numpy())[:, 1], atol=1e-8)


def test_classes_without_an_image_are_never_given():
    features, labels = problem(2)
    labels = labels * 2 + 1  # classes 1 and 3 of five
    scores = LogisticClassifier.fit(features, labels, 5, 1.0)(features)
    assert set(scores.argmax(dim=1).tolist()) == {1, 3}
    assert torch.isneginf(scores[:, [0, 2, 4]]).all()


def test_flags_are_a_regression_for_each_class():
    features, labels = problem(3)
    flags = torch.stack((labels == 0, labels > 0, torch.zeros(60, dtype=bool), torch.ones(60, dtype=bool)), dim=1)
    scores = LogisticClassifier.fit(features, flags, 4, 1.0)(features)
    for column in (0, 1):
        alone = LogisticRegression(C=1.0, tol=1e-12, max_iter=1000).fit(
            features.double().numpy(), flags[:, column].numpy()
        )
        np.testing.assert_allclose(scores[:, column], alone.decision_function(features.double().numpy()), atol=1e-8)
    assert torch.isneginf(scores[:, 2]).all() and torch.isposinf(scores[:, 3]).all()


def test_a_fit_that_stops_early_says_so():
    features, labels = problem(3)
    assert not LogisticClassifier.fit(features, labels, 3, 1e5, max_iterations=2).converged


@pytest.fixture
def coloured(tmp_path):
    """Ten images of each colour to learn from, and a test set of which every sixth image is labelled wrong."""
    shown = list(COLORS) * 10
    said = [shown[index + 1] if index % 6 == 0 else name for index, name in enumerate(shown)]
    return saved(
        tmp_path / "set",
        train=images_of(shown),
        validation=images_of(shown, seed=2),
        test=images_of(shown, said, seed=1),
    )


@pytest.mark.parametrize("with_validation", [False, True])
def test_regression_learns_what_can_be_learnt(coloured, with_validation):
    options = {"validation": SourceConfig(coloured, "validation")} if with_validation else {}
    (result,) = evaluate_logistic(evaluation_of(LogisticEvaluation, coloured, **QUICK, **options))
    assert result.metric == "accuracy" and result.value == pytest.approx(100 * 25 / 30)
    assert result.interval[0] < result.value < result.interval[1]
    assert result.title == "logistic accuracy (%)" and result.note.startswith("C = ")


def test_penalty_is_the_strongest_of_those_with_the_best_figure_on_the_validation_set(tmp_path):
    shown = [*COLORS] * 6 + ["blue"]
    wrong = ["green" if name == "red" else "red" if name == "green" else name for name in shown]
    # nothing is learnt under the strongest penalty: that is best where what could be learnt is wrong
    for name, said, expected in (("right", shown, "C = 0.01"), ("wrong", wrong, "C = 1e-09")):
        splits = dict(train=images_of(shown), validation=images_of(shown, said, seed=2), test=images_of(shown, seed=1))
        path = saved(tmp_path / name, **splits)
        options = {"validation": SourceConfig(path, "validation"), "c": [1.0, 0.01, 1e-9, 100.0]}
        (result,) = evaluate_logistic(evaluation_of(LogisticEvaluation, path, **options))
        assert expected in result.note, (name, result.note)


def test_final_regression_learns_from_the_validation_images_too(tmp_path):
    # one red image that looks blue in train; the validation set has many: together they decide
    train = images_of(["red", "green", "blue"] * 4)
    validation = images_of(["blue", "green"] * 30, ["red", "green"] * 30, seed=1)
    path = saved(tmp_path, train=train, validation=validation, test=images_of(["blue"] * 5, ["red"] * 5, seed=2))
    evaluation = evaluation_of(LogisticEvaluation, path, c=[0.1], validation=SourceConfig(path, "validation"))
    (result,) = evaluate_logistic(evaluation)
    assert result.value == 100.0


def test_images_of_several_labels_get_the_mean_average_precision(tmp_path):
    shown = list(COLORS) * 10
    said = [["red", "green"] if name == "green" else [name] for name in shown]
    path = saved(tmp_path, train=images_of(shown, said), test=images_of(shown, said, seed=1))
    (result,) = evaluate_logistic(evaluation_of(LogisticEvaluation, path, **QUICK))
    assert result.metric == "mean_average_precision" and result.value > 95
    assert result.interval[0] <= result.value <= result.interval[1]


def test_mean_per_class_accuracy_counts_each_class_once(tmp_path):
    shown = list(COLORS) * 10
    # 12 red images, all wrong; one green and one blue, both right
    test = images_of(["green"] * 12 + ["green", "blue"], ["red"] * 12 + ["green", "blue"], seed=1)
    path = saved(tmp_path, train=images_of(shown), test=test)
    (result,) = evaluate_logistic(evaluation_of(LogisticEvaluation, path, metric="mean_per_class_accuracy", **QUICK))
    assert result.value == pytest.approx(200 / 3) and result.kind == "mean_per_class_accuracy"
    assert result.interval[0] <= result.value <= result.interval[1]


def test_too_few_images_to_hold_some_out_are_refused_naming_the_remedy(tmp_path):
    path = saved(tmp_path, train=images_of(list(COLORS) * 3), test=images_of(list(COLORS)))
    with pytest.raises(ValueError, match="9 images, too few to hold out a tenth; give validation.path"):
        list(evaluate_logistic(evaluation_of(LogisticEvaluation, path, **QUICK)))


def test_published_grid_has_forty_five_values():
    config = LogisticEvaluation()
    assert np.allclose(config.c, 10 ** np.linspace(-6, 5, 45)) and config.max_iterations == 1000
