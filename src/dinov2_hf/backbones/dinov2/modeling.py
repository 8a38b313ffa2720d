"""The DINOv2 vision transformer (Oquab et al., 2023, section 4 and Appendix B) as transformers models.

Axes: `B` images, `C` channels, `N = h w` patches, `R` registers, `T = 1 + R + N` tokens, `D` width, `M` packed tokens.
Parameter names are those of the interchange format (the published `facebook/dinov2-*` files), so saving and loading
rename nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoModel, AutoModelForImageClassification
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
)

from ..base import CropGroup, Features, Tokens, check_layers
from ..index import check_indices
from .attention import Dinov2Attention, SelfAttentionOutput
from .configuration import Dinov2Config
from .embeddings import Dinov2Embeddings
from .layer_scale import LayerScale
from .packing import Packing
from .plain import is_plain
from .stochastic_depth import add_residual, add_residual_of_kept, draw_kept, rows_of_kept
from .stock_names import TakesStockNames

if TYPE_CHECKING:
    from typing_extensions import Self


class Mlp(nn.Module):
    """Two linear layers with an activation in between."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        hidden = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, hidden)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(hidden, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.fc2(self.activation(self.fc1(tokens)))
        return output


class SwiGLU(nn.Module):
    """SwiGLU feed-forward network (Shazeer, 2020) with two thirds of the MLP's hidden width, rounded up to 8."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        hidden = int(config.hidden_size * config.mlp_ratio)
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.weights_in = nn.Linear(config.hidden_size, 2 * hidden)
        self.weights_out = nn.Linear(hidden, config.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.weights_in(tokens).chunk(2, dim=-1)
        output: Tensor = self.weights_out(nn.functional.silu(gate) * value)
        return output


class Dinov2Layer(GradientCheckpointingLayer):
    """A pre-norm transformer layer on tokens `[B, T, D]`, or packed `[M, D]`."""

    def __init__(self, config: Dinov2Config, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Dinov2Attention(config)
        self.layer_scale1 = LayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SwiGLU(config) if config.use_swiglu_ffn else Mlp(config)
        self.layer_scale2 = LayerScale(config)

    def forward(
        self,
        tokens: Tensor,
        packing: Packing | None = None,
        attentions: list[Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Tokens after the layer.

        Args:
            tokens: `[B, T, D]`, or packed `[M, D]` with their `packing`.
            packing: the sequences of packed tokens.
            attentions: a list to which the attention probabilities are added, see `Dinov2Attention.mix`.
            positions: `[S]`, rows of packed tokens. The result is then `[S, D]`: all tokens are attended to, but what
                follows attention is computed for these only.
        """
        if positions is not None:
            assert packing is not None
            if self._is_plain:
                return self._forward_at(tokens, packing, positions)
            return self.forward(tokens, packing).index_select(0, positions)
        if packing is None and self._drops:
            packed, packing = Packing.pack([tokens])
            return packing.unpack(self.forward(packed, packing, attentions))[0]

        def attend(tokens: Tensor, packing: Packing | None) -> Tensor:
            residual: Tensor = self.attention(self.norm1(tokens), packing, attentions)
            return residual

        def feed_forward(tokens: Tensor, packing: Packing | None) -> Tensor:
            residual: Tensor = self.mlp(self.norm2(tokens))
            return residual

        for branch, layer_scale in ((attend, self.layer_scale1), (feed_forward, self.layer_scale2)):
            if self._drops:
                assert packing is not None
                kept = draw_kept(packing, self.drop_path_rate, tokens.device)
                tokens = add_residual_of_kept(tokens, branch, packing, layer_scale, kept)
            else:
                tokens = add_residual(tokens, branch, packing, layer_scale)
        return tokens

    @property
    def _drops(self) -> bool:
        return self.training and self.drop_path_rate > 0

    @property
    def _is_plain(self) -> bool:
        """Whether `_forward_at`, which does not call these modules, computes what they compute."""
        return (
            is_plain(self.attention, Dinov2Attention)
            and is_plain(self.attention.output, SelfAttentionOutput)
            and is_plain(self.layer_scale1, LayerScale)
            and is_plain(self.layer_scale2, LayerScale)
        )

    def _forward_at(self, tokens: Tensor, packing: Packing, positions: Tensor) -> Tensor:
        scale1: Tensor = self.layer_scale1.lambda1
        scale2: Tensor = self.layer_scale2.lambda1
        wanted = tokens.index_select(0, positions)
        if self._drops:
            rows, kept, weights = rows_of_kept(packing, draw_kept(packing, self.drop_path_rate, tokens.device))
            mixed = self.attention.mix(self.norm1(tokens.index_select(0, rows)), kept)
            mixed = mixed.new_zeros(tokens.shape).index_copy(0, rows, mixed).index_select(0, positions)
            scale1 = scale1 * weights.new_zeros(len(tokens), 1).index_copy(0, rows, weights)[positions]
            # few tokens are left, so all of them go through the branch and those of dropped sequences are left out
            rows, _, weights = rows_of_kept(packing, draw_kept(packing, self.drop_path_rate, tokens.device))
            scale2 = scale2 * weights.new_zeros(len(tokens), 1).index_copy(0, rows, weights)[positions]
        else:
            mixed = self.attention.mix(self.norm1(tokens), packing).index_select(0, positions)
        wanted = torch.addcmul(wanted, self.attention.output.dense(mixed).to(wanted.dtype), scale1.to(wanted.dtype))
        return torch.addcmul(wanted, self.mlp(self.norm2(wanted)).to(wanted.dtype), scale2.to(wanted.dtype))


