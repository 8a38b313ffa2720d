"""Against values recorded from the published code (see data/README.md): atol 1e-5, rtol 1e-4."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import DINOHead
from dinov2_hf.objectives.terms import Assignments, SoftmaxCentering, dino_loss, ibot_loss, koleo_loss, sinkhorn_knopp

GOLDEN = load_file(Path(__file__).parent / "data" / "losses.safetensors")
close = dict(atol=1e-5, rtol=1e-4)


def test_head_equals_the_published_code():
    head = DINOHead(32, 96, hidden_dim=48, bottleneck_dim=16)
    prefix = "head.weights."
    head.load_state_dict({name.removeprefix(prefix): x for name, x in GOLDEN.items() if name.startswith(prefix)})
    torch.testing.assert_close(head(GOLDEN["head.input"]).logits, GOLDEN["head.output"], **close)


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_sinkhorn_targets_of_cls_equal_the_published_code(temperature):
    targets = sinkhorn_knopp(GOLDEN["dino.teacher_logits"], temperature).rows()
    torch.testing.assert_close(targets, GOLDEN[f"dino.sinkhorn_temp{temperature}"], **close)


def test_dino_loss_and_gradient_equal_the_published_code():
    """Recorded for three student crops against both views, as local crops are; identity prototypes take logits in."""
    logits = GOLDEN["dino.student_logits"].clone().requires_grad_()
    crops = logits.unflatten(0, (3, -1))
    features = torch.cat((torch.zeros_like(crops[:2]), crops))
    num_prototypes = logits.shape[1]
    teacher = Assignments(GOLDEN["dino.sinkhorn_temp0.07"].log(), 1.0, torch.zeros(num_prototypes))
    _, loss = dino_loss(features, torch.eye(num_prototypes), teacher)
    torch.testing.assert_close(loss.reshape(1), GOLDEN["dino.loss"], **close)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], GOLDEN["dino.student_grad"], **close)


@pytest.mark.parametrize(("term", "rounds"), [("dino", 3), ("ibot", 2)])
def test_softmax_centering_equals_the_published_code(term, rounds):
    centering = SoftmaxCentering(96, momentum=0.9)
    for index in range(rounds):
        probabilities = centering(GOLDEN[f"{term}.centering.{index}.teacher_logits"], 0.05).rows()
        torch.testing.assert_close(probabilities, GOLDEN[f"{term}.centering.{index}.probs_temp0.05"], **close)
    torch.testing.assert_close(centering.center, GOLDEN[f"{term}.centering.final_center"], **close)


def test_ibot_targets_loss_and_gradient_equal_the_published_code():
    targets = sinkhorn_knopp(GOLDEN["ibot.teacher_logits"], 0.07)
    torch.testing.assert_close(targets.rows(), GOLDEN["ibot.sinkhorn_temp0.07"], **close)
    masks = GOLDEN["ibot.masks"]
    indices, weights = SSLBatch.flatten_masks(masks)
    assert torch.equal(indices, masks.flatten().nonzero().flatten())
    logits = GOLDEN["ibot.student_logits"].clone().requires_grad_()
    loss = ibot_loss(logits, torch.eye(logits.shape[1]), targets, weights, num_images=len(masks))
    torch.testing.assert_close(loss.reshape(1), GOLDEN["ibot.loss"], **close)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], GOLDEN["ibot.student_grad"], **close)


def test_koleo_loss_and_gradient_equal_the_published_code():
    features = GOLDEN["koleo.features"].clone().requires_grad_()
    loss = koleo_loss(features)
    torch.testing.assert_close(loss.reshape(1), GOLDEN["koleo.loss"], **close)
    torch.testing.assert_close(torch.autograd.grad(loss, features)[0], GOLDEN["koleo.grad"], **close)
