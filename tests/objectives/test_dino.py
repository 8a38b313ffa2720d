"""The objectives of DINO and iBOT: naive twins of what they compute, terms switched off, heads and their modes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dinov2_hf.config import load_config
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import DINO, IBOT, find_objective

VALUES = SimpleNamespace(teacher_temp=0.05, teacher_patch_temp=0.06, teacher_momentum=0.9)


def make(config):
    """The objective in training, whose student differs from its teacher."""
    torch.manual_seed(0)
    model = find_objective(config)(config).train()
    with torch.no_grad():
        for parameter in model.student.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def make_batch(local=2, masked=True):
    """Three images of 16 patches; one global crop of them is not masked."""
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(6, 16, generator=generator) < 0.4) & masked
    masks[1] = False
    crops = [torch.randn(count, 3, side, side, generator=generator) for count, side in ((6, 32), (3 * local, 16))]
    return SSLBatch(*crops, masks, *SSLBatch.flatten_masks(masks))


def logits_of(head, layer, features):
    """Naively: MLP, L2 norm, cosines with the prototypes times their lengths."""
    return nn.functional.linear(nn.functional.normalize(head.mlp(features), dim=-1), layer.weight)


def cross_entropy(student, target):
    return -(target * (student / 0.1).log_softmax(-1)).sum(-1)


def tokens(backbone, crops, masks=None):
    """CLS and patches after the final norm."""
    found = backbone(crops, bool_masked_pos=masks).last_hidden_state
    return found[:, 0], found[:, 1:]


def cls_logits(networks, crops):
    head = networks["dino_head"]
    return logits_of(head, head.last_layer, tokens(networks["backbone"], crops)[0])


@pytest.mark.parametrize("local", [0, 1, 5])
@pytest.mark.parametrize("centering", ["softmax", "none"])
@torch.no_grad()
def test_dino_is_the_mean_cross_entropy_over_the_pairs_of_two_different_crops(tiny_config, local, centering):
    config = tiny_config(
        "objective=dino", f"crops.num_local={local}", f"teacher.centering={centering}", "model.drop_path_rate=0"
    )
    model, batch = make(config), make_batch(local)
    center = torch.zeros(24)
    for _ in range(2):
        output = model(batch, VALUES)
        views = [*batch.global_crops.chunk(2), *(batch.local_crops.chunk(local) if local else ())]
        heads = {role: getattr(model, role)["dino_head"] for role in ("student", "teacher")}
        student, teacher = (
            [
                logits_of(heads[role], heads[role].last_layer, tokens(getattr(model, role)["backbone"], view)[0])
                for view in crops
            ]
            for role, crops in (("student", views), ("teacher", views[:2]))
        )
        pairs = [
            cross_entropy(answer, ((target - center) / 0.05).softmax(-1)).mean()
            for one, target in enumerate(teacher)
            for other, answer in enumerate(student)
            if one != other
        ]
        torch.testing.assert_close(output.loss, torch.stack(pairs).mean())
        assert output.terms.keys() == {"dino_global", "dino_local"} - ({"dino_local"} if not local else set())
        if centering == "softmax":
            center = 0.9 * center + 0.1 * torch.cat(teacher).mean(dim=0)
            torch.testing.assert_close(model.centering["dino"].center[0], center)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@torch.no_grad()
def test_centre_follows_the_batches_with_its_momentum(tiny_config, momentum):
    model = make(tiny_config("objective=dino", f"teacher.center_momentum={momentum}"))
    batch = make_batch()
    model(batch, VALUES)
    logits = cls_logits(model.teacher, batch.global_crops)
    torch.testing.assert_close(model.centering["dino"].center[0], (1 - momentum) * logits.mean(dim=0))


HEADS = {
    "shared": ["ibot.separate_head=false", "ibot.separate_teacher_head=false"],
    "separate": [],
    "of the student": ["ibot.separate_teacher_head=false", "ibot.num_prototypes=24"],
}


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("batch_norm", ["false", "true"])
@torch.no_grad()
def test_ibot_is_dino_and_the_cross_entropy_of_masked_patches(tiny_config, heads, batch_norm):
    """With batch norm CLS and all patches of the global crops go through the head together, then the local crops."""
    config = tiny_config("objective=ibot", *HEADS[heads], f"dino.batch_norm={batch_norm}", "model.drop_path_rate=0")
    model, batch = make(config), make_batch()
    twin = make(config)
    twin.load_state_dict(model.state_dict())
    centers = None
    for _ in range(2):
        output = model(batch, VALUES)
        logits = {}
        for role, masks in (("teacher", None), ("student", batch.masks)):
            networks = getattr(twin, role)
            cls, patches = tokens(networks["backbone"], batch.global_crops, masks)
            head = networks["dino_head"]
            separate = config.ibot.separate_head if role == "student" else config.ibot.separate_teacher_head
            bottleneck = nn.functional.normalize(head.mlp(torch.cat((cls, patches.flatten(0, 1)))), dim=-1)
            layer = head.last_layer2 if separate else head.last_layer
            of_cls = bottleneck[:6] @ head.last_layer.weight.T
            logits[role] = of_cls, (bottleneck[6:] @ layer.weight.T).unflatten(0, (6, 16))
        local = cls_logits(twin.student, batch.local_crops)
        targets, patch_targets = logits["teacher"]
        centers = centers or [torch.zeros(logit.shape[-1]) for logit in logits["teacher"]]
        soft = ((targets - centers[0]) / 0.05).softmax(-1).chunk(2)
        answers = torch.cat((logits["student"][0], local)).chunk(4)
        pairs = [cross_entropy(a, t).mean() for i, t in enumerate(soft) for j, a in enumerate(answers) if i != j]
        soft = ((patch_targets - centers[1]) / 0.06).softmax(-1)
        losses = cross_entropy(logits["student"][1], soft) * batch.masks
        of_patches = (losses.sum(dim=1) / batch.masks.sum(dim=1).clamp(min=1)).mean()
        torch.testing.assert_close(output.terms["ibot"], of_patches)
        torch.testing.assert_close(output.terms["dino_global"] + output.terms["dino_local"], torch.stack(pairs).mean())
        torch.testing.assert_close(output.loss, output.terms["ibot"] + torch.stack(pairs).mean())
        centers = [
            0.9 * center + 0.1 * logit.flatten(0, -2).mean(dim=0)
            for center, logit in zip(centers, (targets, patch_targets))
        ]
        for name, center in zip(("dino", "ibot"), centers):
            torch.testing.assert_close(model.centering[name].center[0], center)
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers()):
        if "running" in name:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"dino_global", "dino_local", "ibot"}),
        (["dino.loss_weight=0"], {"ibot"}),
        (["ibot.loss_weight=0"], {"dino_global", "dino_local"}),
        (["crops.num_local=0"], {"dino_global", "ibot"}),
    ],
)
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp", "none"])
def test_terms_of_ibot_can_be_switched_off(tiny_config, overrides, expected, centering):
    config = tiny_config("objective=ibot", *overrides, f"teacher.centering={centering}")
    model = make(config)
    output = model(make_batch(config.crops.num_local), VALUES)
    assert output.terms.keys() == expected == IBOT.terms_of(config).keys()
    output.loss.backward()
    used = {name for name, parameter in model.student.named_parameters() if parameter.grad is not None}
    assert {"backbone.layernorm.weight", "dino_head.mlp.0.weight"} <= used
    assert all(parameter.grad is None for parameter in model.teacher.parameters())


def test_unmasked_crops_give_no_patch_loss_and_move_its_centre(tiny_config):
    model = make(tiny_config("objective=ibot"))
    output = model(make_batch(masked=False), VALUES)
    output.loss.backward()
    assert output.terms["ibot"].item() == 0 and torch.isfinite(output.loss)
    assert model.centering["ibot"].center.abs().max() > 0


@pytest.mark.parametrize("objective", ["dino", "ibot"])
def test_batch_norm_of_the_teacher_is_in_the_mode_of_the_run_and_averages_no_statistics(tiny_config, objective):
    """The teacher of the published code stays in training mode; its running statistics are of its own batches."""
    model, batch = make(tiny_config(f"objective={objective}", "dino.batch_norm=true")), make_batch()
    norm = model.teacher["dino_head"].mlp[1]
    assert norm.training and not model.teacher["backbone"].training
    seen = []
    model.teacher["dino_head"].mlp[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(batch, VALUES)
    torch.testing.assert_close(norm.running_mean, 0.1 * seen[0].mean(dim=0))
    before = norm.running_mean.clone()
    model.update_averages(VALUES)
    assert torch.equal(norm.running_mean, before)
    model.eval()
    assert not norm.training


@pytest.mark.parametrize("fixed", [True, False])
def test_lengths_of_fixed_prototypes_take_no_gradient(tiny_config, fixed):
    config = tiny_config("objective=dino", f"dino.norm_last_layer={str(fixed).lower()}")
    model = make(config)
    model(make_batch(), VALUES).loss.backward()
    layer = model.student["dino_head"].last_layer
    assert layer.weight_v.grad is not None and (layer.weight_g.grad is None) == fixed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=dino", "ibot.loss_weight=1"], "ibot.*is not read by objective=dino; .*objective=dinov2 or"),
        (["objective=dino", "teacher.patch_temp=0.05"], "teacher.patch_temp .*is not read by objective=dino; .*ibot"),
        (["objective=ibot", "koleo.loss_weight=1"], "koleo.*is not read by objective=ibot"),
        (["objective=ibot", "ibot.hidden_dim=8"], "ibot.hidden_dim .*is not read by objective=ibot"),
        (["objective=ibot", "dino.loss_weight=0", "ibot.loss_weight=0"], "nothing to learn"),
        (
            ["objective=ibot", "ibot.separate_head=true", "ibot.num_prototypes=9"],
            "ibot.num_prototypes=9, but the teacher's targets are over dino.num_prototypes=8192; set both alike, or "
            "ibot.separate_teacher_head=true",
        ),
        (["objective=ibot", "ibot.separate_teacher_head=true"], "set ibot.separate_head=true too"),
        (["objective=ibot", "ibot.mask_shape=round"], "ibot.mask_shape='round' is not one of block, random"),
        (["objective=ibot", "ibot.mask_start_epoch=-1"], "ibot.mask_start_epoch=-1.* is below 0"),
        (["objective=ibot", "teacher.patch_temp=0"], "teacher.patch_temp=0.* is not positive"),
        (["objective=dino", "teacher.center_momentum=2"], "teacher.center_momentum=2.* is not in"),
        (
            ["objective=dino", "teacher.centering=mean"],
            "teacher.centering='mean' is not one of sinkhorn_knopp, softmax",
        ),
    ],
)
def test_keys_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, [*overrides, "data.train.path=/images"])


def test_ibot_refuses_a_backbone_without_masks_and_dino_takes_it(tiny_config):
    model = ["model.mask_token=false"]
    with pytest.raises(ValueError, match="model.family=vit takes no masks, and objective=ibot masks 50% of the global"):
        IBOT(tiny_config("objective=ibot", *model))
    assert IBOT(tiny_config("objective=ibot", *model, "ibot.loss_weight=0"))
    assert not DINO(tiny_config("objective=dino")).student["backbone"].takes_masks
