"""Tiny models whose every tensor shows in their features."""

import pytest
import torch

from dinov2_hf import Dinov2Config, Dinov2Model
from dinov2_hf.backbones import ViTConfig, ViTModel

SIZES = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8)


def build_tiny(**overrides) -> Dinov2Model:
    return _shaken(Dinov2Model, Dinov2Config, SIZES | dict(num_register_tokens=2, layerscale_value=0.5) | overrides)


def build_tiny_vit(**overrides) -> ViTModel:
    return _shaken(ViTModel, ViTConfig, SIZES | dict(intermediate_size=96, layer_norm_eps=1e-6) | overrides)


def _shaken(kind, config, settings):
    torch.manual_seed(0)
    model = kind(config(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token" in name or name.endswith("bias"):
                parameter.normal_(0, 0.2)
    return model


@pytest.fixture
def tiny():
    return build_tiny


@pytest.fixture
def tiny_vit():
    """Of the family `vit`."""
    return build_tiny_vit
