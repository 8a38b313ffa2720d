"""A backbone with a linear head that is trained as a whole: the network, its parameter groups, its folder.

Axes: `B` images, `C` classes.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbones import Backbone, PretrainedBackbone, family_of
from ..data import EvalTransform, preprocessor_config
from ..files import beside


class Classifier(nn.Module):
    """A linear classifier on CLS and the mean of the patches, as `Family.classifier`, over a copy of a backbone.

    Args:
        backbone: stays as it is.
        drop_path_rate: stochastic depth of every block that has a `drop_path_rate`; the others keep theirs.
        generator: that the head is drawn from.
    """

    def __init__(self, backbone: Backbone, num_classes: int, drop_path_rate: float, generator: torch.Generator) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).float().requires_grad_(True)
        blocks: Mapping[str, Any] = self.backbone.blocks
        for block in blocks.values():
            if hasattr(block, "drop_path_rate"):
                block.drop_path_rate = drop_path_rate
        self.classifier = nn.Linear(2 * backbone.width, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `[B, C]` of normalised images, in float32."""
        ((cls, patches),) = self.backbone.features(pixel_values)
        return self.classifier(torch.cat((cls, patches.mean(dim=(2, 3))), dim=1)).float()

    def groups(self, layer_decay: float, weight_decay: float) -> list[dict]:
        """Groups of an optimiser, with `lr_multiplier`: it falls by `layer_decay` a block from the head downwards.

        Biases, norms, LayerScale, tokens and positions are not decayed.
        """
        after_blocks = len(self.backbone.blocks) + 1
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            part, _, inner = name.partition(".")
            below_head = after_blocks - self.backbone.depth_of(inner) if part == "backbone" else 0
            decays = parameter.ndim > 1 and not re.search("token|position", name)
            groups.setdefault((below_head, decays), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr_multiplier": layer_decay**below_head,
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (below_head, decays), parameters in groups.items()
        ]


def save_classifier(
    folder: Path, model: Classifier, names: Sequence[str], transform: EvalTransform, several: bool
) -> bool:
    """Writes a folder that `AutoModelForImageClassification` loads, whole or not at all.

    Args:
        names: of the classes.
        several: whether images have several of them.

    Returns:
        Whether it did: a stock model, or a family without such a classifier, is not saved.
    """
    family = family_of(model.backbone)
    if family is None or family.classifier is None:
        return False
    config = copy.deepcopy(cast(PretrainedBackbone, model.backbone).config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "multi_label_classification" if several else "single_label_classification"
    whole = family.classifier(config)
    whole.base_model.load_state_dict(model.backbone.state_dict())
    whole.classifier.load_state_dict(model.classifier.state_dict())
    preprocessor = json.dumps(preprocessor_config(transform), indent=2) + "\n"
    with beside(folder) as temporary:
        whole.save_pretrained(temporary)
        (temporary / "preprocessor_config.json").write_text(preprocessor)
    return True
