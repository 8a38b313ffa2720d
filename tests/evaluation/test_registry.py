"""Evaluators by name, those of users too."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from dinov2_hf.cli import main
from dinov2_hf.config import evaluations, load_config
from dinov2_hf.config.evaluations import EvaluationConfig, KnnEvaluation
from dinov2_hf.evaluation import (
    Evaluation,
    Result,
    evaluate_knn,
    evaluators,
    find_evaluator,
    load_evaluations,
    register_evaluator,
    registry,
    run_evaluator,
)

from .coloured import evaluation_of, images_of, saved


@dataclass
class MeanNormEvaluation(EvaluationConfig):
    """Mean norm of CLS."""

    power: float = 1.0
    """Of the norm."""


def evaluate_mean_norm(evaluation: Evaluation) -> Iterator[Result]:
    images = evaluation.labeled(evaluation.config.test, "test")
    cls = evaluation.features(images).parts["cls"][:, -1]
    yield Result("mean_norm", (cls.norm(dim=1) ** evaluation.config.power).mean().item(), "mean norm")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What is registered is as before at the end."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def register(name="mean_norm", config=MeanNormEvaluation, title="mean norm of CLS", function=evaluate_mean_norm):
    return register_evaluator(name, config=config, title=title)(function)


def test_evaluators_are_found_by_name_whatever_was_imported_first():
    assert list(evaluators()) == sorted(evaluators()) and len(evaluators()) == 12
    assert find_evaluator("knn").evaluate is evaluate_knn and find_evaluator("knn").config is KnnEvaluation
    assert [name for name, each in evaluators().items() if each.trains] == ["finetune"]


def test_an_evaluator_of_a_user_is_listed_configured_and_run(capsys, tmp_path):
    assert register() is evaluate_mean_norm
    main(["evaluate", "list"])
    assert "mean_norm            mean norm of CLS\n" in capsys.readouterr().out
    main(["evaluate", "mean_norm", "--keys"])
    assert "power=1.0\n    Of the norm." in capsys.readouterr().out
    evaluator = find_evaluator("mean_norm")
    config = load_config(None, ["power=2", "test.path=x"], evaluator.config)
    images = images_of(["red", "green", "blue"])
    evaluation = evaluation_of(MeanNormEvaluation, saved(tmp_path, train=images, test=images), power=config.power)
    report = run_evaluator(evaluator, evaluation)
    cls = evaluation.features(evaluation.labeled(evaluation.config.test)).parts["cls"][:, -1]
    assert report.results[0].value == pytest.approx(cls.norm(dim=1).square().mean().item(), rel=1e-5)
    assert (report.protocol, report.task, report.settings["power"]) == ("mean_norm", "image-classification", 2)


def unfinished(evaluation):
    return []


def greedy(evaluation, more):
    yield more


class Bare(EvaluationConfig):
    power: float = 1.0


@dataclass
class Demanding(EvaluationConfig):
    power: float = field(kw_only=True)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"name": "Mean norm"}, ValueError, "rename it"),
        ({"name": "knn"}, ValueError, "already registered by dinov2_hf.evaluation.knn.evaluate_knn"),
        ({"title": ""}, ValueError, "has no title"),
        ({"config": dict}, TypeError, "inherits from EvaluationConfig"),
        ({"config": Bare}, TypeError, "Bare is not a dataclass"),
        ({"config": Demanding}, TypeError, "give each a default"),
        ({"function": unfinished}, TypeError, "not a generator function"),
        ({"function": greedy}, TypeError, "needs more arguments"),
    ],
)
def test_what_cannot_be_an_evaluator_is_refused_when_it_is_registered(options, error, message):
    before = evaluators()
    with pytest.raises(error, match=message) as caught:
        register(**options)
    assert "\n" not in str(caught.value) and evaluators() == before


def test_an_unknown_evaluator_is_named_with_its_key_and_those_that_there_are():
    with pytest.raises(ValueError, match="evaluations.a.protocol='kn' is not an evaluator; .* copy_detection, "):
        find_evaluator("kn", "evaluations.a.protocol")


def test_configurations_are_found_by_their_old_names_with_a_warning():
    with pytest.warns(DeprecationWarning, match="KnnProtocol is called KnnEvaluation now"):
        assert evaluations.KnnProtocol is KnnEvaluation
    assert not hasattr(evaluations, "MeanProtocol")


def test_an_evaluator_whose_extra_is_missing_is_refused_before_any_work(capsys, tiny_config):
    register_evaluator("mean_norm", config=MeanNormEvaluation, title="mean norm", needs=("json", "no_such_module"))(
        evaluate_mean_norm
    )
    message = 'the evaluator mean_norm needs no_such_module: pip install "dinov2_hf\\[evaluate\\]"'
    with pytest.raises(ImportError, match=message):
        load_evaluations(tiny_config("evaluations.norm.protocol=mean_norm", "evaluations.norm.config=unread.yaml"))
    with pytest.raises(SystemExit):
        main(["evaluate", "mean_norm", "--model", "nowhere", "--data", "nothing"])
    assert "needs no_such_module" in capsys.readouterr().err
