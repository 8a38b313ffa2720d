"""The backbone: shapes and sizes, attention implementations, checkpointing, initialisation, outputs, errors."""

import sys
import types

import pytest
import torch

from dinov2_hf import Dinov2Backbone, Dinov2Config, Dinov2Model
from dinov2_hf.backbones import recompute_blocks
from dinov2_hf.backbones.transformer.attention import SelfAttentionProjections, eager_attention_forward
from dinov2_hf.backbones.transformer.embeddings import interpolate_positions


def test_rectangular_image_size_needs_no_interpolation_at_its_own_size(tiny):
    model = tiny(image_size=(32, 48))
    assert model.embeddings.position_embeddings.shape == (1, 1 + 4 * 6, 48)
    tokens = model.embeddings(torch.zeros(1, 3, 32, 48))[:, model.config.num_prefix_tokens :]
    positions = model.embeddings.position_embeddings[:, 1:]
    bias = model.embeddings.patch_embeddings.projection.bias
    torch.testing.assert_close(tokens, positions + bias)


def test_rectangular_patches_and_channels_are_taken(tiny):
    model = tiny(patch_size=(4, 8), num_channels=5, image_size=(16, 32))
    output = model(torch.randn(2, 5, 8, 24))
    assert output.last_hidden_state.shape == (2, 1 + 2 + 2 * 3, 48)


def test_equal_patch_counts_of_other_shape_are_interpolated(tiny):
    """A 2 x 8 grid has the 16 positions of a 4 x 4 one but must not take them over."""
    model = tiny()
    _, positions = model.embeddings._positions(2, 8)
    assert positions.shape == (1, 16, 48)
    assert not torch.allclose(positions, model.embeddings.position_embeddings[:, 1:])


def test_interpolation_of_constant_positions_is_constant():
    positions = torch.full((1, 12, 5), 0.7)
    for antialias, offset in ((False, 0.0), (True, 0.0), (False, 0.1)):
        result = interpolate_positions(positions, (3, 4), (5, 2), antialias=antialias, offset=offset)
        torch.testing.assert_close(result, torch.full((1, 10, 5), 0.7))


def test_interpolation_is_done_in_float32():
    positions = torch.randn(1, 16, 4)
    half = interpolate_positions(positions.bfloat16(), (4, 4), (7, 5), antialias=True, offset=0.0)
    whole = interpolate_positions(positions.bfloat16().float(), (4, 4), (7, 5), antialias=True, offset=0.0)
    assert torch.equal(half, whole.bfloat16())


def test_transposing_image_and_positions_transposes_the_features(tiny):
    """Height and width are not mixed up anywhere: a mirrored problem has the mirrored answer."""
    model, mirrored = tiny(image_size=(32, 16)), tiny(image_size=(16, 32))
    mirrored.load_state_dict(model.state_dict())
    with torch.no_grad():
        projection = mirrored.embeddings.patch_embeddings.projection.weight
        projection.copy_(projection.transpose(2, 3).clone())
        positions = mirrored.embeddings.position_embeddings
        positions[:, 1:] = positions[:, 1:].unflatten(1, (4, 2)).transpose(1, 2).flatten(1, 2)
        pixels = torch.randn(1, 3, 32, 16)
        (patches, cls), *_ = model.get_intermediate_layers(pixels)
        (patches_mirrored, cls_mirrored), *_ = mirrored.get_intermediate_layers(pixels.transpose(2, 3))
    torch.testing.assert_close(cls, cls_mirrored, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patches, patches_mirrored.transpose(2, 3), atol=1e-5, rtol=1e-5)


