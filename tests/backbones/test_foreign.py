"""Models of transformers that are no plain vision transformers: read as they are meant, or refused when opened."""

import copy

import pytest
import torch
import transformers as hf

from dinov2_hf import evaluate, extract_features, load_backbone
from dinov2_hf.backbones import StockBackbone
from dinov2_hf.features import open_backbone
from dinov2_hf.objectives.teachers import FeatureTeacher
from dinov2_hf.visualize import attention_maps, open_picture, patch_features
from dinov2_hf.weights import open_weights

PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT = {**PLAIN, "patch_size": 8, "image_size": 32}
SWIN = {"embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 2], "window_size": 2, "patch_size": 4}
CONVS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
MODELS = {
    # its class and config, stride, whether it has CLS
    "vit": (hf.ViTModel, hf.ViTConfig(**VIT), 8, True),
    "vit_mae": (hf.ViTMAEModel, hf.ViTMAEConfig(**VIT), 8, True),
    "vit_msn": (hf.ViTMSNModel, hf.ViTMSNConfig(**VIT), 8, True),
    "ijepa": (hf.IJepaModel, hf.IJepaConfig(**VIT), 8, False),
    "deit": (hf.DeiTModel, hf.DeiTConfig(**VIT), 8, True),
    "beit": (hf.BeitModel, hf.BeitConfig(**VIT, use_mean_pooling=False), 8, True),
    "beit, mean": (hf.BeitModel, hf.BeitConfig(**VIT, use_relative_position_bias=True), 8, True),
    "data2vec": (hf.Data2VecVisionModel, hf.Data2VecVisionConfig(**VIT), 8, True),
    "clip": (hf.CLIPVisionModel, hf.CLIPVisionConfig(**VIT), 8, True),
    "siglip": (hf.SiglipVisionModel, hf.SiglipVisionConfig(**VIT), 8, False),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**VIT, num_register_tokens=4), 8, True),
    "dinov3 convnext": (hf.DINOv3ConvNextModel, hf.DINOv3ConvNextConfig(**CONVS, image_size=64), 32, True),
    "swin": (hf.SwinModel, hf.SwinConfig(**SWIN, image_size=64), 16, False),
    "swinv2": (hf.Swinv2Model, hf.Swinv2Config(**SWIN, image_size=64), 16, False),
    "convnext": (hf.ConvNextModel, hf.ConvNextConfig(**CONVS, image_size=64), 32, False),
    "convnextv2": (hf.ConvNextV2Model, hf.ConvNextV2Config(**CONVS, image_size=64), 32, False),
    "resnet": (hf.ResNetModel, hf.ResNetConfig(embedding_size=8, layer_type="basic", **CONVS), 32, False),
}
PYRAMIDS = ["dinov3 convnext", "swin", "swinv2", "convnext", "convnextv2", "resnet"]


