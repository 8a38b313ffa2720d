"""What the vision transformers of all families share: initialisation, the packed forward, and the contract `Backbone`.

Axes: `B` images, `C` channels, `N = h w` patches, `R` registers, `T = 1 + R + N` tokens, `D` width, `M` packed tokens,
`S` wanted tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from ..base import CropGroup, Features, Tokens, check_layers
from ..pretrained import SafePreTrainedModel
from .configuration import TransformerConfig
from .embeddings import Embeddings
from .layer import Encoder
from .layer_scale import LayerScale
from .packing import Packing


class PreTrainedTransformer(SafePreTrainedModel):
    """Initialisation and what transformers has to know about the models of all families."""

    config: TransformerConfig
    embeddings: Embeddings
    encoder: Encoder
    layernorm: nn.LayerNorm
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights as the published training codes start them; a family says how CLS and registers start."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            self._init_layer_scale(module)
        elif isinstance(module, Embeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
            self._init_prefix(module)

    def _init_layer_scale(self, layer_scale: LayerScale) -> None:
        """Starts a LayerScale, in families that have it."""
        raise NotImplementedError

    def _init_prefix(self, embeddings: Embeddings) -> None:
        """Starts CLS, mask token and registers."""
        raise NotImplementedError

    def _encode(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
    ) -> BaseModelOutput:
        """What the encoder returns, before the final norm; None takes the setting of the config."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        encoded: BaseModelOutput = self.encoder(
            self.embeddings(pixel_values, bool_masked_pos), output_hidden_states, output_attentions
        )
        return encoded

    def _feature_map(self, tokens: Tensor, pixel_values: Tensor) -> Tensor:
        """Patch tokens of `[B, T, D]` as a map `[B, D, h, w]`."""
        grid = self.config.grid_of(*pixel_values.shape[-2:])
        patches = tokens[:, self.config.num_prefix_tokens :]
        maps: Tensor = patches.unflatten(1, grid).permute(0, 3, 1, 2)
        return maps.contiguous()


