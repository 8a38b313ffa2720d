import io
import logging
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow

from dinov2_hf.config import SourceConfig, load_config
from dinov2_hf.config.evaluations import RetrievalEvaluation
from dinov2_hf.data.decode import open_image
from dinov2_hf.evaluation import evaluate_retrieval
from dinov2_hf.evaluation.descriptors import BoxedImages, PlainImages, Whitening, WholeTransform, describe
from dinov2_hf.evaluation.metrics import GlobalAveragePrecision, RetrievalPrecision
from dinov2_hf.evaluation.metrics.retrieval import average_precision_of_places, global_average_precision, precision_at
from dinov2_hf.evaluation.retrieval import Truth, rank
from dinov2_hf.features import FeatureExtractor

from .coloured import COLORS, evaluation_of, images_of, saved

NAMES = list(COLORS)

# ---- metrics


@pytest.mark.parametrize(
    "places, total, expected",
    [
        ([0], 1, 1.0),
        ([1], 1, (0 / 1 + 1 / 2) / 2),  # the trapezoid starts at the precision before: nothing of one
        ([0, 2], 2, (1 + (1 / 2 + 2 / 3) / 2) / 2),
        ([0, 1, 4], 3, (1 + 1 + (2 / 4 + 3 / 5) / 2) / 3),
        ([0], 2, 0.5),  # one of two is never found
        ([], 2, 0.0),
    ],
)
def test_average_precision_is_the_area_by_trapezoids(places, total, expected):
    assert average_precision_of_places(places, total) == pytest.approx(expected)


@pytest.mark.parametrize(
    "places, k, expected",
    [
        ([0, 2, 7], 1, 1.0),
        ([0, 2, 7], 5, 2 / 5),
        ([0, 2, 7], 10, 3 / 8),
        ([1], 10, 1 / 2),
        ([0], 10, 1.0),
        ([9], 5, 0.0),
    ],
)
def test_precision_counts_up_to_the_last_relevant_image(places, k, expected):
    assert precision_at(places, k) == pytest.approx(expected)


def test_queries_without_a_relevant_image_do_not_count():
    result = RetrievalPrecision().compute(predictions=[[0], [], [1]], references=[1, 0, 1], k=[1])
    assert result == {"mean_average_precision": pytest.approx(62.5), "mean_precision_at_1": pytest.approx(50.0)}
    empty = RetrievalPrecision().compute(predictions=[[]], references=[0])
    assert all(np.isnan(value) for value in empty.values()) and len(empty) == 4


def test_global_precision_is_that_of_one_list_of_all_answers():
    confidences, correct = np.array([0.9, 0.5, 0.8, 0.7]), np.array([True, True, False, True])
    expected = (1 / 1 + 2 / 3 + 3 / 4) / 4  # one of four was not answered right
    assert global_average_precision(confidences, correct, 4) == pytest.approx(expected)
    result = GlobalAveragePrecision().compute(predictions=confidences, references=correct, total=4)
    assert result == {"global_average_precision": pytest.approx(100 * expected)}
    # two answers of one confidence are one threshold, whatever their order
    for order in ([0, 1], [1, 0]):
        assert global_average_precision(np.ones(2), np.array([True, False])[order], 1) == pytest.approx(0.5)
    assert np.isnan(global_average_precision(confidences, correct, 0))


# ---- ranking


def naive_places(cosines, relevant, junk):
    order = [row for row in sorted(range(len(cosines)), key=lambda row: -cosines[row]) if row not in set(junk)]
    return [order.index(row) for row in relevant], order


def test_ranking_equals_the_naive_one_without_junk(monkeypatch):
    monkeypatch.setattr("dinov2_hf.evaluation.retrieval._CHUNK", 100)  # several chunks
    rng = np.random.default_rng(0)
    queries, database = (
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 4))).float()) for n in (17, 30)
    )
    # of ten bits, so that no sum of products is rounded and chunks of any size give the same cosines
    queries, database = ((vectors * 1024).round() / 1024 for vectors in (queries, database))
    setups = {}
    for name in ("easy", "hard"):
        rows = [rng.permutation(30) for _ in queries]
        setups[name] = [
            Truth(row[: rng.integers(0, 6)].tolist(), row[6 : 6 + rng.integers(0, 9)].tolist()) for row in rows
        ]
    found = rank(queries, database, setups, top=3)
    cosines = (queries @ database.T).numpy()
    for name, truths in setups.items():
        for number, truth in enumerate(truths):
            places, order = naive_places(cosines[number], truth.relevant, truth.junk)
            assert found[name].places[number].tolist() == sorted(places)
            np.testing.assert_allclose(found[name].confidences[number], cosines[number][order[:3]])
            assert found[name].correct[number].tolist() == [row in truth.relevant for row in order[:3]]


