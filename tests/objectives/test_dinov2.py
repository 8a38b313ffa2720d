"""The objective as a whole: terms switched on and off, student, teacher and EMA."""

import copy
from types import SimpleNamespace

import pytest
import torch

from dinov2_hf.data import PhotometricAugmentation, SSLBatch, TrainingBatches, open_training_source
from dinov2_hf.objectives import DINOv2

VALUES = SimpleNamespace(teacher_temp=0.05)


def make_batch(config, number=0):
    source = open_training_source(config.data, config.train.seed)
    batch = TrainingBatches(source, config, 0, number + 1).batch(number)
    return PhotometricAugmentation(config.colors)(batch)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"dino_global", "dino_local", "ibot", "koleo"}),
        (["dino.loss_weight=0"], {"ibot", "koleo"}),
        (["ibot.loss_weight=0"], {"dino_global", "dino_local", "koleo"}),
        (["koleo.loss_weight=0"], {"dino_global", "dino_local", "ibot"}),
        (["crops.num_local=0", "crops.local_size=13"], {"dino_global", "ibot", "koleo"}),
        (["dino.loss_weight=0", "koleo.loss_weight=0", "ibot.separate_head=false"], {"ibot"}),
    ],
)
@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax"])
def test_any_term_can_be_switched_off(tiny_config, overrides, expected, centering):
    config = tiny_config(f"teacher.centering={centering}", *overrides)
    model = DINOv2(config).train()
    output = model(make_batch(config), VALUES)
    assert output.terms.keys() == expected
    weights = {"dino_global": 1.0, "dino_local": 1.0, "ibot": 1.0, "koleo": 0.1}
    total = sum(weights[name] * term for name, term in output.terms.items())
    torch.testing.assert_close(output.loss.detach(), total)
    output.loss.backward()
    for name, parameter in model.student.named_parameters():
        # every network that was built takes part; the mask token only where there are masks
        if "mask_token" not in name:
            assert parameter.grad is not None, name
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_heads_that_no_term_needs_are_not_built(tiny_config):
    assert set(DINOv2(tiny_config()).student) == {"backbone", "dino_head", "ibot_head"}
    assert set(DINOv2(tiny_config("ibot.separate_head=false")).student) == {"backbone", "dino_head"}
    assert set(DINOv2(tiny_config("ibot.loss_weight=0")).student) == {"backbone", "dino_head"}
    assert set(DINOv2(tiny_config("dino.loss_weight=0")).student) == {"backbone", "ibot_head"}


def test_shared_head_equals_separate_heads_with_the_same_weights(tiny_config):
    shared_config = tiny_config("ibot.separate_head=false")
    separate_config = tiny_config("ibot.num_prototypes=24")
    shared, separate = DINOv2(shared_config), DINOv2(separate_config)
    for role in ("student", "teacher"):
        for target, origin in (("backbone", "backbone"), ("dino_head", "dino_head"), ("ibot_head", "dino_head")):
            getattr(separate, role)[target].load_state_dict(getattr(shared, role)[origin].state_dict())
    batch = make_batch(shared_config)
    torch.testing.assert_close(shared.eval()(batch, VALUES).loss, separate.eval()(batch, VALUES).loss)


def test_dino_compares_each_global_view_with_the_other_one(tiny_config):
    """Written out: student view against the other teacher view, local crops against both, mean over pairs."""
    config = tiny_config("koleo.loss_weight=0", "ibot.loss_weight=0", "teacher.centering=softmax")
    model = DINOv2(config).eval()
    batch = make_batch(config)
    output = model(batch, VALUES)
    with torch.no_grad():

        def logits(networks, crops):
            cls = networks["backbone"](crops).pooler_output
            return networks["dino_head"](cls).logits.unflatten(0, (-1, 4))

        targets = (logits(model.teacher, batch.global_crops) / 0.05).softmax(-1)  # the first centre is 0
        student_global, student_local = (logits(model.student, c) for c in (batch.global_crops, batch.local_crops))

        def cross_entropy(student, target):
            return -(target * (student / 0.1).log_softmax(-1)).sum(-1).mean()

        pairs = [cross_entropy(student_global[0], targets[1]), cross_entropy(student_global[1], targets[0])]
        local_pairs = [cross_entropy(student, target) for student in student_local for target in targets]
    torch.testing.assert_close(output.terms["dino_global"], sum(pairs) / 6)
    torch.testing.assert_close(output.terms["dino_local"], sum(local_pairs) / 6)


def test_unmasked_batch_gives_no_ibot_loss(tiny_config):
    config = tiny_config("ibot.mask_probability=0")
    batch = make_batch(config)
    assert len(batch.mask_indices) == 0
    output = DINOv2(config).train()(batch, VALUES)
    output.loss.backward()
    assert output.terms["ibot"].item() == 0.0 and torch.isfinite(output.loss)


