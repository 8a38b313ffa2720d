"""Any vision transformer that transformers loads, behind the contract of backbones.

Axes: `B` images, `T` tokens, `D` width, `h`, `w` rows and columns of patches.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Sequence
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..config.limits import check_config
from ..files import first_line
from .base import CropGroup, Features, Tokens, check_layers, tokens_of_maps
from .index import check_indices

_FINAL_NORMS = ("layernorm", "post_layernorm", "norm", "layer_norm", "ln_post")


class StockBackbone(nn.Module):
    """A vision transformer of transformers with the tokens of patches at the end of its sequence, row by row.

    Where it has no CLS token, the mean of the patches takes its place.

    Args:
        model: ViT, DINO, DINOv2, DINOv3, CLIP, SigLIP, …; of a model of images and text the part for images is taken.

    Raises:
        ValueError: no patch size in its config, or no list of blocks.
    """

    takes_masks = False

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = getattr(model, "vision_model", model)
        config = getattr(self.model, "config", model.config)
        self.config = getattr(config, "vision_config", config)
        patch = getattr(self.config, "patch_size", None)
        if patch is None:
            raise ValueError(f"{type(model).__name__} has no patches; take a vision transformer")
        self.stride: int = patch if isinstance(patch, int) else patch[0]
        self.width: int = self.config.hidden_size
        self._blocks = _name_of_blocks(self.model, self.config.num_hidden_layers)
        accepted = inspect.signature(self.model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks, `layer_00`, `layer_01`, … from input to output."""
        blocks = cast(nn.ModuleList, self.get_submodule(self._blocks))
        return {f"layer_{index:02}": block for index, block in enumerate(blocks)}

    def depth_of(self, name: str) -> int:
        """Depth of the parameter `name`: what the model declares before its blocks is 0, what comes after is last."""
        if match := re.match(rf"{re.escape(self._blocks)}\.(\d+)\.", name):
            return int(match[1]) + 1
        for other, _ in self.named_parameters():
            if other == name:
                return 0
            if other.startswith(f"{self._blocks}."):
                return len(self.blocks) + 1
        raise ValueError(f"{name!r} is not a parameter of {type(self.model).__name__}")

    def is_patch_embedding(self, name: str) -> bool:
        """Whether the parameter `name` projects patches to tokens."""
        return "patch_embed" in name

    def tokens(self, groups: Sequence[CropGroup]) -> list[Tokens]:
        """CLS `[B, D]` and the wanted patches `[M, D]` of each group, by one forward a group.

        Raises:
            ValueError: a group has a mask.
        """
        return tokens_of_maps(self, groups)

    def features(self, pixels: Tensor, layers: int = 1) -> list[Features]:
        """CLS `[B, D]` and patches `[B, D, h, w]` of the last `layers` blocks, ascending, each after the final norm.

        Args:
            pixels: `[B, C, H, W]`, normalised; sides are multiples of the stride.

        Raises:
            ValueError: more layers than there are.
        """
        check_layers(layers, self)
        pixels = pixels.to(self.dtype)
        output = self.model(pixel_values=pixels, output_hidden_states=layers > 1, **self._options)
        states = [output.last_hidden_state]
        if layers > 1:
            norm = next((getattr(self.model, name) for name in _FINAL_NORMS if hasattr(self.model, name)), None)
            earlier = output.hidden_states[-layers:-1]
            states = [norm(tokens) if norm else tokens for tokens in earlier] + states
        return [self._split(tokens, self._grid_of(pixels)) for tokens in states]

    def attention(self, pixels: Tensor) -> Tensor:
        """Share of the attention of CLS that each patch gets in the last block, for each head: `[B, heads, h, w]`.

        Raises:
            ValueError: a model without a CLS token.
        """
        grid = self._grid_of(pixels)
        self.model.set_attn_implementation("eager")  # no other keeps the probabilities
        output = self.model(pixel_values=pixels.to(self.dtype), output_attentions=True, **self._options)
        attention, count = output.attentions[-1], grid[0] * grid[1]
        if attention.shape[-1] == count:
            raise ValueError(f"{type(self.model).__name__} has no CLS token, so there is no attention of one to show")
        shares: Tensor = attention[:, :, 0, -count:].unflatten(2, grid).float()
        return shares

    def _grid_of(self, pixels: Tensor) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        return height // self.stride, width // self.stride

    def _split(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        """CLS and the map of patches of `[B, T, D]`."""
        count = grid[0] * grid[1]
        patches = tokens[:, tokens.shape[1] - count :]
        cls = tokens[:, 0] if tokens.shape[1] > count else patches.mean(dim=1)
        return Features(cls, patches.transpose(1, 2).unflatten(2, grid))


def load_stock_backbone(path: str, where: str) -> StockBackbone:
    """Any vision transformer that `AutoModel` loads, from a folder or the Hub, in float32.

    Args:
        where: what messages call it, such as `distill.teacher=/my/model`.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: not a vision transformer.
    """
    try:
        check_indices(path)
        check_config(PreTrainedConfig.get_config_dict(path)[0], f"the config.json of {where}")
        _check_weights(path, where)
        model = AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(f"{where} is not a model that can be read: {first_line(error)}") from None
    except (ValueError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{where} cannot be loaded: {first_line(error)}") from None
    return StockBackbone(model)


def _check_weights(path: str, where: str) -> None:
    """Refuses a model of which the files hold less than half: transformers would draw the rest at random.

    Reads names and shapes only; nothing is allocated.
    """
    log = logging.getLogger("transformers.modeling_utils")
    level = log.level
    log.setLevel(logging.ERROR)  # its report comes when the weights are read
    try:
        model, report = AutoModel.from_pretrained(
            path,
            device_map="meta",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        log.setLevel(level)
    lacking = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    missing = sum(size for name, size in sizes.items() if name in lacking)
    if 2 * missing > sum(sizes.values()):
        raise ValueError(
            f"the files hold {sum(sizes.values()) - missing:,} of the {sum(sizes.values()):,} numbers that config.json "
            "asks for; fetch the model again"
        )


def _name_of_blocks(model: nn.Module, count: int) -> str:
    """Name in a `StockBackbone` of the list of the `count` blocks of its model."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return f"model.{name}"
    raise ValueError(f"{type(model).__name__} has no list of {count} blocks; take a vision transformer")
