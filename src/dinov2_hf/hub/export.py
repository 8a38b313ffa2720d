"""What leaves the project: a folder that stock transformers loads, with everything to understand and continue it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file
from torch import nn

from ..config import PretrainConfig
from ..features import EvalTransform
from ..models import HEADS_FILE, Dinov2Model


def export_folder(
    folder: Path,
    backbone: Dinov2Model,
    heads: Mapping[str, nn.Module],
    transform: EvalTransform,
    config: PretrainConfig,
    facts: Mapping[str, str],
) -> Path:
    """Writes a model in the interchange format.

    Args:
        folder: made if it does not exist.
        backbone: to `model.safetensors` and `config.json`, which `AutoModel.from_pretrained` reads.
        heads: `dino_head` and `ibot_head`, to `heads.safetensors`, from which training can continue.
        transform: resize, crop and normalisation, to `preprocessor_config.json`.
        config: the run, for the model card `README.md`.
        facts: lines for the card's table of results, such as `{"k-NN accuracy": "61.3 %"}`.
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
    model_card(backbone, transform, config, facts).save(folder / "README.md")
    return folder


def preprocessor_config(transform: EvalTransform) -> dict:
    """The transform as the configuration of the stock image processor of DINOv2."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": len(transform.mean) == 3,
        "do_resize": True,
        "size": {"shortest_edge": transform.resize_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": transform.crop_size, "width": transform.crop_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }


def model_card(
    backbone: Dinov2Model, transform: EvalTransform, config: PretrainConfig, facts: Mapping[str, str]
) -> ModelCard:
    """The card of a pretrained backbone, from `model_cards/template.md`."""
    data = ModelCardData(
        library_name="transformers", pipeline_tag="image-feature-extraction", tags=["dinov2", "dinov2_hf"]
    )
    architecture = backbone.config
    template = resources.files("dinov2_hf.model_cards").joinpath("template.md").read_text()
    return ModelCard.from_template(
        data,
        template_str=template,
        architecture=architecture,
        num_parameters=f"{sum(p.numel() for p in backbone.parameters()) / 1e6:.1f} M",
        data_name=Path(config.data.train.path or "").name,
        transform=transform,
        run=config,
        facts=facts,
    )