def test_database_smaller_than_the_number_of_answers_leaves_them_out():
    vectors = torch.eye(2)
    found = rank(vectors, vectors, {"": [Truth([1], [0]), Truth([1])]}, top=4)[""]
    assert found.confidences.tolist() == [[0, *[-np.inf] * 3], [1, 0, *[-np.inf] * 2]]
    assert found.correct.tolist() == [[True, False, False, False], [True, False, False, False]]


# ---- by labels


def results_of(evaluate, *arguments, **options):
    return {result.metric: result for result in evaluate(evaluation_of(*arguments, **options))}


def colours(images, count):
    """Mean colour as CLS, halves of it for the earlier blocks; the patches are the pixels, made positive."""
    mean = images.mean(dim=(2, 3))
    return [(mean * 0.5**depth, images + 4) for depth in reversed(range(count))]


def test_images_of_one_colour_find_each_other(tmp_path):
    path = saved(tmp_path, train=images_of(NAMES * 5), test=images_of(NAMES * 2, seed=1))
    results = results_of(evaluate_retrieval, RetrievalEvaluation, path)
    assert {name: round(result.value, 6) for name, result in results.items()} == {
        "mean_average_precision": 100,
        "mean_precision_at_1": 100,
        "mean_precision_at_5": 100,
        "mean_precision_at_10": 100,
        "global_average_precision": 100,
    }
    assert results["mean_average_precision"].interval == (100, 100)


def test_a_set_that_is_searched_in_itself_leaves_out_the_query(tmp_path):
    path = saved(tmp_path, train=images_of(["red", "red", "blue", "green"]), test=images_of(["red"]))
    same = SourceConfig(path, "train")
    results = results_of(evaluate_retrieval, RetrievalEvaluation, path, test=same, k=[1])
    # the red ones find each other, blue and green have nothing to find: they answer wrongly, which GAP counts
    assert results["mean_average_precision"].value == 100
    assert results["mean_average_precision"].title.endswith("2 of 4 queries")
    assert results["global_average_precision"].value == 100  # and less surely than the red ones


def test_queries_of_other_classes_count_in_the_global_precision_alone(tmp_path, caplog):
    train = images_of(["red", "blue"], noise=0)
    test = images_of(["red", "blue"], ["red", "green"], noise=0, seed=1)
    path = saved(tmp_path, train=train, test=test)
    with caplog.at_level(logging.WARNING):
        results = results_of(evaluate_retrieval, RetrievalEvaluation, path, k=[1])
    assert "1 of 2 queries have no relevant image" in caplog.text
    assert results["mean_average_precision"].value == 100
    assert results["global_average_precision"].value in (50, 100)  # as the wrong answer is surer or not


def test_broken_images_are_neither_queries_nor_answers(tmp_path):
    train = images_of(["red", "red", "blue"], broken=(0,))
    path = saved(tmp_path, train=train, test=images_of(["red", "blue", "red"], broken=(1,), seed=1))
    results = results_of(evaluate_retrieval, RetrievalEvaluation, path, k=[1])
    assert results["mean_average_precision"].value == 100 and "queries" not in results["mean_average_precision"].title


def test_nothing_to_find_and_nothing_to_read_are_refused(tmp_path):
    path = saved(tmp_path / "a", train=images_of(["red"]), test=images_of(["blue"]))
    with pytest.raises(ValueError, match="no query has a relevant image"):
        results_of(evaluate_retrieval, RetrievalEvaluation, path)
    path = saved(tmp_path / "b", train=images_of(["red"], broken=(0,)), test=images_of(["red"]))
    with pytest.raises(ValueError, match="no image of the database can be decoded"):
        results_of(evaluate_retrieval, RetrievalEvaluation, path)
    with pytest.raises(ValueError, match="train.path is not set"):
        results_of(evaluate_retrieval, RetrievalEvaluation, None, ground_truth="columns")


# ---- by columns


def with_columns(images, **columns):
    kinds = {name: List(Value("float64" if name == "bbx" else "int64")) for name in columns}
    table = images.remove_columns("label").cast_column("image", Image(decode=False))
    rows = {"image": table["image"][:]} | columns
    return Dataset.from_dict(rows, features=Features({"image": Image()} | kinds))


