"""Configuration of a run: typed sections; defaults < YAML file < dotted overrides (`optim.base_lr=1e-3`).

The defaults are those of the published `ssl_default_config.yaml`, but for patches of 14 pixels, local crops of 98, four
registers and Sinkhorn-Knopp centering: docs/fidelity.md has the table.
Everything a user can get wrong is refused here, before anything heavy is imported.
"""

from .data import ColorsConfig, CropsConfig, DataConfig, SourceConfig, TrainingSourceConfig
from .describe import describe_keys
from .keys import dotted_keys, value_at
from .loading import load_config, load_saved_config, save_config, sections_of
from .model import FAMILIES, PRESETS, BackboneConfig, InitConfig, ModelConfig
from .names import hub_name, name_of_source, public_name
from .objectives import (
    DINORunConfig,
    DINOv2RunConfig,
    FeatureDistillationConfig,
    IBOTRunConfig,
    PretrainingRunConfig,
    PrototypeDistillationConfig,
    SimDINORunConfig,
)
from .paths import images_of, models_of, path_to, paths_in, same_place, with_absolute_paths
from .resnet import RESNET_PRESETS, ResNetModelConfig
from .run import RUNS, RunConfig, register_run_config
from .secrets import find_tokens, masked, refuse_tokens_in_arguments
from .terms import (
    TERMS,
    DinoConfig,
    HeadConfig,
    IbotConfig,
    KoleoConfig,
    MaskConfig,
    Masks,
    MomentumConfig,
    PatchConfig,
    PatchTeacherConfig,
    SharedPatchConfig,
    TeacherConfig,
    TermConfig,
)
from .training import HubConfig, KnnConfig, OptimConfig, RunEvaluationConfig, TrainConfig
from .vit import VIT_PRESETS, ViTModelConfig

__all__ = [
    "VIT_PRESETS",
    "ViTModelConfig",
    "FAMILIES",
    "PRESETS",
    "RESNET_PRESETS",
    "RUNS",
    "TERMS",
    "BackboneConfig",
    "ColorsConfig",
    "CropsConfig",
    "DINORunConfig",
    "DINOv2RunConfig",
    "DataConfig",
    "DinoConfig",
    "FeatureDistillationConfig",
    "HeadConfig",
    "HubConfig",
    "IBOTRunConfig",
    "IbotConfig",
    "InitConfig",
    "KnnConfig",
    "KoleoConfig",
    "MaskConfig",
    "Masks",
    "ModelConfig",
    "MomentumConfig",
    "OptimConfig",
    "PatchConfig",
    "PatchTeacherConfig",
    "PretrainingRunConfig",
    "PrototypeDistillationConfig",
    "ResNetModelConfig",
    "RunConfig",
    "RunEvaluationConfig",
    "SharedPatchConfig",
    "SimDINORunConfig",
    "SourceConfig",
    "TeacherConfig",
    "TermConfig",
    "TrainConfig",
    "TrainingSourceConfig",
    "describe_keys",
    "dotted_keys",
    "find_tokens",
    "hub_name",
    "images_of",
    "load_config",
    "load_saved_config",
    "masked",
    "models_of",
    "name_of_source",
    "path_to",
    "paths_in",
    "public_name",
    "refuse_tokens_in_arguments",
    "register_run_config",
    "same_place",
    "save_config",
    "sections_of",
    "value_at",
    "with_absolute_paths",
]
