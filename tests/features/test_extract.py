import io

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.config import SourceConfig
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation.datasets import LabeledImages
from dinov2_hf.features import FeatureExtractor, gather_features
from dinov2_hf.features.extract import _measure as measure
from dinov2_hf.features.extractor import fingerprint_of

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def encoded(seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(coarse).resize((30, 24), Pillow.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


NUM_IMAGES = 11
BROKEN = (0, 4, 10)
TRANSFORM = EvalTransform(20, 16, MEAN, STD)


def store(folder, broken=()):
    files = [b"a text" if index in broken else encoded(index) for index in range(NUM_IMAGES)]
    columns = {
        "image": [{"bytes": data, "path": f"{index}.png"} for index, data in enumerate(files)],
        "label": [index % 3 for index in range(NUM_IMAGES)],
    }
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return LabeledImages(SourceConfig(path=str(folder)))


def pooled(images, count=1):
    """Features that treat each image by itself to the last bit: two blocks of 48 channels."""
    patches = torch.nn.functional.pixel_unshuffle(torch.nn.functional.avg_pool2d(images, 2), 4)
    cls = torch.nn.functional.avg_pool2d(images, 4).flatten(1)
    return [(cls * factor, patches + factor) for factor in (2.0, 1.0)][-count:]


def extract(images, function=pooled, fingerprint=None, **options):
    digest = (lambda: fingerprint) if fingerprint else None
    backbone = FeatureExtractor(function, TRANSFORM, 48, 8, 2, torch.device("cpu"), fingerprint=digest)
    return gather_features(backbone, images, TRANSFORM, Accelerator(cpu=True), **options)


def expected_features(images, indices):
    pixels = [torch.from_numpy(TRANSFORM.pixels(images.read(index)[0]).copy()) for index in indices]
    return torch.cat([pooled(TRANSFORM.normalize(image[None]))[0][0] for image in pixels])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 64])
def test_features_come_in_order_and_do_not_depend_on_the_batch_size(batch_size, tmp_path):
    images = store(tmp_path)
    found = extract(images, batch_size=batch_size)
    values = found.parts["cls"][:, 0]
    assert values.dtype == torch.float32
    assert torch.equal(values, expected_features(images, range(NUM_IMAGES)))
    assert found.index.tolist() == list(range(NUM_IMAGES))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_broken_images_are_left_out_with_their_labels_and_named(batch_size, tmp_path, caplog):
    images = store(tmp_path, BROKEN)
    found = extract(images, batch_size=batch_size)
    values = found.parts["cls"][:, 0]
    kept = [index for index in range(NUM_IMAGES) if index not in BROKEN]
    assert torch.equal(values, expected_features(images, kept))
    assert found.index.tolist() == kept
    for index in BROKEN:
        assert sum(f" {index}.png of " in record.getMessage() for record in caplog.records) == 1


def test_features_do_not_depend_on_the_workers(tmp_path):
    images = store(tmp_path, BROKEN)
    found = extract(images, batch_size=4)
    for num_workers in (1, 2):
        again = extract(images, batch_size=4, num_workers=num_workers)
        assert torch.equal(again.parts["cls"], found.parts["cls"]) and torch.equal(again.index, found.index)


def test_broken_images_alone_give_no_features(tmp_path):
    found = extract(store(tmp_path, range(NUM_IMAGES)), batch_size=4)
    assert found.parts["cls"].shape == (0, 1, 48) and found.index.shape == (0,)


def test_parts_are_those_of_the_last_blocks_computed_by_hand(tmp_path):
    images = store(tmp_path)
    found = extract_all(images, 2)
    pixels = torch.stack([torch.from_numpy(TRANSFORM.pixels(images.read(row)[0]).copy()) for row in range(NUM_IMAGES)])
    for number, (cls, patches) in enumerate(pooled(TRANSFORM.normalize(pixels), 2)):
        torch.testing.assert_close(found.parts["cls"][:, number], cls)
        torch.testing.assert_close(found.parts["patches"][:, number], patches)
        torch.testing.assert_close(found.parts["mean"][:, number], patches.flatten(2).mean(dim=2))
        gem = patches.flatten(2).clamp(min=1e-6).pow(3).mean(dim=2).pow(1 / 3)
        torch.testing.assert_close(found.parts["gem"][:, number], gem)


def extract_all(images, count, **options):
    backbone = FeatureExtractor(pooled, TRANSFORM, 48, 8, 2, torch.device("cpu"), fingerprint=lambda: "weights")
    parts = ("cls", "mean", "gem", "patches")
    accelerator = Accelerator(cpu=True)
    return gather_features(backbone, images, TRANSFORM, accelerator, layers=count, parts=parts, batch_size=3, **options)


