"""A tiny model whose every tensor shows in its features."""

import pytest
import torch

from dinov2_hf import Dinov2Config, Dinov2Model


def build_tiny(**overrides) -> Dinov2Model:
    torch.manual_seed(0)
    settings = dict(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        num_register_tokens=2,
        layerscale_value=0.5,
    )
    model = Dinov2Model(Dinov2Config(**{**settings, **overrides}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token" in name or name.endswith("bias"):
                parameter.normal_(0, 0.2)
    return model


@pytest.fixture
def tiny():
    return build_tiny
