"""Configuration of a run: typed sections; defaults < YAML file < dotted overrides (`optim.base_lr=1e-3`).

The defaults are the published ones (`ssl_default_config.yaml` and the paper's Appendix B) where the two agree on one.
Everything a user can get wrong is refused here, before anything heavy is imported.
"""

from .data import ColorsConfig, CropsConfig, DataConfig, SourceConfig, TrainingSourceConfig
from .describe import describe_keys
from .inputs import images_of, models_of
from .loading import dotted_keys, load_config, load_saved_config, save_config, value_at
from .model import (
    DinoConfig,
    DistillationConfig,
    HeadConfig,
    IbotConfig,
    InitConfig,
    KoleoConfig,
    ModelConfig,
    TeacherConfig,
)
from .run import HubConfig, KnnConfig, OptimConfig, RunEvaluationConfig, TrainConfig
from .runs import DistillConfig, PretrainConfig
from .secrets import find_tokens, masked, refuse_tokens_in_arguments

__all__ = [
    "ColorsConfig",
    "CropsConfig",
    "DataConfig",
    "DinoConfig",
    "DistillConfig",
    "DistillationConfig",
    "HeadConfig",
    "HubConfig",
    "IbotConfig",
    "InitConfig",
    "KnnConfig",
    "KoleoConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "RunEvaluationConfig",
    "SourceConfig",
    "TeacherConfig",
    "TrainConfig",
    "TrainingSourceConfig",
    "describe_keys",
    "dotted_keys",
    "find_tokens",
    "images_of",
    "load_config",
    "load_saved_config",
    "masked",
    "models_of",
    "refuse_tokens_in_arguments",
    "save_config",
    "value_at",
]