DATABASE = ["red", "blue", "red", "red", "green", "blue"]


@pytest.fixture
def revisited(tmp_path):
    """Queries red and blue; the database of `DATABASE`."""

    def build(easy, hard, junk, **more):
        test = with_columns(images_of(["red", "blue"], noise=0, seed=1), easy=easy, hard=hard, junk=junk, **more)
        return saved(tmp_path / "set", train=images_of(DATABASE, noise=0), test=test)

    return build


def test_setups_are_those_of_the_revisited_protocol(revisited):
    # red finds the rows 0, 2, 3 in some order, blue 1 and 5; a row that is not red is relevant to the red query
    path = revisited(easy=[[0, 2], [1]], hard=[[3], []], junk=[[], [5]])
    results = results_of(evaluate_retrieval, RetrievalEvaluation, path, ground_truth="columns", k=[1])
    assert {name: round(result.value, 4) for name, result in results.items()} == {
        f"{metric}_{setup}": 100
        for setup in ("easy", "medium", "hard")
        for metric in ("mean_average_precision", "mean_precision_at_1")
    }
    assert results["mean_average_precision_hard"].title == "mean average precision (%), hard, 1 of 2 queries"


def test_junk_and_images_of_the_other_setup_are_taken_out_of_the_ranking(revisited):
    # row 3, as red as the query, is before the green row 4: as an image that is not relevant, or not at all
    options = {"ground_truth": "columns", "k": [1]}
    for junk, hard, medium in (([1, 5, 3], 100, 100), ([1, 5], 25, None)):
        path = revisited(easy=[[0, 2], [1]], hard=[[4], []], junk=[junk, []])
        results = results_of(evaluate_retrieval, RetrievalEvaluation, path, **options)
        assert results["mean_average_precision_hard"].value == pytest.approx(hard)
        assert results["mean_precision_at_1_hard"].value == pytest.approx(100 if hard == 100 else 0)
        if medium is not None:  # of both queries; blue finds row 1 beside the blue row 5 and may be second
            assert results["mean_average_precision_medium"].value >= (100 + 25) / 2


def test_setup_without_any_relevant_image_is_left_out(revisited, caplog):
    path = revisited(easy=[[0], [1]], hard=[[], None], junk=[[], []])
    with caplog.at_level(logging.WARNING):
        results = results_of(evaluate_retrieval, RetrievalEvaluation, path, ground_truth="columns", k=[])
    assert set(results) == {"mean_average_precision_easy", "mean_average_precision_medium"}
    assert "2 of 2 queries have no relevant image (hard)" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"easy": [[0], [6]]}, "names row 6 for query 1, but the database has 6 images"),
        ({"junk": [[-1], []]}, "names row -1 for query 0"),
    ],
)
def test_rows_outside_of_the_database_are_refused(revisited, change, message):
    path = revisited(**{"easy": [[0], [1]], "hard": [[], []], "junk": [[], []]} | change)
    with pytest.raises(ValueError, match=message):
        results_of(evaluate_retrieval, RetrievalEvaluation, path, ground_truth="columns")


def test_missing_columns_and_impossible_boxes_are_refused(revisited):
    path = revisited([[0], [1]], [[], []], [[], []], bbx=[[0, 0, 4, 4], [5, 0, 5, 4]])
    options = {"ground_truth": "columns"}
    with pytest.raises(ValueError, match="lacks junk_column='rubbish'; its columns are image, easy, hard, junk, bbx"):
        results_of(evaluate_retrieval, RetrievalEvaluation, path, junk_column="rubbish", **options)
    with pytest.raises(ValueError, match=r"has \[5.0, 0.0, 5.0, 4.0\] for query 1, not a box"):
        results_of(evaluate_retrieval, RetrievalEvaluation, path, box_column="bbx", **options)
    with pytest.raises(ValueError, match="has .*, not a list of row numbers"):
        results_of(evaluate_retrieval, RetrievalEvaluation, path, easy_column="image", **options)


