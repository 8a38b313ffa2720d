import io
import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List
from PIL import Image as Pillow

from dinov2_hf.config import SourceConfig
from dinov2_hf.config.evaluations import KnnEvaluation
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation import Evaluation, evaluate_knn, find_evaluator, run_evaluator, weighted_knn
from dinov2_hf.evaluation.datasets import LabeledImages
from dinov2_hf.features import FeatureExtractor

REFERENCES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0], [-2.0, 0.0]])  # cosines to (1, 0): 1, 0, 0.6, -1
LABELS = torch.tensor([0, 1, 1, 2])
QUERY = torch.tensor([[5.0, 0.0]])


def shares(scores):
    return scores / scores.sum(dim=1, keepdim=True)


def test_votes_are_those_computed_by_hand():
    scores = weighted_knn(QUERY, REFERENCES, LABELS, 4, k=3, temperature=0.5)
    # the three nearest vote with exp(cosine / 0.5); the fourth, of class 2, does not, and nobody is of class 3
    votes = torch.tensor([[math.exp(2), math.exp(0) + math.exp(1.2), 0, 0]])
    torch.testing.assert_close(shares(scores), shares(votes))


def test_temperature_decides_between_the_nearest_and_the_many():
    for temperature, winner in ((0.5, 0), (5.0, 1)):
        assert weighted_knn(QUERY, REFERENCES, LABELS, 3, k=3, temperature=temperature).argmax() == winner


def test_one_neighbour_decides_alone():
    queries = torch.tensor([[5.0, 0.1], [0.1, 1.0], [0.5, 0.7], [-1.0, 0.1]])
    scores = weighted_knn(queries, REFERENCES, LABELS, 3, k=1)
    assert scores.argmax(dim=1).tolist() == [0, 1, 1, 2]
    assert ((scores > 0).sum(dim=1) == 1).all()


@pytest.mark.parametrize("k", [4, 5, 1000])
def test_all_references_vote_where_k_is_larger_than_their_number(k):
    scores = weighted_knn(QUERY, REFERENCES, LABELS, 3, k=k, temperature=0.5)
    votes = torch.tensor([[math.exp(2), math.exp(0) + math.exp(1.2), math.exp(-2)]])
    torch.testing.assert_close(shares(scores), shares(votes))


def test_lengths_of_features_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    queries, references = torch.randn(20, 8, generator=generator), torch.randn(50, 8, generator=generator)
    labels = torch.randint(0, 5, (50,), generator=generator)
    lengths = torch.rand(50, 1, generator=generator) * 100 + 0.01
    expected = weighted_knn(queries, references, labels, 5, k=7)
    torch.testing.assert_close(weighted_knn(queries * 1e3, references * lengths, labels, 5, k=7), expected)


def test_order_of_references_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    queries, references = torch.randn(20, 8, generator=generator), torch.randn(50, 8, generator=generator)
    labels = torch.randint(0, 5, (50,), generator=generator)
    order = torch.randperm(50, generator=generator)
    expected = weighted_knn(queries, references, labels, 5, k=7)
    torch.testing.assert_close(weighted_knn(queries, references[order], labels[order], 5, k=7), expected)


def test_scores_equal_the_naive_ones_over_several_chunks():
    generator = torch.Generator().manual_seed(0)
    queries, references = torch.randn(2100, 4, generator=generator), torch.randn(30, 4, generator=generator)
    labels = torch.randint(0, 3, (30,), generator=generator)
    scores = weighted_knn(queries, references, labels, 3, k=5, temperature=0.07)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None].double(), references[None].double(), dim=2)
    expected = torch.zeros(len(queries), 3, dtype=torch.float64)
    for row, values in zip(expected, cosines, strict=True):
        for index in values.argsort(descending=True)[:5]:
            row[labels[index]] += math.exp((values[index] - 1) / 0.07)
    torch.testing.assert_close(shares(scores).double(), shares(expected), rtol=1e-4, atol=1e-5)


def test_low_temperatures_and_half_precision_do_not_overflow():
    scores = weighted_knn(QUERY.half(), REFERENCES.half(), LABELS, 3, temperature=1e-3)
    assert torch.isfinite(scores).all() and scores.dtype == torch.float32
    assert scores.argmax() == 0


COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


def images_of(names, truth, broken=()):
    """A set with an image in the colour of each of `names`, labelled as `truth`."""
    rng = np.random.default_rng(0)
    values = []
    for index, name in enumerate(names):
        buffer = io.BytesIO()
        pixels = np.array(COLORS[name]) + rng.integers(-20, 20, (12, 16, 3))
        Pillow.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        values.append({"bytes": b"a text" if index in broken else buffer.getvalue(), "path": None})
    label = ClassLabel(names=list(COLORS))
    features = Features({"image": Image(), "label": List(label) if isinstance(truth[0], list) else label})
    return Dataset.from_dict({"image": values, "label": truth}, features=features)