def test_sdpa_equals_eager_in_values_and_gradients(tiny):
    pixels = torch.randn(2, 3, 32, 24)
    results = []
    for name in ("eager", "sdpa"):
        model = tiny(attn_implementation=name)
        assert model.config._attn_implementation == name
        output = model(pixels).last_hidden_state
        output.square().sum().backward()
        results.append((output.detach(), model.embeddings.patch_embeddings.projection.weight.grad))
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_fused_projections_equal_three_separate_ones_in_values_and_gradients(bias):
    projections = SelfAttentionProjections(Dinov2Config(hidden_size=48, num_attention_heads=4, qkv_bias=bias))
    tokens, weights = torch.randn(7, 48, requires_grad=True), torch.randn(7, 3 * 48)
    inputs = [tokens, *projections.parameters()]
    assert len(inputs) == (7 if bias else 4)
    separate = [layer(tokens) for layer in (projections.query, projections.key, projections.value)]
    fused, naive = projections(tokens), torch.cat(separate, dim=1)
    torch.testing.assert_close(fused, naive)
    found, expected = (torch.autograd.grad((output * weights).sum(), inputs) for output in (fused, naive))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eager_softmax_is_made_in_float32_and_rounded_once(dtype):
    query, key, value = (torch.randn(2, 3, 9, 4).to(dtype) * 4 for _ in range(3))
    scores = query * 0.5 @ key.transpose(2, 3)
    output, probabilities = eager_attention_forward(torch.nn.Module(), query, key, value, None, 0.5)
    assert output.dtype == probabilities.dtype == dtype
    expected = scores.float().softmax(-1).to(dtype)
    torch.testing.assert_close(probabilities, expected, atol=1e-7, rtol=torch.finfo(dtype).eps)
    if dtype != torch.float32:
        with torch.autocast("cpu", dtype):
            assert torch.equal(
                eager_attention_forward(torch.nn.Module(), query, key, value, None, 0.5)[1], probabilities
            )


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_equals_eager(tiny):
    """Values alone: torch has no backward of flex attention on CPUs."""
    crops = [torch.randn(2, 3, 32, 24), torch.randn(3, 3, 16, 16)]
    outputs = [tiny(attn_implementation=name).forward_packed(crops) for name in ("eager", "flex_attention")]
    for wanted, found in zip(*outputs, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_xformers_is_called_in_its_layout(tiny, monkeypatch):
    """xformers has no CPU kernels; a naive stand-in of its operator pins layout `[B, T, H, d]`, scale and bias."""

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
        assert attn_bias is None and p == 0.0
        scores = torch.einsum("bihd,bjhd->bhij", query, key) * scale
        return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value)

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    package.ops = ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    pixels = torch.randn(2, 3, 32, 32)
    expected = tiny(attn_implementation="sdpa")(pixels).last_hidden_state
    found = tiny(attn_implementation="xformers")(pixels).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_missing_xformers_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(ImportError, match="pip install.*xformers.*sdpa"):
        tiny(attn_implementation="xformers")(torch.zeros(1, 3, 32, 32))


def test_gradient_checkpointing_changes_no_gradient(tiny):
    pixels = torch.randn(4, 3, 32, 32)
    gradients = []
    for checkpointing in (False, True):
        model = tiny(drop_path_rate=0.5).train()
        if checkpointing:
            recompute_blocks(model)
        torch.manual_seed(1)
        model(pixels).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-5)


def test_outputs_are_those_of_transformers(tiny):
    model = tiny().eval()
    pixels = torch.randn(2, 3, 32, 32)
    output = model(pixels, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 4 and len(output.attentions) == 3
    assert output.attentions[0].shape == (2, 4, 19, 19)
    torch.testing.assert_close(output.attentions[1].sum(-1), torch.ones(2, 4, 19))
    torch.testing.assert_close(model.layernorm(output.hidden_states[-1]), output.last_hidden_state)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 0])
    plain = model(pixels)
    assert plain.hidden_states is None and plain.attentions is None
    as_tuple = model(pixels, return_dict=False)
    torch.testing.assert_close(as_tuple[0], plain.last_hidden_state)
    torch.testing.assert_close(as_tuple[1], plain.pooler_output)