def encoded(pixels):
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_queries_are_cut_to_their_box(tmp_path):
    pixels = np.full((12, 16, 3), (20, 20, 200), np.uint8)
    pixels[3:9, 2:10] = COLORS["red"]
    query = Dataset.from_dict({"image": [encoded(pixels)]}, features=Features({"image": Image()}))
    features = Features(
        {
            "image": Image(),
            **{n: List(Value("float64" if n == "bbx" else "int64")) for n in ("easy", "hard", "junk", "bbx")},
        }
    )
    rows = {"image": [encoded(pixels)], "easy": [[0]], "hard": [[]], "junk": [[]], "bbx": [[2, 3, 10, 9]]}
    test = Dataset.from_dict(rows, features=features)
    path = saved(tmp_path / "set", train=images_of(["red", "blue"], noise=0), test=test)
    options = {"ground_truth": "columns", "k": []}
    results = results_of(evaluate_retrieval, RetrievalEvaluation, path, box_column="bbx", **options)
    assert results["mean_average_precision_easy"].value == 100
    whole = results_of(evaluate_retrieval, RetrievalEvaluation, path, **options)
    assert whole["mean_average_precision_easy"].value == 25  # mostly blue: second
    images = PlainImages(SourceConfig(saved(tmp_path / "query", train=query)), "train")
    boxed = BoxedImages(images, np.array([[2.0, 3.0, 10.0, 9.0]]), 3)
    cut, _ = open_image(boxed.read(0)[0]).decode()
    assert np.array_equal(cut.numpy(), pixels[3:9, 2:10].transpose(2, 0, 1))
    beyond = BoxedImages(images, np.array([[14.0, -5.0, 99.0, 4.0]]), 3)
    assert open_image(beyond.read(0)[0]).decode()[0].shape == (3, 4, 2)
    assert len({images.fingerprint, boxed.fingerprint, beyond.fingerprint}) == 3


# ---- descriptors


def test_whitened_descriptors_have_no_correlation_and_equal_variance():
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3).float()
    whitening = Whitening.learn(vectors)
    white = (vectors - whitening.mean) @ whitening.projection
    torch.testing.assert_close(white.T @ white / 500, torch.eye(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(whitening(vectors).norm(dim=1), torch.ones(500))
    # the first directions are those of largest variance
    few = Whitening.learn(vectors, 2)
    variances = torch.linalg.eigvalsh(torch.cov(vectors.T, correction=0)).flip(0)
    torch.testing.assert_close(1 / few.projection.square().sum(dim=0), variances[:2], rtol=1e-3, atol=0)
    assert Whitening.learn(vectors[:3]).projection.shape == (6, 2)  # three points span a plane
    with pytest.raises(ValueError, match="1 descriptors"):
        Whitening.learn(vectors[:1])


def test_descriptors_join_parts_and_average_scales(tmp_path):
    path = saved(tmp_path, train=images_of(NAMES), test=images_of(NAMES))
    sizes = []

    def layers(images, count):
        sizes.append(images.shape[-1])
        return colours(images, count)

    backbone = FeatureExtractor(layers, None, 3, 4, 1, torch.device("cpu"))
    vectors = {}
    for scales in ([1.0], [2.0], [1.0, 2.0]):
        evaluation = evaluation_of(RetrievalEvaluation, path, backbone, descriptor="cls_gem", scales=scales)
        rows, vectors[tuple(scales)] = describe(evaluation, evaluation.labeled(evaluation.config.train), "Images")
    assert rows.tolist() == [0, 1, 2] and set(sizes) == {8, 16} and vectors[(1.0,)].shape == (3, 6)
    mean = torch.nn.functional.normalize(vectors[(1.0,)] + vectors[(2.0,)])
    torch.testing.assert_close(vectors[(1.0, 2.0)], mean)
    evaluation = evaluation_of(RetrievalEvaluation, path, backbone, descriptor="cls_gem", whole=False)
    pixels = evaluation.transform.pixels(evaluation.labeled(evaluation.config.train).read(0)[0])
    ((cls, patches),) = colours(evaluation.transform.normalize(torch.from_numpy(pixels)[None]), 1)
    gem = (patches**3).mean(dim=(2, 3)) ** (1 / 3)
    expected = torch.nn.functional.normalize(torch.cat((cls, gem), dim=1))
    found = describe(evaluation, evaluation.labeled(evaluation.config.train), "Images")[1]
    torch.testing.assert_close(found[:1], expected)


def test_the_whole_image_is_seen_where_it_is_squeezed():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20], pixels[:, 40:] = 255, 100
    transform = WholeTransform(12, [0.5] * 3, [0.25] * 3)
    seen = transform.pixels(encoded(pixels)["bytes"])
    assert seen.shape == (3, 12, 12) and seen[0, 6].tolist()[0] == 255 and seen[0, 6].tolist()[-1] == 100
    assert seen[0, 6, 6] < 10


# ---- the configuration


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["descriptor=mean"], "descriptor='mean' is not one of cls, gem, cls_gem"),
        (["scales=[]"], "leaves nothing to describe"),
        (["scales=[0]"], "scales=0.0 is not positive"),
        (["ground_truth=file"], "is not one of labels, columns"),
        (["k=[0]"], "k=0 is below 1"),
        (["whitening_dim=8"], "set whitening.path"),
    ],
)
def test_impossible_values_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides, RetrievalEvaluation)


