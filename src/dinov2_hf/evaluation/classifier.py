"""A backbone with a linear head that is trained as a whole: the network, its parameter groups, its folder.

Axes: `B` images, `C` classes.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones import Dinov2ForImageClassification, Dinov2Model, VisionTransformer
from ..data import EvalTransform, preprocessor_config
from ..files import beside

_BLOCK = re.compile(r"\.(?:layers?|blocks?)\.(\d+)\.")


class Classifier(nn.Module):
    """A linear classifier on CLS and the mean of the patches, as `Dinov2ForImageClassification`, over a copy.

    Args:
        backbone: stays as it is.
        drop_path_rate: stochastic depth of every block, where the backbone is one of this package.
        generator: that the head is drawn from.
    """

    def __init__(
        self, backbone: VisionTransformer, num_classes: int, drop_path_rate: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).float().requires_grad_(True)
        if isinstance(self.backbone.model, Dinov2Model):
            for layer in self.backbone.model.encoder.layer:
                layer.drop_path_rate = drop_path_rate
        self.classifier = nn.Linear(2 * backbone.hidden_size, num_classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `[B, C]` of normalised images, in float32."""
        cls, patches = self.backbone(pixel_values)[-1]
        return self.classifier(torch.cat((cls, patches.mean(dim=(2, 3))), dim=1)).float()

    def groups(self, layer_decay: float, weight_decay: float) -> list[dict]:
        """Groups of an optimiser, with `lr_multiplier`: it falls by `layer_decay` a block from the head downwards.

        Biases, norms, LayerScale, tokens and positions are not decayed.
        """
        depth = self.backbone.num_layers
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            block = _BLOCK.search(name)
            below_head = depth - int(block[1]) if block else depth + 1 if "embed" in name else 0
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
        Whether it did: models of other packages have classifiers of other inputs.
    """
    if not isinstance(model.backbone.model, Dinov2Model):
        return False
    config = copy.deepcopy(model.backbone.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "multi_label_classification" if several else "single_label_classification"
    whole = Dinov2ForImageClassification(config)
    whole.base_model.load_state_dict(model.backbone.model.state_dict())
    whole.classifier.load_state_dict(model.classifier.state_dict())
    preprocessor = json.dumps(preprocessor_config(transform), indent=2) + "\n"
    with beside(folder) as temporary:
        whole.save_pretrained(temporary)
        (temporary / "preprocessor_config.json").write_text(preprocessor)
    return True