def test_teacher_sees_no_mask_and_drops_nothing(tiny_config):
    config = tiny_config("model.drop_path_rate=0.9")
    model = DINOv2(config).train()
    assert not model.teacher["backbone"].training and model.student["backbone"].training
    batch = make_batch(config)
    seen = []
    model.teacher["backbone"].embeddings.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    with torch.no_grad():
        model(batch, VALUES)
    assert len(seen) == 1 and seen[0][1] is None
    assert set(model.teacher["backbone"].config.drop_path_rates) == {0.0}


def test_teacher_starts_as_the_student_in_float32(tiny_config):
    model = DINOv2(tiny_config())
    for student, teacher in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
        assert torch.equal(student, teacher) and teacher.dtype == torch.float32
        assert student.requires_grad and not teacher.requires_grad


def test_ema_is_the_weighted_mean(tiny_config):
    model = DINOv2(tiny_config())
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.normal_()
    before = copy.deepcopy(model.teacher)
    model.update_averages(SimpleNamespace(teacher_momentum=0.9))
    triples = zip(model.teacher.parameters(), before.parameters(), model.student.parameters(), strict=True)
    for after, old, student in triples:
        torch.testing.assert_close(after, 0.9 * old + 0.1 * student)
    frozen = copy.deepcopy(model.teacher)
    model.update_averages(SimpleNamespace(teacher_momentum=1.0))
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), frozen.parameters(), strict=True))


def test_gradient_checkpointing_gives_the_same_loss(tiny_config):
    losses = []
    for flag in ("false", "true"):
        config = tiny_config(f"model.gradient_checkpointing={flag}")
        torch.manual_seed(0)
        model = DINOv2(config).train()
        torch.manual_seed(1)
        output = model(make_batch(config), VALUES)
        output.loss.backward()
        losses.append((output.loss.item(), model.student["backbone"].embeddings.cls_token.grad))
    assert losses[0][0] == losses[1][0]
    torch.testing.assert_close(losses[0][1], losses[1][1])


@pytest.mark.parametrize(
    ("dtype", "term_tolerance", "gradient_tolerance"), [(torch.bfloat16, 0.02, 0.04), (torch.float16, 0.0025, 0.01)]
)
@pytest.mark.parametrize(
    "overrides",
    [
        ["teacher.centering=sinkhorn_knopp"],
        ["teacher.centering=softmax"],
        ["ibot.separate_head=false", "model.use_swiglu_ffn=true"],
        ["model.gradient_checkpointing=true", "ibot.mask_probability=0"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_autocast_gives_the_float32_objective_to_rounding(
    tiny_config, overrides, dtype, term_tolerance, gradient_tolerance
):
    """Terms, and gradients in the norm of each network.

    bfloat16 rounds a cosine by up to 2^-9, float16 by 2^-12. Over the temperatures of 0.1 and 0.05 that moves logits by
    0.02 and 0.04 (0.0025 and 0.005), a log probability by as much and a probability by as large a share of itself. The
    signs of these errors differ, so sums over samples and prototypes are off by less: terms are given half of the
    largest, and gradients, which go through the backbone's rounding too, all of it (in float16, where small ones are
    subnormal, twice that).
    """
    config = tiny_config(*overrides)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = DINOv2(config).train()
        with torch.no_grad():
            for parameter in model.student["backbone"].parameters():  # so that student and teacher disagree
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        batch = make_batch(config)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype, enabled=enabled):
            output = model(batch, VALUES)
        assert all(term.dtype == torch.float32 for term in (output.loss, *output.terms.values()))
        output.loss.backward()
        gradients = {
            name: torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
            for name, network in model.student.items()
        }
        results.append((output.terms, gradients))
    (terms, gradients), (found_terms, found_gradients) = results
    for name, term in terms.items():
        assert found_terms[name].item() == pytest.approx(term.item(), abs=term_tolerance), name
    for name, gradient in gradients.items():
        assert torch.isfinite(found_gradients[name]).all()
        assert (found_gradients[name] - gradient).norm() <= gradient_tolerance * gradient.norm(), name


def test_mask_indices_and_weights_describe_the_masks():
    masks = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    indices, weights = SSLBatch.flatten_masks(masks)
    assert indices.tolist() == [0, 2, 7]
    assert weights.tolist() == [0.5, 0.5, 1.0]


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss_and_gradients(tiny_config):
    results = []
    for flag in ("false", "true"):
        config = tiny_config(f"model.compile={flag}", "model.drop_path_rate=0", "model.num_hidden_layers=2")
        torch.manual_seed(0)
        model = DINOv2(config).train()
        layer = model.student["backbone"].encoder.layer[0]
        assert (layer._compiled_call_impl is not None) == config.model.compile
        output = model(make_batch(config), VALUES)
        output.loss.backward()
        gradients = {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}
        results.append((output.terms, gradients, model.state_dict().keys()))
    (terms, gradients, keys), (compiled_terms, compiled_gradients, compiled_keys) = results
    assert keys == compiled_keys  # checkpoints do not know of it
    for name, term in terms.items():
        torch.testing.assert_close(compiled_terms[name], term, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, atol=1e-5, rtol=1e-4)