# ---- the published folders


@pytest.fixture
def published(tmp_path):
    """`roxford5k` with images of one colour: the first query is red at its left only, where its box is."""
    root = tmp_path / "roxford5k"
    (root / "jpg").mkdir(parents=True)
    shown = {"a": "red", "b": "red", "c": "green", "d": "blue", "e": "red", "q": "red", "r": "green"}
    for name, color in shown.items():
        pixels = np.full((16, 16, 3), COLORS[color], np.uint8)
        if name == "q":
            pixels[:, 4:] = COLORS["blue"]
        Pillow.fromarray(pixels).save(root / "jpg" / f"{name}.jpg", quality=95)
    truth = {
        "imlist": list("abcde"),
        "qimlist": list("qr"),
        "gnd": [
            {"bbx": [0.0, 0.0, 4.0, 16.0], "easy": [0], "hard": [1], "junk": [4]},
            {"bbx": [0.0, 0.0, 16.0, 16.0], "easy": [], "hard": [2], "junk": []},
        ],
    }
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, protocol=2))
    return str(root)


@pytest.mark.parametrize("box, found", [("bbx", 100), (None, 50)])
def test_published_folder_gives_the_table_of_easy_medium_and_hard(published, box, found):
    """Cropped to its box the first query finds the red images; whole it finds the blue one first."""
    sources = dict(train=SourceConfig(published), test=SourceConfig())
    results = results_of(
        evaluate_retrieval, RetrievalEvaluation, None, ground_truth="revisited", box_column=box, k=[1, 5], **sources
    )
    names = ("mean_average_precision", "mean_precision_at_1", "mean_precision_at_5")
    assert list(results) == [f"{name}_{setup}" for setup in ("easy", "medium", "hard") for name in names]
    assert results["mean_precision_at_1_hard"].value == pytest.approx(found)
    assert results["mean_average_precision_easy"].title.endswith("easy, 1 of 2 queries")
    if box:  # mP@5 counts up to the last relevant image: two of two, though three are in the list
        assert all(results[name].value == pytest.approx(100) for name in results)


def test_other_queries_than_those_of_the_published_folder_are_refused():
    with pytest.raises(ValueError, match="test.path=/q is not read: the queries are in train.path=/d"):
        load_config(None, ["ground_truth=revisited", "train.path=/d", "test.path=/q"], RetrievalEvaluation)
    same = ["ground_truth=revisited", "train.path=/d", "test.path=/d"]
    assert load_config(None, same, RetrievalEvaluation).ground_truth == "revisited"


@pytest.mark.parametrize("power", [1.0, 4.0])
def test_power_of_the_generalised_mean_is_that_of_the_configuration(tmp_path, power):
    path = saved(tmp_path, train=images_of(["red"]), test=images_of(["red", "blue"]))

    def features(images, count):
        return [(images.mean(dim=(2, 3)), images.abs())]

    backbone = FeatureExtractor(features, None, 3, 1, 1, torch.device("cpu"))
    options = dict(descriptor="gem", gem_power=power, whole=False)
    evaluation = evaluation_of(RetrievalEvaluation, path, backbone, **options)
    images = PlainImages(SourceConfig(path, "test"), "test")
    _, found = describe(evaluation, images, "Queries")
    transform = evaluation.transform
    pixels = torch.stack([torch.from_numpy(transform.pixels(images.read(row)[0])) for row in range(2)])
    patches = transform.normalize(pixels).abs().clamp(min=1e-6)
    expected = torch.nn.functional.normalize((patches**power).mean(dim=(2, 3)) ** (1 / power))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="gem_power=4 has no effect on descriptor=cls"):
        load_config(None, ["gem_power=4"], RetrievalEvaluation)
    with pytest.raises(ValueError, match="gem_power"):
        load_config(None, ["gem_power=0", "descriptor=gem"], RetrievalEvaluation)