class Dinov2Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Dinov2Layer(config, rate) for rate in config.drop_path_rates)

    def forward(
        self, tokens: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BaseModelOutput:
        """Tokens `[B, T, D]` after the last layer; where asked for, hidden states (input first) and attentions.

        Each hidden state is the tensor that the next layer reads, so gradients reach it.
        """
        attentions: list[Tensor] | None = [] if output_attentions else None
        hidden_states: tuple[Tensor, ...] = (tokens,)
        for layer in self.layer:
            tokens = layer(tokens, None, attentions)
            if output_hidden_states:
                hidden_states += (tokens,)
        return BaseModelOutput(
            last_hidden_state=tokens,
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=None if attentions is None else tuple(attentions),
        )


class Dinov2PreTrainedModel(TakesStockNames):
    """Initialisation and what transformers has to know about these models."""

    config: Dinov2Config
    config_class = Dinov2Config
    base_model_prefix = "dinov2"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple in the classes of transformers too
    supports_gradient_checkpointing = True
    _no_split_modules = ["Dinov2Embeddings", "Dinov2Layer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _input_embed_layer = "patch_embeddings"

    if TYPE_CHECKING:  # without types in transformers

        def eval(self) -> Self: ...
        def post_init(self) -> None: ...

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Self:
        """As in transformers, but only from safetensors, and of a folder only from files in it."""
        check_indices(pretrained_model_name_or_path, kwargs.get("subfolder"))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **{"use_safetensors": True, **kwargs})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights as the published training code starts them; CLS and registers ~ N(0, 1e-6)."""
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
            init.constant_(module.lambda1, self.config.layerscale_value)
        elif isinstance(module, Dinov2Embeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
            init.normal_(module.cls_token, std=1e-6)
            init.zeros_(module.mask_token)
            if module.register_tokens is not None:
                init.normal_(module.register_tokens, std=1e-6)


class _Transformer(Dinov2PreTrainedModel):
    """Embeddings, layers and the final norm: what `Dinov2Model` and `Dinov2Backbone` share."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.embeddings = Dinov2Embeddings(config)
        self.encoder = Dinov2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

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


class Dinov2Model(_Transformer):
    """The backbone. `Dinov2Model(config)` starts from scratch, `from_pretrained` reads the published checkpoints."""

    takes_masks = True

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
        """The tokens of `forward_packed` at `positions` alone; the last layer computes little more than these.

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
        """
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


class Dinov2Backbone(BackboneMixin, _Transformer):
    """Feature maps of chosen stages (`config.out_features` or `out_indices`), for detectors and segmenters."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Maps `[B, D, h, w]` (or tokens `[B, T, D]` if `config.reshape_hidden_states` is off) of the chosen stages."""
        encoded = self._encode(pixel_values, None, True, output_attentions)
        hidden_states = encoded.hidden_states
        assert hidden_states is not None
        feature_maps = []
        for stage, tokens in zip(self.stage_names, hidden_states):
            if stage in self.out_features:
                tokens = self.layernorm(tokens) if self.config.apply_layernorm else tokens
                if self.config.reshape_hidden_states:
                    tokens = self._feature_map(tokens, pixel_values)
                feature_maps.append(tokens)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = BackboneOutput(
            feature_maps=tuple(feature_maps),  # type: ignore[arg-type]  # annotated as a tuple of one
            hidden_states=hidden_states if output_hidden_states else None,
            attentions=encoded.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


class Dinov2ForImageClassification(Dinov2PreTrainedModel):
    """A linear classifier on CLS and the mean of the patches, as the published linear heads."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        # the stock classes hold the backbone under their model type, which the names in the checkpoint repeat
        self.base_model_prefix = config.to_dict()["model_type"]
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, Dinov2Model(config))
        num_labels = config.num_labels or 0
        self.classifier = nn.Linear(2 * config.hidden_size, num_labels) if num_labels > 0 else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """`logits` `[B, num_labels]` and, with `labels` `[B]`, the `loss`."""
        features = self.base_model(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        tokens = features.last_hidden_state
        patches = tokens[:, self.config.num_prefix_tokens :]
        logits = self.classifier(torch.cat((tokens[:, 0], patches.mean(dim=1)), dim=1))
        output = ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


AutoModel.register(Dinov2Config, Dinov2Model, exist_ok=True)
AutoBackbone.register(Dinov2Config, Dinov2Backbone, exist_ok=True)
AutoModelForImageClassification.register(Dinov2Config, Dinov2ForImageClassification, exist_ok=True)
