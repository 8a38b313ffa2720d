"""The networks that are trained and evaluated: the contract, one folder or file for each family, and stock models."""

from .base import (
    Backbone,
    CropGroup,
    Family,
    Features,
    Layers,
    Tokens,
    family_of,
    family_of_model_type,
    find_family,
    recompute_blocks,
    register_backbone,
    tokens_of_maps,
)
from .dinov2 import (
    PRESETS,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Layer,
    Dinov2Model,
    Dinov2PreTrainedModel,
    check_attention,
)
from .frozen import StockBackbone, load_stock_backbone

__all__ = [
    "PRESETS",
    "Backbone",
    "CropGroup",
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Layer",
    "Dinov2Model",
    "Dinov2PreTrainedModel",
    "Family",
    "Features",
    "Layers",
    "StockBackbone",
    "Tokens",
    "check_attention",
    "family_of",
    "family_of_model_type",
    "find_family",
    "load_stock_backbone",
    "recompute_blocks",
    "register_backbone",
    "tokens_of_maps",
]
