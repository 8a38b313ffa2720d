"""From a configuration to the objective of a run."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ..config import RunConfig
from ..objectives import Objective, find_objective
from ..runs.together import rank_and_world
from .teachers import open_teacher

logger = logging.getLogger(__name__)


def build_objective(config: RunConfig) -> Objective[Any]:
    """Builds the objective with fresh weights, drawn from `train.seed`, and reads its frozen teachers.

    Raises:
        FileNotFoundError: nothing at the path of a teacher.
        ValueError: a teacher that is damaged or does not fit; says what to set.
    """
    kind = find_objective(config)
    teachers = {}
    for key, teacher in kind.teachers_of(config).items():
        teachers[key] = open_teacher(key, teacher)
        if rank_and_world()[0] == 0:
            millions = sum(parameter.numel() for parameter in teachers[key].parameters()) / 1e6
            logger.info("the teacher is %s: %.1f M parameters, frozen", teacher.path, millions)
    torch.manual_seed(config.train.seed)  # reading a teacher may draw
    return kind(config, teachers)
