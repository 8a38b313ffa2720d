import numpy as np
import pytest
import torch

from dinov2_hf.evaluation.metrics import Accuracy


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
