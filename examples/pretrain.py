"""Pretrains a DINOv2 backbone on your images and leaves a folder that stock transformers loads.

    accelerate launch examples/pretrain.py --config configs/pretrain/quickstart.yaml data.train.path=/my/images

Everything after the options overrides a key of the config file: section.key=value.
"""

from dinov2_hf.cli.launch import launch
from dinov2_hf.config import PretrainConfig
from dinov2_hf.train import Pretrainer

if __name__ == "__main__":
    launch(__doc__, PretrainConfig, Pretrainer)
