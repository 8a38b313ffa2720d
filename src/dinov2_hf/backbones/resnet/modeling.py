"""The residual network of He et al. (2016) as torchvision has it, which DINO trains, as transformers models.

Axes: `B` images, `C` channels, `D` width, `h`, `w` rows and columns of patches. Parameter names are those of the stock
class.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from ..base import Features, check_layers, tokens_of_maps
from ..batch_norm import SyncBatchNorm
from ..pretrained import SafePreTrainedModel
from .configuration import ResNetConfig


class ConvNorm(nn.Module):
    """A convolution that keeps the size of its input, but for its stride, and batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.normalization = SyncBatchNorm(outputs)

    def forward(self, maps: Tensor) -> Tensor:
        normed: Tensor = self.normalization(self.convolution(maps))
        return normed


class ResNetEmbeddings(nn.Module):
    """The stem: a 7 x 7 convolution and max pooling, at a quarter of the resolution."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.embedder = ConvNorm(config.num_channels, config.embedding_size, 7, stride=2)
        self.activation = ACT2FN[config.hidden_act]
        self.pooler = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        pooled: Tensor = self.pooler(self.activation(self.embedder(pixels)))
        return pooled


class ResNetLayer(nn.Module):
    """A residual block: `basic` or `bottleneck`."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inside = outputs // 4
        first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
        shapes = {
            "basic": [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)],
            "bottleneck": [(inputs, inside, 1, first), (inside, inside, 3, second), (inside, outputs, 1, 1)],
        }[config.layer_type]
        changes = inputs != outputs or stride != 1
        self.shortcut = ConvNorm(inputs, outputs, 1, stride) if changes else nn.Identity()
        self.layer = nn.ModuleList(ConvNorm(*shape) for shape in shapes)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, maps: Tensor) -> Tensor:
        *layers, last = self.layer
        hidden = maps
        for layer in layers:
            hidden = self.activation(layer(hidden))
        output: Tensor = self.activation(last(hidden) + self.shortcut(maps))
        return output


class ResNetStage(GradientCheckpointingLayer):
    """Residual blocks of one resolution; the first of them changes it."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, depth: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ResNetLayer(config, outputs if index else inputs, outputs, 1 if index else stride) for index in range(depth)
        )

    def forward(self, maps: Tensor) -> Tensor:
        for layer in self.layers:
            maps = layer(maps)
        return maps


class ResNetEncoder(nn.Module):
    """The stages."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        widths = [config.embedding_size, *config.hidden_sizes]
        strides = [2 if config.downsample_in_first_stage else 1] + [2] * (len(config.depths) - 1)
        self.stages = nn.ModuleList(
            ResNetStage(config, *shape) for shape in zip(widths, widths[1:], config.depths, strides)
        )


class ResNetModel(SafePreTrainedModel):
    """The backbone. `ResNetModel(config)` starts from scratch, `from_pretrained` reads files of the stock class.

    CLS is the mean of the last map, whose places are the patches. The blocks are the stages; their widths and strides
    differ, so there are features of the last one only.
    """

    config: ResNetConfig
    config_class = ResNetConfig
    base_model_prefix = "resnet"
    _no_split_modules = ["ResNetStage"]
    takes_masks = False
    tokens = tokens_of_maps

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        self.embedder = ResNetEmbeddings(config)
        self.encoder = ResNetEncoder(config)
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As torchvision by default, with which DINO was published: no gain of a residual branch starts at 0."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, SyncBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    @property
    def width(self) -> int:
        """Channels D of the features."""
        return self.config.hidden_sizes[-1]

    @property
    def stride(self) -> int:
        """Pixels between two neighbouring patches."""
        return self.config.stride

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The stages, `stage_1`, `stage_2`, … from input to output."""
        return {f"stage_{number}": stage for number, stage in enumerate(self.encoder.stages, 1)}

    def depth_of(self, name: str) -> int:
        """Depth of the parameter `name`: 0 in the stem, `i` in stage `i`, counted from 1."""
        match = re.match(r"encoder\.stages\.(\d+)\.", name)
        return int(match[1]) + 1 if match else 0

    def is_patch_embedding(self, name: str) -> bool:
        """Whether the parameter `name` is that of the first convolution."""
        return name == "embedder.embedder.convolution.weight"

    def features(self, pixels: Tensor, layers: int = 1, final_norm: bool = True) -> list[Features]:
        """The mean `[B, D]` and the last map `[B, D, h, w]`.

        Args:
            final_norm: changes nothing, as there is no norm after the last stage.

        Raises:
            ValueError: more layers than one.
        """
        check_layers(layers, self)
        if layers > 1:
            raise ValueError(
                f"layers={layers}, and ResNetModel gives the features of its last stage only, as the others have other "
                "widths and strides; use one layer (blocks=1), or its output_hidden_states"
            )
        maps = self._maps(pixels)[-1]
        return [Features(maps.mean(dim=(2, 3)), maps)]

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """Features of a batch of images of one size.

        Args:
            pixel_values: `[B, C, H, W]`, normalised.

        Returns:
            `last_hidden_state` `[B, D, h, w]`, `pooler_output` `[B, D, 1, 1]`; where asked for, `hidden_states`: the
            map of the stem, then that of each stage.
        """
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        maps = self._maps(pixel_values)
        output = BaseModelOutputWithPoolingAndNoAttention(
            maps[-1], self.pooler(maps[-1]), hidden_states=tuple(maps) if wanted else None
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """The map of the stem and of each stage."""
        maps = [self.embedder(pixels.to(self.embedder.embedder.convolution.weight.dtype))]
        for stage in self.encoder.stages:
            maps.append(stage(maps[-1]))
        return maps


AutoModel.register(ResNetConfig, ResNetModel, exist_ok=True)
