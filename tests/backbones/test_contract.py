"""The contract of backbones: today's model, stock models of transformers, and a convolutional network from outside."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from dinov2_hf.backbones import (
    CropGroup,
    Features,
    ResNetModel,
    StockBackbone,
    base,
    family_of,
    find_family,
    recompute_blocks,
    register_backbone,
    tokens_of_maps,
)
from dinov2_hf.config import BackboneConfig, ModelConfig, ResNetModelConfig, ViTModelConfig

WIDTH, STRIDE, DEPTH = 32, 8, 2
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 48}
SIZES |= {"patch_size": STRIDE, "image_size": 32}


class TinyConv(nn.Module):
    """A convolutional network: a stem, two blocks, a norm."""

    width, stride, takes_masks = WIDTH, STRIDE, False

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, STRIDE, STRIDE)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1)) for _ in range(DEPTH))
        self.norm = nn.GroupNorm(1, WIDTH)

    @property
    def blocks(self):
        return {f"stage_{index}": stage for index, stage in enumerate(self.stages)}

    def depth_of(self, name: str) -> int:
        part, index, *_ = name.split(".")
        return {"stem": 0, "norm": DEPTH + 1}.get(part) if part != "stages" else int(index) + 1

    def is_patch_embedding(self, name: str) -> bool:
        return name.startswith("stem.")

    def tokens(self, groups):
        return tokens_of_maps(self, groups)

    def save_pretrained(self, folder):
        torch.save(self.state_dict(), folder / "weights.pth")

    def features(self, pixels: Tensor, layers: int = 1) -> list[Features]:
        maps, found = self.stem(pixels), []
        for stage in self.stages:
            maps = maps + stage(maps).relu()
            normed = self.norm(maps)
            found.append(Features(normed.mean(dim=(2, 3)), normed))
        return found[-layers:]


def ours(drop_path_rate: float = 0.0, **settings):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "patch_size": STRIDE}
    section = ModelConfig(**{"preset": "tiny", "layerscale_value": 0.5, "num_register_tokens": 2, **sizes, **settings})
    return find_family("dinov2").build(section, 32, drop_path_rate)


def vit(**settings):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "patch_size": STRIDE}
    return find_family("vit").build(ViTModelConfig(**sizes, **settings), 32, 0.0)


def resnet(bottleneck: bool = True):
    sizes = {"depths": [1, 2], "hidden_sizes": [WIDTH, WIDTH], "embedding_size": 8}
    return find_family("resnet").build(
        ResNetModelConfig(preset="resnet50" if bottleneck else "resnet18", **sizes), 32, 0.0
    )


def stock(network, config, **settings):
    return StockBackbone(network(config(**SIZES, **settings)))


BACKBONES = {
    "dinov2": lambda: ours(num_register_tokens=0),
    "dinov2 with registers": lambda: ours(num_register_tokens=2),
    "dinov2 with swiglu": lambda: ours(use_swiglu_ffn=True),
    "vit": vit,
    "vit without mask token": lambda: vit(mask_token=False, interpolate_offset=0.1),
    "resnet": resnet,
    "resnet of basic blocks": lambda: resnet(bottleneck=False),
    "stock dinov2": lambda: stock(Dinov2WithRegistersModel, Dinov2WithRegistersConfig, num_register_tokens=2),
    "stock vit": lambda: stock(ViTModel, ViTConfig),
    "stock clip": lambda: stock(CLIPVisionModel, CLIPVisionConfig),
    "stock siglip, which has no CLS": lambda: stock(SiglipVisionModel, SiglipVisionConfig),
    "convolutional": TinyConv,
}


LAST_ONLY = ResNetModel
"""Networks whose blocks have other widths and strides each, so that there are features of the last one only."""


@pytest.fixture(params=BACKBONES)
def backbone(request):
    torch.manual_seed(0)
    return BACKBONES[request.param]().eval()


def groups_of(backbone) -> list[CropGroup]:
    """Global crops with patches wanted, in no order and one of them twice; local crops with none."""
    mask = torch.rand(3, 16) < 0.4 if backbone.takes_masks else None
    crops = torch.randn(3, 3, 32, 32), torch.randn(4, 3, 16, 24)
    return [CropGroup(crops[0], mask, torch.tensor([40, 3, 3, 16])), CropGroup(crops[1])]


def test_width_stride_and_blocks_are_those_of_the_network(backbone):
    assert (backbone.width, backbone.stride, len(backbone.blocks)) == (WIDTH, STRIDE, DEPTH)


def test_features_are_cls_and_a_map_of_patches_of_the_last_blocks(backbone):
    images = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        (last,) = backbone.features(images)
        assert last.cls.shape == (2, WIDTH) and last.patches.shape == (2, WIDTH, 4, 5)
        if isinstance(backbone, LAST_ONLY):
            with pytest.raises(ValueError, match=f"layers={DEPTH}.* last stage only"):
                backbone.features(images, DEPTH)
            return
        several = backbone.features(images, DEPTH)
    for found in several:
        assert found.cls.shape == (2, WIDTH) and found.patches.shape == (2, WIDTH, 4, 5)
    assert torch.equal(several[-1].cls, last.cls) and torch.equal(several[-1].patches, last.patches)
    assert not torch.allclose(several[0].patches, last.patches)


def test_tokens_of_several_groups_equal_one_forward_per_group(backbone):
    """Values and the gradients of all parameters."""
    groups = groups_of(backbone)
    weights = [(torch.randn(len(group.pixels), WIDTH), torch.randn(4, WIDTH)) for group in groups]  # of CLS, patches
    results = []
    for together in (True, False):
        backbone.zero_grad()
        found = backbone.tokens(groups) if together else [backbone.tokens([group])[0] for group in groups]
        assert found[1].patches.shape == (0, WIDTH)
        loss = sum(
            (part.cls * a).sum() + (part.patches * b[: len(part.patches)]).sum() for part, (a, b) in zip(found, weights)
        )
        loss.backward()
        results.append((found, {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}))
    for one, other in zip(*(found for found, _ in results)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=1e-4)


def test_tokens_are_those_of_the_features(backbone):
    groups = [CropGroup(group.pixels, wanted=group.wanted) for group in groups_of(backbone)]
    with torch.no_grad():
        found = backbone.tokens(groups)
        (first,) = backbone.features(groups[0].pixels)
    torch.testing.assert_close(found[0].cls, first.cls, atol=1e-5, rtol=1e-5)
    patches = first.patches.flatten(2).transpose(1, 2).flatten(0, 1)[groups[0].wanted]
    torch.testing.assert_close(found[0].patches, patches, atol=1e-5, rtol=1e-5)


def test_every_parameter_has_a_depth_and_blocks_have_theirs(backbone):
    depths = {name: backbone.depth_of(name) for name, _ in backbone.named_parameters()}
    after = set() if isinstance(backbone, LAST_ONLY) else {DEPTH + 1}  # a ResNet has no final norm
    assert set(depths.values()) == set(range(DEPTH + 1)) | after
    of_blocks = {id(p): depth for depth, block in enumerate(backbone.blocks.values(), 1) for p in block.parameters()}
    for name, parameter in backbone.named_parameters():
        assert of_blocks.get(id(parameter), depths[name]) == depths[name]
        assert (id(parameter) in of_blocks) == (0 < depths[name] <= DEPTH)


def test_patch_embedding_is_the_first_projection(backbone):
    found = [name for name, _ in backbone.named_parameters() if backbone.is_patch_embedding(name)]
    assert found and {backbone.depth_of(name) for name in found} == {0}
    shapes = {name: p.shape for name, p in backbone.named_parameters()}
    kernel = 7 if isinstance(backbone, LAST_ONLY) else STRIDE
    assert {shapes[name][1:] for name in found if name.endswith("weight")} == {(3, kernel, kernel)}


def test_masks_are_refused_where_the_network_takes_none(backbone):
    group = CropGroup(torch.randn(1, 3, 32, 32), torch.ones(1, 16, dtype=torch.bool))
    if backbone.takes_masks:
        assert not torch.allclose(backbone.tokens([group])[0].cls, backbone.features(group.pixels)[0].cls)
    else:
        with pytest.raises(ValueError, match=f"{type(backbone).__name__} takes no masks"):
            backbone.tokens([group])


@pytest.mark.parametrize("name", [name for name in BACKBONES if "stock" not in name])
def test_recomputed_blocks_run_twice_and_give_the_same_gradients(name):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        backbone = BACKBONES[name]().train()
        if recompute:
            recompute_blocks(backbone)
        runs = []
        for module in [*backbone.blocks.values()][0].modules():
            if not list(module.children()):
                module.register_forward_pre_hook(lambda module, _, runs=runs: runs.append(module))
        found = backbone.tokens([CropGroup(torch.randn(2, 3, 32, 32), wanted=torch.tensor([1]))])[0]
        (found.cls.sum() + found.patches.square().sum()).backward()
        assert runs.count(runs[0]) == 1 + recompute
        gradients.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, atol=0, rtol=0)


def positions_of(groups, prefix, lengths):
    """The positions of CLS and wanted patches in the packed tokens, group by group, each computed by itself."""
    positions, start = [], 0
    for group, length in zip(groups, lengths):
        positions += [start + crop * length for crop in range(len(group.pixels))]
        wanted = [] if group.wanted is None else group.wanted.tolist()
        count = length - prefix
        positions += [start + patch // count * length + prefix + patch % count for patch in wanted]
        start += len(group.pixels) * length
    return torch.tensor(positions)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_tokens_are_exactly_those_at_their_positions(drop_path_rate):
    """The same rows of the packed forward to the last bit, with the same random numbers; gradients too."""
    model = ours(drop_path_rate).train()
    groups = groups_of(model)
    positions = positions_of(groups, 3, (19, 9))
    results = []
    for by_contract in (True, False):
        model.zero_grad()
        torch.manual_seed(1)
        if by_contract:
            rows = torch.cat([part for tokens in model.tokens(groups) for part in tokens])
        else:
            rows = model.forward_at(positions, [group.pixels for group in groups], [group.mask for group in groups])
        rows.square().sum().backward()
        results.append((rows, [p.grad for p in model.parameters() if p.grad is not None]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(*pair) for pair in zip(results[0][1], results[1][1]))


@dataclass
class ConvConfig(BackboneConfig):
    """The section `model` of the convolutional network."""

    family: str = "tiny_conv"


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(base, "_FAMILIES", dict(base._FAMILIES))


def build_conv(section: ConvConfig, image_size: int, drop_path_rate: float) -> TinyConv:
    return TinyConv()


def test_registered_family_is_found_and_built(registry):
    register_backbone("tiny_conv", config=ConvConfig)(build_conv)
    family = find_family("tiny_conv")
    built = family.build(ConvConfig(), 32, 0.1)
    assert isinstance(built, TinyConv) and family.config is ConvConfig
    assert family_of(built) is family
    assert family_of(BACKBONES["stock vit"]()) is None
    assert family_of(ours()) is find_family("dinov2")


@pytest.mark.parametrize(
    "member",
    """width stride takes_masks blocks depth_of is_patch_embedding tokens features save_pretrained""".split(),
)
def test_registration_names_the_member_that_is_missing(registry, member):
    members = {name: value for name, value in vars(TinyConv).items() if name != member and not name.startswith("__")}
    incomplete = type("Incomplete", (nn.Module,), members | {"__init__": lambda self, section, image_size, rate: None})
    with pytest.raises(TypeError, match=rf"Incomplete is not a backbone: {member}\b[^;]* is missing[^;]*$"):
        register_backbone("incomplete", config=ConvConfig)(incomplete)
    with pytest.raises(ValueError, match="model.family='incomplete' is not one of dinov2"):
        find_family("incomplete")
