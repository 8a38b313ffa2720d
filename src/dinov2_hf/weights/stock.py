"""Models of other families that `AutoModel` loads, from a folder or the Hub: for features, not for export."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor, PreTrainedConfig

from ..backbones import family_of_model_type, load_stock_backbone
from ..config.limits import check_config
from ..files import first_line
from .base import Format, Place, Weights
from .folder import PREPROCESSOR_FILE, read_folder


def holds_stock(place: Place) -> bool:
    """Whether transformers says that this is a model of another family than ours."""
    path = Path(place.path)
    if path.is_file() or (path.is_dir() and not (path / "config.json").is_file()):
        return False
    try:
        model_type = PreTrainedConfig.get_config_dict(place.path)[0].get("model_type", "")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # what is wrong is said when it is read
        return False
    return model_type in CONFIG_MAPPING and family_of_model_type(model_type) is None


def read_stock(place: Place) -> Weights:
    """Reads config and preprocessor; the model when it is built.

    Raises:
        ValueError: a config that is damaged, or asks for more than `config.limits` allows.
    """
    check_config(PreTrainedConfig.get_config_dict(place.path)[0], f"the config.json of {place.where}")
    try:
        config = AutoConfig.from_pretrained(place.path, trust_remote_code=False)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{place.where} cannot be read: {' '.join(str(error).split())}; fetch it again") from None
    config = getattr(config, "vision_config", config)
    try:
        preprocessor = AutoImageProcessor.from_pretrained(place.path, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        if (Path(place.path) / PREPROCESSOR_FILE).is_file() or isinstance(error, ValueError):
            raise ValueError(
                f"{place.where} has a preprocessor that cannot be read: {first_line(error)}; fetch or export it again"
            ) from None
        preprocessor = None
    size = getattr(config, "image_size", None) or 224
    return Weights(
        place.where,
        f"model of another family ({config.model_type}) that transformers loads",
        config,
        lambda network: read_folder(place).network(network),  # which refuses it
        place.network,
        preprocessor=preprocessor,
        side=size if isinstance(size, int) else size[0],
        load=lambda: load_stock_backbone(place.path, place.where),
        of_a_family=False,
    )


FORMAT = Format(holds=holds_stock, read=read_stock)
