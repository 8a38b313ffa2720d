"""Any vision model that transformers loads, behind the contract of backbones.

Axes: `B` images, `T` tokens, `D` width, `h`, `w` rows and columns of patches.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..config.limits import check_config
from ..files import first_line
from .base import CropGroup, Features, Tokens, check_layers, tokens_of_maps
from .index import check_indices

_FINAL_NORMS = ("layernorm", "post_layernorm", "norm", "layer_norm", "ln_post", "rms_norm")
_COARSEST = 6
"""Doublings of the patch that a pyramid may have."""
_LARGEST_TRIED = 1024
"""Side in pixels of the image that a model is tried on when it is opened."""
_REMEDY = "take a model of single images, such as ViT, DINOv3, Swin or ConvNeXt"


class StockBackbone(nn.Module):
    """A vision model of transformers, of one of three kinds.

    - A transformer of one resolution: its patches, and CLS, or the mean of the patches where it has none. Patches are
      at the end of its sequence, row by row.
    - A transformer that halves its resolution, such as Swin: the last map, and its mean.
    - A convolutional network: the last map, and its pooled features.

    The last two are one block, and give the features of their last layer only. ViTMAE masks nothing here.

    Args:
        model: ViT, DINO, DINOv2, DINOv3, CLIP, SigLIP, Swin, ConvNeXt, ResNet, …; of a model of images and text the
            part for images is taken. It runs once, on a black image.

    Raises:
        ValueError: it takes something else than images of one size, or its output is of none of these kinds.
    """

    takes_masks = False

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = getattr(model, "vision_model", model)
        config = getattr(self.model, "config", model.config)
        self.config = getattr(config, "vision_config", config)
        self._name = type(model).__name__
        accepted = _check_inputs(self.model, self._name)
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        self._shuffles = "noise" in accepted and hasattr(self.config, "mask_ratio")
        self._blocks: str | None = None
        self._find_layout()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The blocks, `layer_00`, `layer_01`, … from input to output; the whole model where it changes resolution."""
        if self._blocks is None:
            return {"layer_00": self.model}
        blocks = cast(nn.ModuleList, self.get_submodule(self._blocks))
        return {f"layer_{index:02}": block for index, block in enumerate(blocks)}

    @property
    def fingerprint_settings(self) -> dict[str, Any]:
        """What of its features does not follow from config and weights, after release 0.5."""
        return {"final_norm": "ours"} if self._ending == "without norm" else {}

    def depth_of(self, name: str) -> int:
        """Depth of the parameter `name`: what the model declares before its blocks is 0, what comes after is last."""
        if name not in dict(self.named_parameters()):
            raise ValueError(f"{name!r} is not a parameter of {self._name}")
        if self._blocks is None:
            return 1
        if match := re.match(rf"{re.escape(self._blocks)}\.(\d+)\.", name):
            return int(match[1]) + 1
        for other, _ in self.named_parameters():
            if other == name:
                return 0
            if other.startswith(f"{self._blocks}."):
                break
        return len(self.blocks) + 1

    def is_patch_embedding(self, name: str) -> bool:
        """Whether the parameter `name` projects patches to tokens."""
        return "patch_embed" in name

    def tokens(self, groups: Sequence[CropGroup]) -> list[Tokens]:
        """CLS `[B, D]` and the wanted patches `[M, D]` of each group, by one forward a group.

        Raises:
            ValueError: a group has a mask.
        """
        return tokens_of_maps(self, groups)

    def features(self, pixels: Tensor, layers: int = 1, final_norm: bool = True) -> list[Features]:
        """CLS `[B, D]` and patches `[B, D, h, w]` of the last `layers` blocks, ascending.

        Args:
            pixels: `[B, C, H, W]`, normalised; sides are multiples of the stride.
            final_norm: each after the final norm of the model, or before it.

        Raises:
            ValueError: more layers than there are, a size that the model cannot take, features before a norm that is
                not known.
        """
        check_layers(layers, self)
        pixels = pixels.to(self.dtype)
        if layers == 1 and final_norm and self._ending != "without norm":
            return [self._split(self._run(pixels), pixels)]
        if self._ending == "unknown":
            raise ValueError(
                f"{self._name} gives the features after its last layer only, as it has no final norm that is known; "
                "use one layer, and final_norm=true"
            )
        with self._recorded() as states:
            self._run(pixels)
        grid, norm = self._grid_of(pixels), self._final_norm if final_norm else None
        return [self._split_tokens(state if norm is None else norm(state), grid) for state in states[-layers:]]

    def attention(self, pixels: Tensor) -> Tensor:
        """Share of the attention of CLS that each patch gets in the last block, for each head: `[B, heads, h, w]`.

        Raises:
            ValueError: a model without a CLS token, or that does not give its attention.
        """
        if self._blocks is None or not self._prefix:
            raise ValueError(f"{self._name} has no CLS token, so there is no attention of one to show")
        grid = self._grid_of(pixels)
        self.model.set_attn_implementation("eager")  # no other keeps the probabilities
        attentions = self._run(pixels.to(self.dtype), output_attentions=True).attentions
        if not attentions or attentions[-1] is None:
            raise ValueError(f"{self._name} does not give its attention, so there is none to show")
        shares: Tensor = attentions[-1][:, :, 0, -grid[0] * grid[1] :].unflatten(2, grid).float()
        return shares

    def _run(self, pixels: Tensor, **options: Any) -> Any:
        """The output of the model, with no patch masked."""
        if not self._shuffles:
            return self.model(pixel_values=pixels, **self._options, **options)
        patch = self.config.patch_size
        count = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
        order = torch.arange(count, device=pixels.device, dtype=torch.float32).expand(len(pixels), count)
        share, self.config.mask_ratio = self.config.mask_ratio, 0.0
        try:
            return self.model(pixel_values=pixels, noise=order, **self._options, **options)
        finally:
            self.config.mask_ratio = share

    @property
    def _final_norm(self) -> nn.Module | None:
        return next((getattr(self.model, name) for name in _FINAL_NORMS if hasattr(self.model, name)), None)

    @contextmanager
    def _recorded(self) -> Iterator[list[Tensor]]:
        """What the blocks give while the context lasts, `[B, T, D]` each."""
        states: list[Tensor] = []

        def record(block: nn.Module, inputs: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        hooks = [block.register_forward_hook(record) for block in self.blocks.values()]
        try:
            yield states
        finally:
            for hook in hooks:
                hook.remove()

    def _grid_of(self, pixels: Tensor) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        return height // self.stride, width // self.stride

    def _split(self, output: Any, pixels: Tensor) -> Features:
        """CLS and the map of patches of the output of the model."""
        values, grid = output.last_hidden_state, self._grid_of(pixels)
        if values.ndim == 3:
            return self._split_tokens(values, grid)
        pooled = getattr(output, "pooler_output", None)
        return Features(values.mean(dim=(2, 3)) if pooled is None else pooled.flatten(1), values)

    def _split_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        """CLS and the map of patches of `[B, T, D]`."""
        if tokens.shape[1] != self._prefix + grid[0] * grid[1]:
            raise ValueError(
                f"{self._name} gives {tokens.shape[1]} tokens for {grid[0]} x {grid[1]} patches of {self.stride} "
                f"pixels and {self._prefix} more; use sides that are multiples of {self.stride}"
            )
        patches = tokens[:, self._prefix :]
        cls = tokens[:, 0] if self._prefix else patches.mean(dim=1)
        return Features(cls, patches.transpose(1, 2).unflatten(2, grid))

    @torch.no_grad()
    def _find_layout(self) -> None:
        """Finds stride, width, blocks and the end of the model by what it makes of a black image.

        Raises:
            ValueError: an output that is not known.
        """
        height, width = _sides(getattr(self.config, "image_size", None))
        weight, was_training = next(self.model.parameters()), self.model.training
        black = weight.new_zeros(1, getattr(self.config, "num_channels", 3), height, width)
        name = _name_of_blocks(self.model, getattr(self.config, "num_hidden_layers", None))
        self._blocks, self._prefix, self._ending = name, 0, "unknown"
        self.model.eval()
        try:
            with self._recorded() as states:
                output = self._run(black)
            values = output.last_hidden_state
        except Exception as error:
            raise ValueError(
                f"{self._name} cannot take an image of {height} x {width} pixels ({first_line(error)}); {_REMEDY}"
            ) from None
        finally:
            self.model.train(was_training)
        found = _layout(values, (height, width), _patch(self.config), self._tokens_before())
        if found is None:
            raise ValueError(
                f"{self._name} makes {list(values.shape)} of an image of {height} x {width} pixels, which is not a map "
                f"of patches with its CLS token; {_REMEDY}"
            )
        self.stride, self._prefix = found
        self.width: int = values.shape[1] if values.ndim == 4 else values.shape[2]
        if values.ndim == 4 or self.stride != _patch(self.config) or name is None:
            self._blocks = None
            return
        norm = self._final_norm
        if _same(states[-1] if norm is None else norm(states[-1]), values):
            self._ending = "with norm"
        elif norm is not None and _same(states[-1], values):
            self._ending = "without norm"  # as CLIP, which norms its CLS token only

    def _tokens_before(self) -> set[int]:
        """How many tokens a sequence may have before its patches: CLS, registers, the one of distillation."""
        registers = getattr(self.config, "num_register_tokens", 0) or 0
        distilled = any(name.endswith("distillation_token") for name, _ in self.model.named_parameters())
        return {0, 1, 1 + registers} | ({2} if distilled else set())


def load_stock_backbone(path: str, where: str) -> StockBackbone:
    """Any vision model that `AutoModel` loads, from a folder or the Hub, in float32.

    Args:
        where: what messages call it, such as `distill.teacher=/my/model`.

    Raises:
        FileNotFoundError: nothing at `path`.
        ValueError: not a vision model of single images, or weights that do not fit its config.
    """
    try:
        check_indices(path)
        check_config(PreTrainedConfig.get_config_dict(path)[0], f"the config.json of {where}")
        lacking = _check_weights(path, where)
        model = AutoModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(f"{where} is not a model that can be read: {first_line(error)}") from None
    except (ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{where} cannot be loaded: {first_line(error)}") from None
    try:
        backbone = StockBackbone(model)
    except ValueError as error:
        raise ValueError(f"{where} cannot be used: {error}") from None
    # transformers fills what is missing with fresh weights; poolers and mask tokens are not used
    inside = (backbone._blocks or "model.encoder").removeprefix("model.")
    if missing := sorted(name for name in lacking if f"{inside}." in name):
        raise ValueError(
            f"{where} lacks {len(missing)} weights of its blocks, such as {missing[0]}; fetch or export it again"
        )
    return backbone


def _check_weights(path: str, where: str) -> set[str]:
    """Returns the names of the weights that the files lack, which transformers would draw at random.

    Reads names and shapes only; nothing is allocated.

    Raises:
        ValueError: the files hold less than half of the model.
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
    return lacking


def _check_inputs(model: nn.Module, name: str) -> set[str]:
    """Returns what the forward of a model takes.

    Raises:
        ValueError: more than images.
    """
    parameters = inspect.signature(model.forward).parameters
    if "pixel_values" not in parameters:
        raise ValueError(f"{name} takes {next(iter(parameters), 'nothing')} and not pixel_values; {_REMEDY}")
    needed = [
        each.name
        for each in parameters.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "pixel_values"
    ]
    if "spatial_shapes" in needed:
        raise ValueError(
            f"{name} takes patches of images of any shape (NaFlex), and images here are of one size; take a checkpoint "
            "of one size, such as google/siglip2-base-patch16-224"
        )
    if needed:
        raise ValueError(f"{name} takes {', '.join(needed)} beside images; {_REMEDY}")
    return set(parameters)


def _sides(image_size: Any) -> tuple[int, int]:
    """Height and width of the images of a model; 224 where its config does not say it, or asks for very large ones."""
    sides = image_size if isinstance(image_size, (list, tuple)) else (image_size, image_size)
    known = len(sides) == 2 and all(isinstance(side, int) and 0 < side <= _LARGEST_TRIED for side in sides)
    return (sides[0], sides[1]) if known else (224, 224)


def _patch(config: Any) -> int | None:
    """Side of the patches that a config names; None where there is none, or they are not square."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, (list, tuple)):
        patch = patch[0] if len(set(patch)) == 1 else None
    return patch if isinstance(patch, int) else None


def _layout(values: Tensor, sides: tuple[int, int], patch: int | None, before: set[int]) -> tuple[int, int] | None:
    """Stride in pixels and tokens before the patches, by the output for an image; None where it has no patches."""
    height, width = sides
    if values.ndim == 4:
        stride = -(-height // values.shape[2])
        fits = -(-width // values.shape[3]) == stride
        return (stride, 0) if fits else None
    if values.ndim != 3:
        return None
    for doublings in range(_COARSEST):
        stride = (patch or 2) << doublings
        prefix = values.shape[1] - (height // stride) * (width // stride)
        if prefix in before and prefix < values.shape[1]:
            return stride, prefix
    return None


def _same(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def _name_of_blocks(model: nn.Module, count: int | None) -> str | None:
    """Name in a `StockBackbone` of the list of the `count` blocks of its model; None where there is no such list."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return f"model.{name}"
    return None
