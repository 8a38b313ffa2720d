"""Train a backbone of your own: ConvMixer, a convolutional network on patches, with DINO and KoLeo.

    python examples/own_backbone.py model.width=96 train.epochs=2

A network without masks trains without iBOT. docs/extend/backbone.md has the contract of a backbone. About a minute on
two CPU cores.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dinov2_hf import extract_features, pretrain
from dinov2_hf.backbones import Features, register_backbone, tokens_of_maps
from dinov2_hf.config import BackboneConfig

CLOTHING = Path(__file__).parent / "data/clothing"
SETTINGS = """model.family=convmixer model.drop_path_rate=0 crops.global_size=32 crops.num_local=0
crops.global_scale=[0.85,1] dino.num_prototypes=1024 dino.hidden_dim=256 dino.bottleneck_dim=64 ibot.loss_weight=0
teacher.momentum=0.97 teacher.warmup_temp=0.02 teacher.temp=0.02 teacher.warmup_temp_epochs=0 optim.base_lr=0.008
optim.warmup_epochs=0.1 train.batch_size=64 train.epochs=1 train.epoch_length=32 data.num_workers=2
train.log_every=4""".split()


@dataclass
class ConvMixerSection(BackboneConfig):  # the section model of a run
    family: str = "convmixer"
    width: int = 64
    """Channels of the features."""
    stride = 4  # pixels of a patch; a plain attribute, so not a key


class ConvMixerConfig(PreTrainedConfig):  # what config.json of an export holds
    model_type, width, depth, num_channels = "convmixer", 64, 4, 3


class Block(nn.Module):
    """Mixes places by a depthwise convolution, then channels by a pointwise one."""

    def __init__(self, width):
        super().__init__()
        self.places = nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, width, 5, padding=2, groups=width))
        self.channels = nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, width, 1), nn.GELU())

    def forward(self, maps):
        return self.channels(maps + self.places(maps)) + maps


class ConvMixer(PreTrainedModel):
    config_class, stride, takes_masks = ConvMixerConfig, ConvMixerSection.stride, False
    tokens = tokens_of_maps

    def __init__(self, config):
        super().__init__(config)
        self.patches = nn.Conv2d(config.num_channels, config.width, self.stride, self.stride)
        self.layers = nn.ModuleList(Block(config.width) for _ in range(config.depth))
        self.norm = nn.GroupNorm(1, config.width)
        self.post_init()

    width = property(lambda self: self.config.width)
    blocks = property(lambda self: {f"block_{index}": layer for index, layer in enumerate(self.layers)})

    def depth_of(self, name):
        part, number, *_ = name.split(".")
        return int(number) + 1 if part == "layers" else {"patches": 0, "norm": len(self.layers) + 1}[part]

    def is_patch_embedding(self, name):
        return name.startswith("patches.")

    def features(self, pixels, layers=1):
        maps, found = self.patches(pixels), []
        for layer in self.layers:
            maps = layer(maps)
            found.append(self.norm(maps))
        return [Features(each.mean((2, 3)), each) for each in found[-layers:]]


@register_backbone("convmixer", config=ConvMixerSection, model_types=["convmixer"])
def build(section: ConvMixerSection, image_size: int, drop_path_rate: float) -> ConvMixer:
    return ConvMixer(ConvMixerConfig(width=section.width, num_channels=section.num_channels))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=CLOTHING, help="folder or set of images (default: the bundled photographs)")
    parser.add_argument("--output", default="runs/own_backbone", help="folder of the run")
    parser.add_argument("keys", nargs="*", metavar="key=value")
    args = parser.parse_args()

    run = pretrain(args.data, args.output, keys=[*SETTINGS, *args.keys])
    print(run.metrics()[["loss", "loss/dino_global", "loss/koleo", "rankme"]].round(3))
    found = extract_features(run.export(), args.data, parts=("cls", "patches"))
    print(f"features: CLS {list(found['cls'].shape)}, patches {list(found['patches'].shape)}")


if __name__ == "__main__":
    main()
