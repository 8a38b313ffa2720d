"""Distillation against naive twins: what is compared, what is frozen, several students."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from dinov2_hf.backbones import StockBackbone, find_family
from dinov2_hf.config import PrototypeDistillationConfig, load_config
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import FeatureTeacher, PrototypeTeacher, find_objective
from dinov2_hf.objectives.prototypes import build_heads


def at(teacher_temp):
    """The scheduled values of a step."""
    return SimpleNamespace(teacher_temp=teacher_temp, teacher_momentum=0.5)


def distil(config, teacher):
    return find_objective(config)(config, {"distill.teacher": teacher})


PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


@pytest.fixture
def configure(tiny_overrides):
    def configure(*overrides):
        still = ["model.drop_path_rate=0", "distill.teacher=given"]
        still += [f"colors.{name}={values}" for name, values in PIXELS.items()]
        return load_config(None, [*tiny_overrides, *still, *overrides], PrototypeDistillationConfig)

    return configure


def make_teacher(config, width=48, **changes):
    """A wider teacher with heads of its own widths, and weights that tell its samples apart."""
    model = copy.deepcopy(config.model)
    model.hidden_size, model.num_attention_heads = width, 3
    for name, value in changes.items():
        setattr(model, name, value)
    backbone = find_family("dinov2").build(model, config.crops.global_size, 0.0)
    teacher = PrototypeTeacher(backbone, config.colors.mean, config.colors.std, build_heads(config, width))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return teacher


def make_batch(config, images=3):
    sides = config.crops.global_size, config.crops.local_size
    patches = (sides[0] // config.model.patch_size) ** 2
    masks = torch.rand(2 * images, patches) < 0.4
    local = torch.randn(config.crops.num_local * images, 3, sides[1], sides[1])
    return SSLBatch(torch.randn(2 * images, 3, sides[0], sides[0]), local, masks, *SSLBatch.flatten_masks(masks))


def cross_entropy(logits, targets):
    return -(targets * (logits / 0.1).log_softmax(-1)).sum(-1)


def test_prototype_objective_equals_its_naive_twin(configure):
    """CLS of every crop against the other global view, all patches of both global crops against the same patch."""
    config = configure("teacher.centering=softmax")
    teacher = make_teacher(config)
    model, batch = distil(config, teacher), make_batch(config)
    output = model(batch, at(0.05))

    tokens = teacher.backbone(batch.global_crops).last_hidden_state
    cls, patches = tokens[:, 0], tokens[:, 3:]  # two registers
    targets = (teacher.heads["dino_head"](cls).logits / 0.05).softmax(-1).chunk(2)  # the first centre is 0
    student = model.student["backbone"](batch.global_crops).last_hidden_state
    views = list(student[:, 0].chunk(2)) + list(model.student["backbone"](batch.local_crops).pooler_output.chunk(2))
    among = with_local = 0
    for number, view in enumerate(views):
        logits = model.student["dino_head"](view).logits
        for index, target in enumerate(targets):
            if number < 2 and index != number:
                among = among + cross_entropy(logits, target).mean()
            elif number >= 2:
                with_local = with_local + cross_entropy(logits, target).mean()
    pairs = 2 + 2 * config.crops.num_local
    torch.testing.assert_close(output.terms["dino_global"], among / pairs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.terms["dino_local"], with_local / pairs, atol=1e-5, rtol=1e-5)
    wanted = (teacher.heads["ibot_head"](patches).logits / 0.05).softmax(-1)
    ibot = cross_entropy(model.student["ibot_head"](student[:, 3:]).logits, wanted).mean()
    torch.testing.assert_close(output.terms["ibot"], ibot, atol=1e-5, rtol=1e-5)


def test_prototype_teacher_sees_its_own_normalisation(configure):
    """Crops in the student's colours reach it as the same pictures in its own, and the targets follow."""
    config = configure("teacher.centering=softmax")
    teacher, batch = make_teacher(config), make_batch(config)
    model = distil(config, teacher)
    alike = model(batch, at(0.07)).loss
    teacher.mean, teacher.std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    assert abs(model(batch, at(0.07)).loss - alike) > 1e-3

    def column(values):
        return torch.tensor(values).view(3, 1, 1)

    pixels = batch.global_crops * column(PIXELS["std"]) + column(PIXELS["mean"])
    expected = teacher.backbone((pixels - column(teacher.mean)) / column(teacher.std)).pooler_output
    found = teacher(batch.global_crops, torch.arange(0), **PIXELS)
    torch.testing.assert_close(found.cls, expected, atol=1e-4, rtol=1e-4)