def test_part_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'tokens'.*cls, mean, gem, patches"):
        extract(store(tmp_path), parts=("cls", "tokens"))


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of four images."""
    monkeypatch.setattr("dinov2_hf.features.extract._BLOCK_BYTES", 48 * 4 * 4)


class Counting:
    """The features of `pooled`, counting the images it is asked for and ending the process's patience after some."""

    def __init__(self, most=10**9):
        self.asked, self.most = 0, most

    def __call__(self, images, count):
        self.asked += len(images)
        if self.asked > self.most:
            raise KeyboardInterrupt
        return pooled(images, count)


def test_kept_features_are_read_and_not_computed_again(tmp_path, small_shards):
    images, cache, first, second = store(tmp_path / "set", BROKEN), tmp_path / "cache", Counting(), Counting()
    found = extract(images, first, "weights", batch_size=2, cache=cache)
    again = extract(images, second, "weights", batch_size=2, cache=cache)
    assert first.asked == NUM_IMAGES and second.asked == 0
    assert torch.equal(again.parts["cls"], found.parts["cls"]) and torch.equal(again.index, found.index)
    assert torch.equal(found.parts["cls"], extract(images).parts["cls"])
    assert len(list(cache.glob("*/shard-*.safetensors"))) == 3 and not list(cache.glob("*/*.safetensors.*"))


def test_extraction_that_was_killed_continues_with_the_next_shard(tmp_path, small_shards):
    images, cache, second = store(tmp_path / "set"), tmp_path / "cache", Counting()
    with pytest.raises(KeyboardInterrupt):
        extract(images, Counting(most=9), "weights", batch_size=2, cache=cache)
    found = extract(images, second, "weights", batch_size=2, cache=cache)
    assert second.asked == 3  # of two shards of four that were done, and one of three that was not
    assert torch.equal(found.parts["cls"], extract(images).parts["cls"])


def test_kept_features_are_of_this_network_these_images_and_this_transform_alone(tmp_path):
    images, cache = store(tmp_path / "set"), tmp_path / "cache"
    extract(images, fingerprint="weights", cache=cache)
    asked = Counting()
    extract(images, asked, "other weights", cache=cache)
    extract(store(tmp_path / "other", BROKEN), asked, "weights", cache=cache)
    extract(images, asked, "weights", cache=cache, layers=2)
    extract(images, asked, "weights", cache=cache, parts=("mean",))
    extract(images, asked, "weights", cache=cache, dtype=torch.float16)
    extract(images, asked, "weights", cache=cache, parts=("gem",))
    extract(images, asked, "weights", cache=cache, parts=("gem",), gem_power=4.0)
    assert asked.asked == 7 * NUM_IMAGES
    assert len(list(cache.glob("*/key.json"))) == 8


def test_nothing_is_kept_of_a_network_in_training(tmp_path):
    extract(store(tmp_path / "set"), fingerprint=None, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_damaged_shard_is_named_with_what_to_do(tmp_path):
    images, cache = store(tmp_path / "set"), tmp_path / "cache"
    extract(images, fingerprint="weights", cache=cache)
    (shard,) = cache.glob("*/shard-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{shard} cannot be read.*remove"):
        extract(images, fingerprint="weights", cache=cache)


def test_labels_of_a_column_of_text_number_its_class_names(tmp_path):
    files = [encoded(index) for index in range(4)]
    columns = {"image": [{"bytes": data, "path": None} for data in files], "kind": ["dog", "cat", "dog", "dog"]}
    dataset = Dataset.from_dict(columns).cast_column("image", Image())
    dataset.save_to_disk(tmp_path)
    images = LabeledImages(SourceConfig(path=str(tmp_path), label_column="kind"))
    assert [images.names[label] for label in images.labels.tolist()] == ["dog", "cat", "dog", "dog"]


class Copies(TorchDispatchMode):
    """Whether each copy to another device may block."""

    def __init__(self):
        super().__init__()
        self.blocking = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        if operation is torch.ops.aten._to_copy.default and (keywords or {}).get("device") is not None:
            self.blocking.append(not keywords.get("non_blocking"))
        return operation(*arguments, **(keywords or {}))


def test_copies_to_the_device_do_not_block():
    backbone = FeatureExtractor(pooled, TRANSFORM, 48, 8, 2, torch.device("meta"))
    pixels, rows = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.arange(2)
    with Copies() as copies:
        measure(backbone, TRANSFORM, 1, ("cls",), torch.float32, pixels, rows)
    assert copies.blocking == [False, False]


def test_weights_are_read_for_a_digest_once_and_only_for_a_cache(tmp_path, monkeypatch):
    digests = []

    def counted(module):
        digests.append(fingerprint_of(module))
        return digests[-1]

    monkeypatch.setattr("dinov2_hf.features.extractor.fingerprint_of", counted)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "patch_size": 8, "image_size": 16}
    network = Dinov2Model(Dinov2Config.preset("tiny", **shape))
    backbone, images = FeatureExtractor.of(network, TRANSFORM), store(tmp_path / "images")
    found, counts = [], []
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        found.append(gather_features(backbone, images, TRANSFORM, Accelerator(cpu=True), cache=cache).parts["cls"])
        counts.append(len(digests))
    assert counts == [0, 1, 1]
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