def test_intermediate_layers_can_be_named_and_stop_early(tiny):
    model = tiny().eval()
    pixels = torch.randn(1, 3, 32, 16)
    states = model(pixels, output_hidden_states=True).hidden_states
    (first, _), (last, cls) = model.get_intermediate_layers(pixels, [-1, 0], norm=False)
    torch.testing.assert_close(first.flatten(2).transpose(1, 2), states[1][:, 3:])
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), states[3][:, 3:])
    torch.testing.assert_close(cls, states[3][:, 0])
    del model.encoder.layer[1:]
    torch.testing.assert_close(model.get_intermediate_layers(pixels, [0], norm=False)[0][0], first)


def test_backbone_without_reshape_gives_all_tokens():
    config = Dinov2Config.preset("tiny", num_hidden_layers=2, num_register_tokens=3, image_size=28, patch_size=14)
    config.reshape_hidden_states = False
    backbone = Dinov2Backbone(config)
    output = backbone(torch.randn(1, 3, 28, 42), output_hidden_states=True)
    assert output.feature_maps[0].shape == (1, 1 + 3 + 6, 192)
    torch.testing.assert_close(output.feature_maps[0], backbone.layernorm(output.hidden_states[-1]))


def test_initialisation_follows_the_published_code():
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config.preset("small", num_hidden_layers=1, num_register_tokens=4, layerscale_value=1e-5))
    embeddings = model.embeddings
    assert 3e-7 < embeddings.cls_token.std() < 3e-6
    assert 3e-7 < embeddings.register_tokens.std() < 3e-6
    assert len(torch.unique(embeddings.register_tokens[0, :, 0])) == 4  # registers that start equal stay equal
    assert embeddings.mask_token.abs().max() == 0
    assert embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.05)
    layer = model.encoder.layer[0]
    assert layer.attention.attention.query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.attention.attention.query.bias.abs().max() == 0
    assert torch.all(layer.layer_scale1.lambda1 == 1e-5)
    assert torch.all(layer.norm1.weight == 1) and torch.all(layer.norm1.bias == 0)


def test_half_precision_weights_run(tiny):
    model = tiny().to(torch.bfloat16).eval()
    output = model(torch.randn(1, 3, 32, 48))
    assert output.last_hidden_state.dtype == torch.bfloat16
    expected = tiny().eval()(torch.zeros(1, 3, 32, 48)).last_hidden_state
    found = model(torch.zeros(1, 3, 32, 48)).last_hidden_state.float()
    assert (found - expected).abs().max() < 0.1


def test_drop_path_rates_are_constant_or_linear():
    constant = Dinov2Config(num_hidden_layers=4, drop_path_rate=0.3)
    assert constant.drop_path_rates == [0.3] * 4
    linear = Dinov2Config(num_hidden_layers=4, drop_path_rate=0.3, drop_path_uniform=False)
    assert linear.drop_path_rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 225}, "image_size=225 is not a multiple of patch_size=14; use 224 or 238"),
        ({"image_size": 7}, "image_size=7 is not a multiple of patch_size=14; use 14"),
        ({"hidden_size": 100, "num_attention_heads": 12}, "hidden_size=100 .* num_attention_heads=12"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 is not in"),
        ({"num_register_tokens": -1}, "num_register_tokens=-1 is negative"),
    ],
)
def test_impossible_architectures_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Dinov2Config(**settings)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="preset='huge'.*small, base, large, giant"):
        Dinov2Config.preset("huge")


def test_inputs_that_do_not_fit_are_refused(tiny):
    model = tiny()
    with pytest.raises(ValueError, match="width=30 is not a multiple of patch_size=8; use 24 or 32"):
        model(torch.zeros(1, 3, 32, 30))
    with pytest.raises(ValueError, match="1 channels.*num_channels=3"):
        model(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"bool_masked_pos has shape \[1, 9\].*\[1, 16\]"):
        model(torch.zeros(1, 3, 32, 32), bool_masked_pos=torch.zeros(1, 9, dtype=torch.bool))