def test_masks_of_the_batch_play_no_part(configure):
    config = configure()
    model, batch = distil(config, make_teacher(config)), make_batch(config)
    first = model(batch, at(0.07)).loss
    batch.masks = ~batch.masks
    batch.mask_indices, batch.mask_weights = SSLBatch.flatten_masks(batch.masks)
    assert model(batch, at(0.07)).loss == first


@pytest.mark.parametrize("objective", ["prototypes", "features"])
def test_teacher_is_frozen_and_in_no_state(configure, objective):
    config = configure(f"distill.objective={objective}", *["crops.num_local=0"] * (objective == "features"))
    teacher = make_teacher(config) if objective == "prototypes" else feature_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = distil(config, teacher).train()
    held = {id(parameter) for parameter in (*model.parameters(), *model.buffers())}
    assert not held & {id(parameter) for parameter in teacher.parameters()}
    assert not any("teacher" in name or "frozen" in name for name in model.state_dict())
    assert not any(module.training for module in teacher.modules())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(make_batch(config), at(0.07)).loss.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    averaged = dict(model.average.named_parameters())
    assert all(parameter.grad is None for parameter in averaged.values())
    assert any(not torch.equal(p, averaged[name]) for name, p in model.student.named_parameters())


def test_student_equal_to_its_teacher_has_the_entropy_of_the_targets_as_loss(configure):
    """The least that a cross-entropy can be, and its gradient is 0 there."""
    config = configure("teacher.centering=softmax", "dino.loss_weight=0", "koleo.loss_weight=0")
    teacher = make_teacher(config, width=32, num_attention_heads=2)
    model, batch = distil(config, teacher), make_batch(config)
    model.student["backbone"].load_state_dict(teacher.backbone.state_dict())
    model.student["ibot_head"].load_state_dict(teacher.heads["ibot_head"].state_dict())
    output = model(batch, at(0.1))
    output.loss.backward()
    patches = teacher.backbone(batch.global_crops).last_hidden_state[:, 3:]
    targets = (teacher.heads["ibot_head"](patches).logits / 0.1).softmax(-1)
    torch.testing.assert_close(output.loss, torch.special.entr(targets).sum(-1).mean(), atol=1e-5, rtol=1e-5)
    assert max(p.grad.abs().max() for p in model.student["backbone"].parameters() if p.grad is not None) < 1e-4


@pytest.mark.parametrize("objective", ["prototypes", "features"])
def test_each_of_several_students_learns_as_if_alone(configure, objective):
    features = ["distill.objective=features", "crops.num_local=0"] if objective == "features" else []
    shape = "hidden_size=16 num_hidden_layers=1 num_attention_heads=1 patch_size=8 num_register_tokens=0".split()
    small = [f"students.small.{item}" for item in [*shape, "preset=tiny", "drop_path_rate=0"]]
    config, alone = configure(*features, *small), configure(*features)
    only_small = configure(*features, *(f"model.{item}" for item in [*shape, "preset=tiny"]))
    teacher = make_teacher(config) if objective == "prototypes" else feature_teacher()
    both, first, second = (distil(c, teacher) for c in (config, alone, only_small))
    first.student.load_state_dict(both.student.state_dict())
    second.student.load_state_dict(both.networks["small"].student.state_dict())
    batch = make_batch(config)
    together = both(batch, at(0.07))
    together.loss.backward()
    outputs = [model(batch, at(0.07)) for model in (first, second)]
    for prefix, student, model, output in (
        ("", both.networks[""].student, first, outputs[0]),
        ("small.", both.networks["small"].student, second, outputs[1]),
    ):
        output.loss.backward()
        for name, term in output.terms.items():
            torch.testing.assert_close(together.terms[prefix + name], term)
        for ours, theirs in zip(student.parameters(), model.student.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(together.loss, outputs[0].loss + outputs[1].loss)
    both.update_averages(at(0.07))
    moved = both.networks["small"].average["backbone"].embeddings.cls_token
    torch.testing.assert_close(moved, both.networks["small"].student["backbone"].embeddings.cls_token)


def test_what_does_not_fit_is_refused_with_the_key_to_set(configure):
    config = configure()
    teacher = make_teacher(config)
    with pytest.raises(ValueError, match="dino.num_prototypes=25, but the teacher has 24"):
        distil(configure("dino.num_prototypes=25"), teacher)
    with pytest.raises(ValueError, match="the teacher's patches have 8 pixels.*use 8"):
        distil(configure("model.patch_size=4"), teacher)
    without = PrototypeTeacher(teacher.backbone, heads={"dino_head": teacher.heads["dino_head"]}, **PIXELS)
    with pytest.raises(ValueError, match="needs its ibot_head; set ibot.separate_head=False"):
        distil(config, without)
    other = configure("ibot.loss_weight=0", "model.patch_size=4")
    output = distil(other, without)(make_batch(other), at(0.07))
    assert torch.isfinite(output.loss) and "ibot" not in output.terms
    with pytest.raises(ValueError, match="crops.num_local=2: features are compared on global crops"):
        configure("distill.objective=features")
    with pytest.raises(ValueError, match="ibot.mask_probability .* is not read by objective=distill_prototypes"):
        configure("ibot.mask_probability=0.5")
    with pytest.raises(ValueError, match="distill.teacher is not set"):
        configure("distill.teacher=null")
    with pytest.raises(ValueError, match="students.small.presett"):
        configure("students.small.presett=tiny")
    with pytest.raises(ValueError, match="students.small.num_channels=1, but model.num_channels=3"):
        configure("students.small.num_channels=1", "students.small.patch_size=8")
    grey = ["model.num_channels=1", "colors.mean=[0.5]", "colors.std=[0.2]"]
    with pytest.raises(ValueError, match="model.num_channels=1, but the teacher's images have 3 channels"):
        distil(configure(*grey), teacher)


SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def stock(patch=14):
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, patch_size=patch, image_size=56)).eval()