def build(name):
    torch.manual_seed(0)
    kind, config, *_ = MODELS[name]
    return kind(copy.deepcopy(config)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each model in a folder of its own, with the preprocessor of its kind."""
    found = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp("models")
        build(name).save_pretrained(folder)
        convnext = "convnext" in name or name == "resnet"
        processor = hf.ConvNextImageProcessorPil if convnext else hf.ViTImageProcessorPil
        size = {"shortest_edge": 64} if convnext else {"height": 64, "width": 64}
        processor(size=size).save_pretrained(folder)
        found[name] = str(folder)
    return found


def stock_outputs(model, images):
    options = {}
    if isinstance(model, hf.ViTMAEModel):  # the published way to keep every patch in its place
        model.config.mask_ratio = 0.0
        options["noise"] = torch.arange(images.shape[2] * images.shape[3] // 64).expand(len(images), -1).float()
    if hasattr(getattr(model, "embeddings", model), "interpolate_pos_encoding"):
        options["interpolate_pos_encoding"] = True
    return model(pixel_values=images, **options)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_model_row_by_row(name):
    model, (_, _, stride, has_cls) = build(name), MODELS[name]
    backbone = StockBackbone(build(name)).eval()
    images = torch.randn(2, 3, 64, 96)
    expected = stock_outputs(model, images)
    ((cls, patches),) = backbone.features(images)
    values = expected.last_hidden_state
    grid = (64 // stride, 96 // stride)
    assert (
        backbone.stride == stride and cls.shape == (2, backbone.width) and patches.shape == (2, backbone.width, *grid)
    )
    if name == "clip":
        values = model.post_layernorm(values)
        torch.testing.assert_close(cls, expected.pooler_output)
    if values.ndim == 4:
        torch.testing.assert_close(patches, values)
        torch.testing.assert_close(cls, expected.pooler_output.flatten(1))
    else:
        count = grid[0] * grid[1]
        torch.testing.assert_close(patches.flatten(2).transpose(1, 2), values[:, -count:])
        torch.testing.assert_close(cls, values[:, 0] if has_cls else values.mean(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet"])  # whose output is a map already
def test_each_feature_is_of_its_own_part_of_the_image(name):
    backbone = StockBackbone(build(name)).eval()
    stride = backbone.stride
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, 3 * stride, 4 * stride, generator=generator)
    plain = backbone.features(images)[0].patches
    for row, column in ((0, 3), (2, 0), (1, 2)):
        changed = images.clone()
        part = changed[:, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
        part += 3 * torch.randn(part.shape, generator=generator)
        moved = (backbone.features(changed)[0].patches - plain)[0].norm(dim=0)
        assert divmod(int(moved.argmax()), 4) == (row, column)


@torch.no_grad()
def test_masked_autoencoders_see_every_patch_and_give_the_same_twice():
    model = build("vit_mae")
    backbone = StockBackbone(model)
    images = torch.randn(2, 3, 32, 32)
    first, again = backbone.features(images, 2), backbone.features(images, 2)
    assert all(torch.equal(one, other) for pair in zip(first, again) for one, other in zip(*pair))
    assert model.config.mask_ratio == 0.75  # the model of the caller still masks


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in MODELS if name not in PYRAMIDS])
def test_blocks_come_after_the_final_norm_or_before_it(name):
    backbone = StockBackbone(build(name)).eval()
    images = torch.randn(1, 3, 32, 32)
    after, before = backbone.features(images, 2), backbone.features(images, 2, final_norm=False)
    norm = backbone._final_norm
    for one, other in zip(after, before):
        normed = norm(other.patches.flatten(2).transpose(1, 2))
        torch.testing.assert_close(one.patches.flatten(2).transpose(1, 2), normed)
    torch.testing.assert_close(after[-1].cls, backbone.features(images)[0].cls)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_networks_that_change_resolution_give_their_last_layer_only(name):
    backbone = StockBackbone(build(name))
    images = torch.randn(1, 3, 64, 64)
    assert list(backbone.blocks) == ["layer_00"]
    assert {backbone.depth_of(each) for each, _ in backbone.named_parameters()} == {1}
    with pytest.raises(ValueError, match="layers=2 of a model of 1 blocks; use 1 to 1"):
        backbone.features(images, 2)
    with pytest.raises(ValueError, match="after its last layer only.*final_norm=true"):
        backbone.features(images, final_norm=False)
    with pytest.raises(ValueError, match="has no CLS token, so there is no attention of one to show"):
        backbone.attention(images)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_and_pictures_take_the_model_from_its_folder(name, folders, image_folder):
    backbone = open_backbone(folders[name])
    images = sorted(image_folder.rglob("*.jpg"))[:4]
    found = extract_features(backbone, images, parts=("cls", "patches"))
    pixels = torch.stack([torch.from_numpy(backbone.transform.pixels(path.read_bytes()).copy()) for path in images])
    with torch.no_grad():
        expected = StockBackbone(build(name)).eval().features(backbone.transform.normalize(pixels))[0]
    torch.testing.assert_close(found["cls"], expected.cls, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["patches"], expected.patches, rtol=1e-4, atol=1e-5)

    keys = {"k": [3], "test.split": "train", "num_workers": 0, "precision": "fp32"}
    assert 0 <= evaluate(backbone, "knn", str(image_folder), keys=keys).metrics["accuracy_k3"] <= 100

    picture = open_picture(images[0].read_bytes(), "it", 2 * backbone.stride, backbone.stride)
    assert patch_features(backbone, picture).shape[2] == backbone.width
    teacher = FeatureTeacher.of(open_weights(folders[name]))
    seen = teacher(backbone.transform.normalize(pixels), backbone.transform.mean, backbone.transform.std)
    torch.testing.assert_close(seen.patches, expected.patches, rtol=1e-4, atol=1e-5)

    if name in PYRAMIDS or not MODELS[name][3] or name == "data2vec":
        with pytest.raises(ValueError, match="no CLS token|does not give its attention|no attention of CLS"):
            attention_maps(backbone, picture)
    else:
        assert attention_maps(backbone, picture).shape[0] == 2


REFUSED = {
    "naflex": (hf.Siglip2VisionModel, hf.Siglip2VisionConfig(**PLAIN, num_patches=16, patch_size=8), "NaFlex.*siglip2"),
    "v-jepa 2": (
        hf.VJEPA2Model,
        hf.VJEPA2Config(
            **VIT | {"crop_size": 32}, pred_hidden_size=16, pred_num_hidden_layers=1, pred_num_attention_heads=2
        ),
        "takes pixel_values_videos and not pixel_values; take a model of single images",
    ),
    "video mae": (hf.VideoMAEModel, hf.VideoMAEConfig(**VIT), "cannot take an image of 32 x 32 pixels"),
    "yolos": (hf.YolosModel, hf.YolosConfig(**VIT | {"image_size": [32, 32]}), "which is not a map of patches"),
    "bert": (hf.BertModel, hf.BertConfig(**PLAIN, vocab_size=9), "takes input_ids and not pixel_values"),
}


@pytest.mark.parametrize("kind, config, message", REFUSED.values(), ids=REFUSED)
def test_other_models_are_refused_when_opened_in_one_line(kind, config, message, tmp_path):
    kind(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"--model={tmp_path} cannot be used: .*{message}") as refused:
        open_backbone(str(tmp_path))
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=message):
        load_backbone(kind(config))


def test_weights_that_are_missing_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    build("swin").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if name.startswith("encoder.layers.1"))
    save_file({name: value for name, value in tensors.items() if name != gone}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks 1 weights of its blocks, such as encoder.layers.1"):
        open_backbone(str(tmp_path))
