"""What another format has no place for: it travels in the file's metadata, so that the way back is exact.

The metadata holds small files as text: `config.json`, `preprocessor_config.json`, and `tensors.safetensors` in base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedConfig

from ..backbones import family_of_model_type

_CONFIG, _PREPROCESSOR, _TENSORS = "config.json", "preprocessor_config.json", "tensors.safetensors"


@dataclass
class Notes:
    """What stands in a file's metadata; nothing, in files that others wrote."""

    config: PreTrainedConfig | None = None
    preprocessor: dict[str, Any] | None = None
    """Configuration of the image processor."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of the backbone, under the names of the interchange format, that the format itself does not keep."""

    def pack(self) -> dict[str, str]:
        """As metadata."""
        packed = {}
        if self.config is not None:
            packed[_CONFIG] = json.dumps(json.loads(self.config.to_json_string(use_diff=False)))
        if self.preprocessor is not None:
            packed[_PREPROCESSOR] = json.dumps(self.preprocessor)
        if self.tensors:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
            packed[_TENSORS] = base64.b64encode(save(tensors)).decode()
        return packed

    @classmethod
    def unpack(cls, metadata: Mapping[str, str] | None, where: str) -> Notes:
        """The notes in the metadata of the file that messages call `where`.

        Raises:
            ValueError: notes that are damaged.
        """
        metadata = metadata or {}
        notes = cls()
        try:
            if _CONFIG in metadata:
                settings = json.loads(metadata[_CONFIG])
                model_type = settings.pop("model_type", "dinov2")  # the class writes it
                family: Any = family_of_model_type(model_type)
                if family is None:
                    raise ValueError(f"model_type={model_type!r} is not one of a family")
                notes.config = family.backbone.config_class.from_dict(settings)
            if _PREPROCESSOR in metadata:
                notes.preprocessor = json.loads(metadata[_PREPROCESSOR])
            if _TENSORS in metadata:
                notes.tensors = load(base64.b64decode(metadata[_TENSORS]))
        except (ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise ValueError(f"{where} has damaged metadata ({error}); export it again") from None
        return notes
