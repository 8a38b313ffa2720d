"""The packed forward against its naive twin, one forward per group of crops."""

import pytest
import torch


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("swiglu", [False, True])
def test_packed_forward_equals_per_crop_forward_in_values_and_gradients(tiny, implementation, swiglu):
    crops = [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16), torch.randn(1, 3, 16, 24)]
    masks = [torch.rand(4, 16) < 0.4, None, torch.rand(1, 6) < 0.5]
    weights = [torch.randn(4, 19, 48), torch.randn(6, 7, 48), torch.randn(1, 9, 48)]

    def run(packed):
        model = tiny(attn_implementation=implementation, use_swiglu_ffn=swiglu).train()
        if packed:
            outputs = model.forward_packed(crops, masks)
        else:
            outputs = [model(crop, bool_masked_pos=mask).last_hidden_state for crop, mask in zip(crops, masks)]
        sum((output * weight).sum() for output, weight in zip(outputs, weights)).backward()
        return outputs, [parameter.grad for parameter in model.parameters()]

    (outputs, gradients), (expected, expected_gradients) = run(packed=True), run(packed=False)
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert sum(gradient is not None for gradient in gradients) == len(gradients)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        scale = max(wanted.abs().max().item(), 1.0)
        torch.testing.assert_close(found / scale, wanted / scale, atol=1e-5, rtol=1e-5)


def test_tokens_of_one_crop_do_not_see_another(tiny):
    model = tiny().eval()
    crops = [torch.randn(3, 3, 32, 32), torch.randn(4, 3, 16, 16)]
    changed = [crops[0].clone(), crops[1].clone()]
    changed[0][1] += 1
    changed[1][2] += 1
    with torch.no_grad():
        before, after = model.forward_packed(crops), model.forward_packed(changed)
    for group, (first, second), touched in zip(("global", "local"), zip(before, after), (1, 2)):
        same = [torch.equal(a, b) for a, b in zip(first, second)]
        assert same == [index != touched for index in range(len(first))], group


def test_masks_and_crops_must_correspond(tiny):
    with pytest.raises(ValueError, match="zip"):
        tiny().forward_packed([torch.zeros(1, 3, 32, 32)], [None, None])
