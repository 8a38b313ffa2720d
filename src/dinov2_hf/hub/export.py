"""What leaves the project: a folder that stock transformers loads, with everything to understand and continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from ..config import PretrainConfig
from ..features import EvalTransform, preprocessor_config
from ..models import HEADS_FILE, Dinov2Model
from .cards import model_card
from .facts import RunFacts


def export_folder(
    folder: Path,
    backbone: Dinov2Model,
    heads: Mapping[str, nn.Module],
    transform: EvalTransform,
    config: PretrainConfig,
    facts: RunFacts,
) -> Path:
    """Writes a model in the interchange format.

    Args:
        folder: made if it does not exist.
        backbone: to `model.safetensors` and `config.json`, which `AutoModel.from_pretrained` reads.
        heads: `dino_head` and `ibot_head`, to `heads.safetensors`, from which training can continue.
        transform: resize, crop and normalisation, to `preprocessor_config.json`.
        config: the run, for the model card `README.md`.
        facts: for the card; `RunFacts.of_run` finds them in the run's output folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_pretrained(folder)
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, head in heads.items()
        for key, tensor in head.state_dict().items()
    }
    save_file(tensors, folder / HEADS_FILE, metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(transform), indent=2) + "\n")
    model_card(backbone, transform, config, facts, has_heads=bool(heads)).save(folder / "README.md")
    return folder
