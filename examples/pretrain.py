"""Pretrains a DINOv2 backbone on your images and leaves a folder that stock transformers loads.

    python examples/pretrain.py --config configs/pretrain/quickstart.yaml data.train.path=/my/images

Over several processes: accelerate launch examples/pretrain.py … Everything after the options overrides a key of the
config file: section.key=value.
"""

from dinov2_hf.cli.train import train

if __name__ == "__main__":
    train(__doc__, "dinov2")
