"""Distils a frozen teacher into one or several smaller backbones that stock transformers loads.

    accelerate launch examples/distill.py --config configs/distill/vits14_from_vitg14.yaml \\
        distill.teacher=runs/vitg14_142m data.train.path=/my/images

Everything after the options overrides a key of the config file: section.key=value.
"""

from dinov2_hf.cli.train import train

if __name__ == "__main__":
    train(__doc__, "distill_prototypes")