def feature_teacher():
    return FeatureTeacher(StockBackbone(stock()), **PIXELS)


TEACHERS = {
    "dinov2, another patch": lambda: stock(14),
    "dinov2, the same patch": lambda: stock(8),
    "vit": lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=48, image_size=48, patch_size=16)),
    "siglip, without CLS": lambda: SiglipVisionModel(
        SiglipVisionConfig(**SIZES, intermediate_size=48, image_size=32, patch_size=8)
    ),
    "clip, with text": lambda: CLIPModel(
        CLIPConfig(
            vision_config=CLIPVisionConfig(**SIZES, intermediate_size=48, image_size=32, patch_size=16).to_dict(),
            text_config=CLIPTextConfig(**SIZES, intermediate_size=48, vocab_size=50).to_dict(),
        )
    ),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_feature_objective_equals_its_naive_twin(configure, name):
    config = configure("distill.objective=features", "crops.num_local=0", "crops.global_size=32")
    network = TEACHERS[name]().eval()
    teacher = FeatureTeacher(StockBackbone(network), mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    model, batch = distil(config, teacher), make_batch(config)
    output = model(batch, at(0.07))

    ours, theirs = PIXELS, {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    column = lambda values: torch.tensor(values).view(3, 1, 1)  # noqa: E731
    pixels = batch.global_crops * column(ours["std"]) + column(ours["mean"])
    pixels = (pixels - column(theirs["mean"])) / column(theirs["std"])
    side = {8: 32, 14: 28, 16: 32}[teacher.backbone.stride]
    if side != 32:
        pixels = torch.nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
    vision = getattr(network, "vision_model", network)
    options = {} if "dinov2" in name else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        tokens = vision(pixel_values=pixels, **options).last_hidden_state
        if name.startswith("clip"):  # which norms CLS only, for its pooled output
            tokens = vision.post_layernorm(tokens)
    rows = side // teacher.backbone.stride
    patches = tokens[:, -rows * rows :]
    cls = patches.mean(1) if "without CLS" in name else tokens[:, 0]
    maps = patches.transpose(1, 2).unflatten(2, (rows, rows))
    maps = torch.nn.functional.interpolate(maps, (4, 4), mode="bilinear", antialias=True)
    student = model.student["backbone"](batch.global_crops).last_hidden_state
    for part, features, target in (
        ("cls", student[:, 0], cls),
        ("patch", student[:, 3:], maps.flatten(2).transpose(1, 2)),
    ):
        found = model.student[f"{part}_projector"](features)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        cosine = 1 - (found * target).sum(-1) / (found.norm(dim=-1) * target.norm(dim=-1))
        torch.testing.assert_close(output.terms[f"{part}_cosine"], cosine.mean(), atol=1e-5, rtol=1e-4)
        distance = (found - target).abs()
        smooth = torch.where(distance < 1, 0.5 * distance**2, distance - 0.5)
        torch.testing.assert_close(output.terms[f"{part}_smooth_l1"], smooth.mean(), atol=1e-5, rtol=1e-4)
    expected = sum((0.9 if "cosine" in name else 0.1) * term for name, term in output.terms.items())
    torch.testing.assert_close(output.loss, expected)


def test_teacher_in_half_precision_gives_nearly_the_same_targets(configure):
    config = configure("teacher.centering=softmax")
    teacher = make_teacher(config)
    half = copy.deepcopy(teacher)
    half.place(torch.device("cpu"), torch.bfloat16, sharded=False)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    model = distil(config, teacher)
    batch = make_batch(config)
    whole = model(batch, at(1.0)).loss  # a soft target, so that rounding does not change who wins
    model._frozen = (half,)
    torch.testing.assert_close(model(batch, at(1.0)).loss, whole, rtol=0.01, atol=0)
