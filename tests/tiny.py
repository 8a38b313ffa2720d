"""A run of seconds, and photographs for it."""

from pathlib import Path

import numpy as np
from PIL import Image

TINY = [
    "model.preset=tiny",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.patch_size=8",
    "model.num_register_tokens=2",
    "model.drop_path_rate=0.3",
    "model.layerscale_value=0.1",
    "crops.global_size=32",
    "crops.local_size=16",
    "crops.num_local=2",
    "dino.num_prototypes=24",
    "dino.hidden_dim=16",
    "dino.bottleneck_dim=8",
    "ibot.num_prototypes=20",
    "ibot.hidden_dim=16",
    "ibot.bottleneck_dim=8",
    "ibot.separate_head=true",
    "optim.warmup_epochs=1",
    "optim.freeze_last_layer_epochs=0.5",
    "optim.base_lr=0.02",
    "teacher.warmup_temp_epochs=1",
    "data.num_workers=0",
    "train.batch_size=4",
    "train.epochs=3",
    "train.epoch_length=2",
    "train.log_every=2",
    "train.checkpoint_epochs=1",
    "train.precision=fp32",
]
"""Dotted overrides of a run of six updates; without `data.train.path` and `train.output_dir`."""
_VIT = [key for key in TINY if not key.startswith(("model.num_register", "model.layerscale", "ibot."))]
_VIT += ["teacher.temp=0.07", "optim.base_lr=0.08"]
TINY_OBJECTIVES = {
    "dinov2": TINY,
    "dino": _VIT,
    "ibot": [*_VIT, "ibot.separate_head=true", "ibot.separate_teacher_head=true", "ibot.num_prototypes=20"],
    "simdino": [key for key in _VIT if not key.startswith(("dino.num_prototypes", "teacher."))],
}
"""Those of each objective of pretraining, by its name, which they do not set."""
TINY_FEATURES = [key for key in TINY if not key.startswith(("dino.", "ibot.", "teacher.", "crops.num_local"))]
TINY_FEATURES += ["objective=distill_features", "model.drop_path_rate=0", "crops.num_local=0"]
"""Those of a distillation of features; without `distill.teacher` too."""


def without_heads(overrides):
    """Those of the overrides that a run without prototypes, such as one of `distill_features`, reads."""
    return [item for item in overrides if not item.startswith(("dino.", "ibot.", "koleo.", "teacher.warmup_temp"))]


def write_photographs(folder: Path) -> Path:
    """Writes 24 photographs of 40 x 48 pixels, in a folder for each of two classes."""
    rng = np.random.default_rng(0)
    for index in range(24):
        name = ("stripes", "blobs")[index % 2]
        (folder / name).mkdir(exist_ok=True)
        coarse = rng.integers(0, 255, (5, 6, 3) if name == "blobs" else (10, 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
        image.save(folder / name / f"{index:02}.jpg", quality=90)
    return folder
