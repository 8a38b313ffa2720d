"""An evaluator: the effective rank of CLS over a set of images."""

from dataclasses import dataclass

from dinov2_hf.config.evaluations import EvaluationConfig
from dinov2_hf.evaluation import Result, register_evaluator
from dinov2_hf.objectives.diagnostics import rankme


@dataclass
class RankEvaluation(EvaluationConfig):
    """Effective rank of CLS (RankMe)."""

    share: bool = False
    """Divide the rank by the number of channels."""


@register_evaluator("rank", config=RankEvaluation, title="effective rank of CLS")
def evaluate_rank(evaluation):
    images = evaluation.labeled(evaluation.config.test, "test")
    cls = evaluation.features(images).parts["cls"][:, -1]
    rank = rankme(cls).item()
    yield Result("rank", rank / cls.shape[1] if evaluation.config.share else rank, "effective rank of CLS")
