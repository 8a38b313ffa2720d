"""A tiny convolutional family of backbones, from outside the package."""

from dataclasses import dataclass

from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from dinov2_hf.backbones import Features, register_backbone, tokens_of_maps
from dinov2_hf.config import BackboneConfig


@dataclass
class SmallConvSection(BackboneConfig):
    family: str = "small_conv"
    width: int = 16
    stride = 8  # a plain attribute: not a key


class SmallConvConfig(PreTrainedConfig):
    model_type, width, num_channels = "small_conv", 16, 3


class SmallConv(PreTrainedModel):
    config_class = SmallConvConfig
    width: int
    stride, takes_masks = 8, False
    tokens = tokens_of_maps

    def __init__(self, config):
        super().__init__(config)
        self.width = width = config.width
        self.stem = nn.Conv2d(config.num_channels, width, 8, 8)
        self.block_0, self.block_1 = (nn.Sequential(nn.GELU(), nn.Conv2d(width, width, 3, padding=1)) for _ in "01")
        self.post_init()

    blocks = property(lambda self: {"block_0": self.block_0, "block_1": self.block_1})

    def depth_of(self, name):
        return 0 if name.startswith("stem.") else int(name[len("block_")]) + 1

    def is_patch_embedding(self, name):
        return name.startswith("stem.")

    def features(self, pixels, layers=1):
        maps = [self.stem(pixels)]
        for block in self.blocks.values():
            maps.append(maps[-1] + block(maps[-1]))
        return [Features(found.mean((2, 3)), found) for found in maps[-layers:]]

    def forward(self, pixel_values):
        return self.features(pixel_values)[0]


@register_backbone("small_conv", config=SmallConvSection, model_types=["small_conv"])
def build(section: SmallConvSection, image_size: int, drop_path_rate: float) -> SmallConv:
    return SmallConv(SmallConvConfig(width=section.width, num_channels=section.num_channels))


AutoConfig.register("small_conv", SmallConvConfig)
AutoModel.register(SmallConvConfig, SmallConv)