def figures(folder, reference, query, function=None, run=None, **options):
    """What the evaluator yields, by the key of each figure, with an evaluation over the mean colours of images.

    Or what `run` makes of it.
    """
    DatasetDict(train=reference, validation=query).save_to_disk(folder)
    config = KnnEvaluation(
        train=SourceConfig(path=str(folder)),
        test=SourceConfig(path=str(folder), split="validation"),
        resize_size=12,
        crop_size=8,
        batch_size=4,
        num_workers=0,
        **options,
    )
    transform = EvalTransform(12, 8, [0.5] * 3, [0.25] * 3)
    backbone = FeatureExtractor(function or mean_color, transform, 3, 8, 1, torch.device("cpu"))
    evaluation = Evaluation(backbone, config, Accelerator(cpu=True))
    if run:
        return run(find_evaluator("knn"), evaluation)
    return {result.metric: result for result in evaluate_knn(evaluation)}


def mean_color(images, count):
    return [(images.mean(dim=(2, 3)), images[:, :, :1, :1])] * count


@pytest.mark.parametrize("wrong, percent", [(0, 100.0), (1, 80.0), (5, 0.0)])
def test_accuracy_is_the_share_of_queries_that_agree_with_their_neighbours(wrong, percent, tmp_path):
    reference = images_of(list(COLORS) * 3, ["red", "green", "blue"] * 3)
    shown = ["red", "green", "blue", "red", "green"]
    said = ["blue" if name == "red" else "red" for name in shown[:wrong]] + shown[wrong:]
    found = figures(tmp_path, reference, images_of(shown, said), k=[3, 1])
    assert {name: result.value for name, result in found.items()} == {"accuracy_k3": percent, "accuracy_k1": percent}
    assert found["accuracy_k3"].title == "k-NN accuracy (%), k = 3" and found["accuracy_k3"].kind == "accuracy"
    low, high = found["accuracy_k3"].interval
    assert low <= percent <= high and high - low > 30  # five queries do not tell much


def test_few_shot_accuracy_is_the_mean_over_draws_of_so_many_references_a_class(tmp_path):
    # half of the references of each class are wrong: one drawn of each class is right in half of the cases
    names = ["red", "green", "blue"] * 8
    said = [
        name if index < 12 else {"red": "green", "green": "blue", "blue": "red"}[name]
        for index, name in enumerate(names)
    ]
    found = figures(tmp_path, images_of(names, said), images_of(names, names), k=[1], per_class=[1, 24], tries=40)
    assert set(found) == {"accuracy_k1", "accuracy_1_per_class_k1", "accuracy_24_per_class_k1"}
    assert 20 < found["accuracy_1_per_class_k1"].value < 80
    # all references are there in every draw
    assert found["accuracy_24_per_class_k1"].value == pytest.approx(found["accuracy_k1"].value)
    again = figures(tmp_path / "again", images_of(names, said), images_of(names, names), k=[1], per_class=[1], tries=40)
    assert again["accuracy_1_per_class_k1"] == found["accuracy_1_per_class_k1"]


def test_images_of_several_labels_get_the_mean_average_precision_of_the_votes(tmp_path):
    shown = list(COLORS) * 3
    several = [[name, "green"] if name != "green" else ["green"] for name in shown]
    found = figures(tmp_path, images_of(shown, several), images_of(shown, several), k=[3])
    assert {name: result.value for name, result in found.items()} == {"mean_average_precision_k3": 100.0}


def test_broken_images_do_not_count(tmp_path):
    reference = images_of(list(COLORS) * 2, ["red", "green", "blue"] * 2, broken=(0,))
    query = images_of(["red", "green", "blue"], ["red", "red", "blue"], broken=(1,))  # the wrong one is broken
    assert figures(tmp_path, reference, query, k=[1])["accuracy_k1"].value == 100.0


def test_broken_images_are_counted_and_listed_beside_the_figures(tmp_path):
    """Of a second evaluation too, which finds the features of the others in the cache."""
    reference, query = (images_of(list(COLORS) * 2, list(COLORS) * 2, broken=rows) for rows in ((0, 4), (2,)))
    output, reports = tmp_path / "output", []
    for _ in range(2):
        report = figures(
            tmp_path / "set", reference, query, run=run_evaluator, k=[1], cache_dir=str(tmp_path / "cache")
        )
        report.save(output)
        assert len(report.broken) == json.loads((output / "results.json").read_text())["broken"] == 3
        reports.append((output / "broken.txt").read_text())
    assert reports[0] == reports[1]
    lines = [line.split("\t") for line in reports[0].splitlines()]
    assert [(kind, name.split()[:2], reason) for kind, name, reason in lines] == [
        ("image", ["row", row], "6 bytes that are not an image") for row in ("0", "2", "4")
    ]


def test_sets_without_a_readable_image_are_refused(tmp_path):
    whole, broken = images_of(["red"], ["red"]), images_of(["red"], ["red"], broken=(0,))
    with pytest.raises(ValueError, match="no image of .*split 'validation'. can be decoded"):
        figures(tmp_path, whole, broken)


def test_sets_of_different_classes_are_refused_naming_both(tmp_path):
    reference = images_of(["red"], ["red"])
    query = reference.cast_column("label", ClassLabel(names=["rot", "grün", "blau"]))
    with pytest.raises(ValueError) as caught:
        figures(tmp_path, reference, query)
    assert "red, green, blue" in str(caught.value) and "rot, grün, blau" in str(caught.value)


def test_unknown_split_of_queries_is_refused(tmp_path):
    DatasetDict(train=images_of(["red"], ["red"])).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="split='validation'.*it has train"):
        LabeledImages(SourceConfig(path=str(tmp_path / "set"), split="validation"))
