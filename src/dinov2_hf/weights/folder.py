"""What leaves the project: a folder that stock transformers loads, with everything to understand and continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ..backbones import Dinov2Model
from ..config import RunConfig
from ..data import EvalTransform, preprocessor_config
from ..objectives import HEADS_FILE
from ..runs.facts import RunFacts
from .cards import model_card
from .read import PREPROCESSOR_FILE


def export_folder(
    folder: Path,
    backbone: Dinov2Model,
    heads: Mapping[str, nn.Module],
    transform: EvalTransform,
    config: RunConfig,
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
    tensors = {f"{name}.{key}": tensor for name, head in heads.items() for key, tensor in head.state_dict().items()}
    write_model(folder, backbone, tensors, preprocessor_config(transform))
    model_card(backbone, transform, config, facts, has_heads=bool(heads)).save(folder / "README.md")
    return folder


def write_model(
    folder: Path, backbone: Dinov2Model, heads: Mapping[str, Tensor], preprocessor: Mapping[str, Any]
) -> None:
    """All of an exported folder but its card; the folder is made if it does not exist.

    Args:
        heads: `dino_head.…` and `ibot_head.…`; where there are none, there is no file of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_pretrained(folder)
    if heads:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in heads.items()}
        save_file(tensors, folder / HEADS_FILE, metadata={"format": "pt"})
    (folder / PREPROCESSOR_FILE).write_text(json.dumps(dict(preprocessor), indent=2) + "\n")