class VisionTransformer(PreTrainedTransformer):
    """Embeddings, layers and the final norm: the contract `Backbone`, on packed groups of crops."""

    @property
    def takes_masks(self) -> bool:
        """Whether there is a mask token."""
        return self.embeddings.mask_token is not None

    @property
    def width(self) -> int:
        """Channels D of the features."""
        return self.config.hidden_size

    @property
    def stride(self) -> int:
        """Pixels between two neighbouring patches."""
        return self.config.patch_height_width[0]

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """The layers, `layer_00`, `layer_01`, … from input to output."""
        return {f"layer_{index:02}": layer for index, layer in enumerate(self.encoder.layer)}

    def depth_of(self, name: str) -> int:
        """Depth of the parameter `name`: 0 in the embeddings, `i + 1` in layer `i`, one more in the final norm."""
        if name.startswith("embeddings."):
            return 0
        if match := re.match(r"encoder\.layer\.(\d+)\.", name):
            return int(match[1]) + 1
        return len(self.encoder.layer) + 1

    def is_patch_embedding(self, name: str) -> bool:
        """Whether the parameter `name` projects patches to tokens."""
        return name.startswith("embeddings.patch_embeddings.")

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Features of a batch of images of one size; sides may differ from each other and from `config.image_size`.

        Args:
            pixel_values: `[B, C, H, W]`, normalised.
            bool_masked_pos: `[B, N]`, True where the mask token replaces a patch.

        Returns:
            `last_hidden_state` `[B, 1 + R + N, D]` after the final norm (CLS, registers, patches row by row),
            `pooler_output` `[B, D]` (CLS); where asked for, `hidden_states` (embeddings, then each layer, not normed)
            and `attentions` `[B, heads, T, T]` per layer.
        """
        encoded = self._encode(pixel_values, bool_masked_pos, output_hidden_states, output_attentions)
        tokens = self.layernorm(encoded.last_hidden_state)
        output = BaseModelOutputWithPooling(
            tokens, tokens[:, 0], hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return output if self._returns_dict(return_dict) else output.to_tuple()

    def forward_packed(
        self, crops: Sequence[Tensor], bool_masked_pos: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """One forward over groups of crops of different sizes: equal to a forward for each, with larger matrices.

        Args:
            crops: groups `[B_g, C, H_g, W_g]`.
            bool_masked_pos: for each group `[B_g, N_g]` or None.

        Returns:
            Tokens after the final norm, `[B_g, T_g, D]` for each group.
        """
        tokens, packing = self._embed(crops, bool_masked_pos)
        for layer in self.encoder.layer:
            tokens = layer(tokens, packing)
        return packing.unpack(self.layernorm(tokens))

    def forward_at(
        self, positions: Tensor, crops: Sequence[Tensor], bool_masked_pos: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """The tokens of `forward_packed` at `positions` only; the last layer computes little more than these.

        Args:
            positions: `[S]`, counted through all groups, crop by crop: CLS, registers, patches.
            crops: as for `forward_packed`.
            bool_masked_pos: as for `forward_packed`.

        Returns:
            Tokens after the final norm, `[S, D]`.
        """
        tokens, packing = self._embed(crops, bool_masked_pos)
        *layers, last = self.encoder.layer
        for layer in layers:
            tokens = layer(tokens, packing)
        wanted: Tensor = self.layernorm(last(tokens, packing, positions=positions))
        return wanted

    def tokens(self, groups: Sequence[CropGroup]) -> list[Tokens]:
        """One forward over groups of crops of different sizes; the last layer computes little more than what is wanted.

        Returns:
            For each group CLS `[B, D]` and the wanted patches `[M, D]`, after the final norm.

        Raises:
            ValueError: a group has a mask, and the model takes none.
        """
        if not self.takes_masks and any(group.mask is not None for group in groups):
            raise ValueError(f"{type(self).__name__} takes no masks without a mask token; leave CropGroup.mask out")
        prefix, start = self.config.num_prefix_tokens, 0
        positions, counts = [], []
        for group in groups:
            crops, device = len(group.pixels), group.pixels.device
            rows, columns = self.config.grid_of(*group.pixels.shape[-2:])
            length = prefix + rows * columns
            positions.append(start + length * torch.arange(crops, device=device))
            wanted = positions[0][:0] if group.wanted is None else group.wanted
            crop, patch = wanted // (rows * columns), wanted % (rows * columns)
            positions.append(start + length * crop + prefix + patch)
            counts += [crops, len(wanted)]
            start += crops * length
        tokens = self.forward_at(
            torch.cat(positions), [group.pixels for group in groups], [group.mask for group in groups]
        )
        parts = tokens.split(counts)
        return [Tokens(cls, patches) for cls, patches in zip(parts[::2], parts[1::2])]

    def features(self, pixels: Tensor, layers: int = 1, final_norm: bool = True) -> list[Features]:
        """CLS `[B, D]` and patches `[B, D, h, w]` of the last `layers` layers, ascending.

        Args:
            final_norm: each after the final norm, or before it.

        Raises:
            ValueError: more layers than there are.
        """
        check_layers(layers, self)
        return [Features(cls, patches) for patches, cls in self.get_intermediate_layers(pixels, layers, final_norm)]

    def attention(self, pixels: Tensor) -> Tensor:
        """Share of the attention of CLS that each patch gets in the last layer, for each head: `[B, heads, h, w]`."""
        attention: Tensor = self(pixels, output_attentions=True).attentions[-1]
        grid = self.config.grid_of(*pixels.shape[-2:])
        shares: Tensor = attention[:, :, 0, self.config.num_prefix_tokens :].unflatten(2, grid)
        return shares.float()

    def _embed(
        self, crops: Sequence[Tensor], bool_masked_pos: Sequence[Tensor | None] | None
    ) -> tuple[Tensor, Packing]:
        masks = [None] * len(crops) if bool_masked_pos is None else bool_masked_pos
        return Packing.pack([self.embeddings(crop, mask) for crop, mask in zip(crops, masks, strict=True)])

    def get_intermediate_layers(
        self, pixel_values: Tensor, layers: int | Sequence[int] = 1, norm: bool = True
    ) -> list[tuple[Tensor, Tensor]]:
        """Feature maps of the last `layers` layers, or of the layers with the given indices (0 is the first).

        Returns:
            For each layer, in ascending order, patches `[B, D, h, w]` and CLS `[B, D]`, after the final norm or not.
        """
        depth = len(self.encoder.layer)
        wanted = range(depth - layers, depth) if isinstance(layers, int) else sorted(index % depth for index in layers)
        tokens = self.embeddings(pixel_values)
        outputs = []
        for index, layer in enumerate(self.encoder.layer[: max(wanted) + 1]):
            tokens = layer(tokens)
            if index in wanted:
                features = self.layernorm(tokens) if norm else tokens
                outputs.append((self._feature_map(features, pixel_values), features[:, 0]))
        return outputs

    def _returns_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)
