"""Configuration of a residual network, in the format of the stock class `ResNetModel`."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from transformers import PreTrainedConfig

from ...config.limits import check_config
from ...config.resnet import RESNET_PRESETS, check_resnet


class ResNetConfig(PreTrainedConfig):
    """Architecture of a `ResNetModel`; `save_pretrained` writes a file that the stock class reads.

    Defaults are those of the stock class, which are ResNet-50.

    Args:
        num_channels: channels of the input.
        embedding_size: channels of the first convolution.
        hidden_sizes: channels after each stage.
        depths: residual blocks of each stage.
        layer_type: `basic` (two 3 x 3 convolutions) or `bottleneck` (1 x 1, 3 x 3, 1 x 1).
        hidden_act: activation.
        downsample_in_first_stage: halve the resolution in the first stage too.
        downsample_in_bottleneck: halve it in the first 1 x 1 convolution of a block (He et al., 2016) and not in its
            3 x 3 convolution, as torchvision does.

    Raises:
        ValueError: sizes that do not fit each other or that no model has, named with the rule.
    """

    model_type = "resnet"

    def __init__(
        self,
        num_channels: int = 3,
        embedding_size: int = 64,
        hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
        depths: Sequence[int] = (3, 4, 6, 3),
        layer_type: str = "bottleneck",
        hidden_act: str = "relu",
        downsample_in_first_stage: bool = False,
        downsample_in_bottleneck: bool = False,
        **kwargs: Any,
    ) -> None:
        check_config(kwargs, type(self).__name__)  # before a list of labels is made of their number
        super().__init__(**kwargs)
        self.num_channels = num_channels
        self.embedding_size = embedding_size
        self.hidden_sizes = list(hidden_sizes)
        self.depths = list(depths)
        self.layer_type = layer_type
        self.hidden_act = hidden_act
        self.downsample_in_first_stage = downsample_in_first_stage
        self.downsample_in_bottleneck = downsample_in_bottleneck
        check_config(vars(self), type(self).__name__)
        check_resnet(vars(self))

    @property
    def stride(self) -> int:
        """Pixels between two neighbouring patches: those of the last map."""
        return 2 << len(self.depths) + self.downsample_in_first_stage

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ResNetConfig:
        """The architecture called `name` (a key of `RESNET_PRESETS`) with `overrides` on top."""
        if name not in RESNET_PRESETS:
            raise ValueError(f"preset={name!r} is not known; use one of {', '.join(RESNET_PRESETS)}")
        return cls(**{**RESNET_PRESETS[name], **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_config(config, f"the config.json of {pretrained_model_name_or_path}")
        return config, kwargs
