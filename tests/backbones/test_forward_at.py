"""The forward for a few tokens alone against its naive twin, which computes all tokens and takes those."""

import pytest
import torch

from dinov2_hf.backbones import recompute_blocks

# 4 crops of 1 + 2 + 16 tokens, then 6 of 1 + 2 + 4: CLS, registers and patches of both, in no order, one of them twice
POSITIONS = torch.tensor([57, 0, 21, 1, 38, 75, 76 + 7, 76, 76 + 41, 20, 19, 76 + 14, 0, 30])


def both(model, positions, crops, masks, weights):
    """Tokens `[S, D]`, gradients by name and the state of the generator, of the fast path and of its twin."""
    results = []
    for fast in (True, False):
        model.zero_grad()
        torch.manual_seed(3)  # draws the same sequences
        if fast:
            tokens = model.forward_at(positions, crops, masks)
        else:
            tokens = torch.cat([group.flatten(0, 1) for group in model.forward_packed(crops, masks)])[positions]
        after = torch.get_rng_state()
        (tokens * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((tokens.detach(), gradients, after))
    return results


def assert_equal(results):
    (tokens, gradients, state), (expected, expected_gradients, expected_state) = results
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, wanted in expected_gradients.items():
        scale = max(wanted.abs().max().item(), 1.0)
        text = f"{name}: {(gradients[name] - wanted).abs().max()} of {scale}"
        torch.testing.assert_close(gradients[name] / scale, wanted / scale, atol=1e-5, rtol=1e-5, msg=text)
    assert torch.equal(state, expected_state)


@pytest.fixture
def inputs():
    crops = [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)]
    return crops, [torch.rand(4, 16) < 0.4, None]


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
@pytest.mark.parametrize("swiglu", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
def test_wanted_tokens_equal_those_of_the_whole_forward(
    tiny, inputs, drop_path_rate, swiglu, implementation, checkpointing
):
    """Values and the gradients of all parameters."""
    model = tiny(drop_path_rate=drop_path_rate, use_swiglu_ffn=swiglu, attn_implementation=implementation).train()
    if checkpointing:
        recompute_blocks(model)
    results = both(model, POSITIONS, *inputs, torch.randn(len(POSITIONS), 48))
    assert results[0][1].keys() == dict(model.named_parameters()).keys()
    assert_equal(results)


@pytest.mark.parametrize("rate", [0.4, 0.95])
@pytest.mark.parametrize("positions", [torch.arange(118), torch.arange(117, -1, -1), torch.arange(76, 118)])
def test_any_choice_of_positions_equals_the_whole_forward(tiny, inputs, rate, positions):
    """All tokens, in reverse, those of one group alone; also where a single sequence of each group is kept."""
    model = tiny(drop_path_rate=rate).train()
    assert_equal(both(model, positions, *inputs, torch.randn(len(positions), 48)))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 1},
        {"num_register_tokens": 0},
        {"qkv_bias": False},
        {"attention_probs_dropout_prob": 0.3, "attn_implementation": "eager"},
        {"hidden_dropout_prob": 0.3},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_architectures_equal_the_whole_forward(tiny, inputs, settings):
    model = tiny(drop_path_rate=0.4, **settings).train()
    positions = POSITIONS % sum(len(crop) * model(crop[:1]).last_hidden_state.shape[1] for crop in inputs[0])
    assert_equal(both(model, positions, *inputs, torch.randn(len(positions), 48)))


def test_evaluation_drops_nothing(tiny, inputs):
    model = tiny(drop_path_rate=0.9).eval()
    reference = tiny(drop_path_rate=0.0).eval()
    expected = torch.cat([group.flatten(0, 1) for group in reference.forward_packed(*inputs)])[POSITIONS]
    torch.testing.assert_close(model.forward_at(POSITIONS, *inputs), expected, atol=1e-5, rtol=1e-5)


def test_no_positions_give_no_tokens_and_zero_gradients(tiny, inputs):
    model = tiny().train()
    tokens = model.forward_at(torch.zeros(0, dtype=torch.long), *inputs)
    assert tokens.shape == (0, 48)
    tokens.sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_last_layer_feeds_forward_the_wanted_tokens_alone(tiny, inputs, drop_path_rate):
    model = tiny(drop_path_rate=drop_path_rate).train()
    seen = {}
    last = model.encoder.layer[-1]
    for name, module in (("mlp", last.mlp), ("output", last.attention.output.dense), ("norm", model.layernorm)):
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: len(args[0])}))
    model.forward_at(POSITIONS, *inputs)
    assert seen == dict.fromkeys(("mlp", "output", "norm"), len(POSITIONS))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_last_layer_is_recomputed_where_the_others_are(tiny, inputs, checkpointing):
    model = tiny().train()
    if checkpointing:
        recompute_blocks(model)
    calls = []
    for layer in model.encoder.layer:
        layer.norm1.register_forward_hook(lambda module, *_: calls.append(module))
    model.forward_at(POSITIONS, *inputs).sum().backward()
    assert [calls.count(layer.norm1) for layer in model.encoder.layer] == [1 + checkpointing] * 3


def test_autocast_gives_the_wanted_tokens_of_the_whole_forward(tiny, inputs):
    """In bfloat16 both round alike up to the order of a few sums: half of its last digit, 2^-8, of values up to 4."""
    model = tiny(drop_path_rate=0.4).train()
    with torch.autocast("cpu", torch.bfloat16):
        (tokens, *_), (expected, *_) = both(model, POSITIONS, *inputs, torch.ones(1))
    torch.testing.assert_close(tokens, expected, atol=2**-6, rtol=0)
