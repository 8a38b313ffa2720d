import numpy as np
import pytest
import torch

from dinov2_hf.evaluation.metrics import Accuracy, MeanAveragePrecision, MeanPerClassAccuracy, average_precision


@pytest.mark.parametrize(
    "predictions, references, percent",
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 100.0),
        ([1, 2, 3, 4], [1, 2, 3, 0], 75.0),
        ([0, 0, 0], [1, 1, 1], 0.0),
        ([0, 1, 2], [0, 2, 1], 100 / 3),
        ([7], [7], 100.0),
    ],
)
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_accuracy_is_the_share_of_equal_pairs_in_percent(predictions, references, percent, kind):
    result = Accuracy().compute(predictions=kind(predictions), references=kind(references))
    assert result == {"accuracy": pytest.approx(percent)}
    assert isinstance(result["accuracy"], float)


def test_accuracy_of_batches_equals_that_of_the_whole():
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 3, (2, 100))
    metric = Accuracy()
    for start in range(0, 100, 30):
        metric.add_batch(predictions=predictions[start : start + 30], references=references[start : start + 30])
    whole = Accuracy().compute(predictions=predictions, references=references)
    assert metric.compute() == whole == {"accuracy": pytest.approx(100 * (predictions == references).mean())}


def test_two_accuracies_at_once_do_not_mix():
    first, second = Accuracy(), Accuracy()
    first.add_batch(predictions=[1, 1], references=[1, 1])
    second.add_batch(predictions=[0, 0], references=[1, 1])
    assert first.compute() == {"accuracy": 100.0}
    assert second.compute() == {"accuracy": 0.0}


def test_predictions_without_references_are_refused():
    with pytest.raises(ValueError):
        Accuracy().compute(predictions=[1, 2, 3], references=[1, 2])


def test_mean_per_class_accuracy_counts_every_class_the_same():
    # class 0: 3 of 4, class 1: 0 of 1, class 2: 1 of 1; class 7 is no reference and does not count
    result = MeanPerClassAccuracy().compute(predictions=[0, 0, 0, 7, 0, 2], references=[0, 0, 0, 0, 1, 2])
    assert result == {"mean_per_class_accuracy": pytest.approx(100 * (0.75 + 0 + 1) / 3)}


def test_average_precision_is_the_mean_of_the_precision_at_each_positive():
    scores, relevant = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 0, 1], dtype=bool)
    assert average_precision(scores, relevant) == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)


def test_equal_scores_are_one_threshold_whatever_their_order():
    scores = np.array([0.5, 0.5, 0.5, 0.1])
    for relevant in ([1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1]):
        assert average_precision(scores, np.array(relevant, dtype=bool)) == pytest.approx((1 / 3 + 2 / 4) / 2)


@pytest.mark.parametrize("levels", [1000, 5])
def test_mean_average_precision_equals_that_of_scikit_learn(levels):
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    scores, flags = rng.integers(0, levels, (60, 4)) / levels, rng.random((60, 4)) < 0.3
    expected = np.mean([average_precision_score(flags[:, c], scores[:, c]) for c in range(4)])
    result = MeanAveragePrecision().compute(predictions=scores, references=flags)
    assert result == {"mean_average_precision": pytest.approx(100 * expected)}


def test_classes_without_a_positive_do_not_count():
    scores, flags = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[True, False], [False, False]])
    assert MeanAveragePrecision().compute(predictions=scores, references=flags) == {"mean_average_precision": 100.0}
