"""Python generators as sources of images to train on."""

import io
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image as Pillow

from dinov2_hf.config import DataConfig, SourceConfig, TrainingSourceConfig
from dinov2_hf.data import TrainingBatches, build_loader, check_source, open_training_source, register_source
from dinov2_hf.data.decode import BrokenImage, open_image
from dinov2_hf.data.sources import generators, open_images
from dinov2_hf.data.sources.training import MapSource

from ..train.running import train

COUNT = 23


def drawn(number):
    """Image `number`, no two alike."""
    return np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)


@register_source("discs")
def discs():
    for number in range(COUNT):
        yield drawn(number), f"disc {number}"


@register_source("parted", shards=4)
def parted(shard):
    for number in range(shard, COUNT, 4):
        yield drawn(number)


@register_source("from-start")
def from_start(start=0):
    for number in range(start, COUNT):
        yield drawn(number), f"disc {number}"


@register_source("endless")
def endless():
    yield from map(drawn, itertools.count())


@register_source("kinds")
def kinds():
    file = io.BytesIO()
    Pillow.fromarray(drawn(0)).save(file, "PNG")
    yield file.getvalue()
    yield drawn(0)
    yield Pillow.fromarray(drawn(0)), "a picture"
    yield None, "a gap"
    yield b"not an image"
    yield Pillow.fromarray(drawn(0)).convert("CMYK"), "for print"


@pytest.fixture
def registered(monkeypatch):
    """What is registered is as before at the end."""
    monkeypatch.setattr(generators, "_registered", dict(generators._registered))


def open_source(name, seed=0, mix=None, shuffle_buffer=8, **options):
    sources = {name: TrainingSourceConfig(**source) for name, source in (mix or {}).items()}
    config = TrainingSourceConfig(path=f"generator:{name}")
    return open_training_source(DataConfig(train=config, mix=sources, shuffle_buffer=shuffle_buffer, **options), seed)


def read(source, start, stop):
    return [source.read(number) for number in range(start, stop)]


def images_of(samples):
    return [np.load(io.BytesIO(sample.data)) for sample in samples]


def numbers_of(samples):
    known = [drawn(number).tobytes() for number in range(COUNT)]
    return [known.index(image.tobytes()) for image in images_of(samples)]


# --- what is read


@pytest.mark.parametrize("name", ["discs", "parted", "from-start"])
def test_every_epoch_has_every_image_once_in_a_new_order(name):
    source = open_source(name)
    samples = read(source, 0, 6 * COUNT)
    assert source.num_shards == source.listing()["data.train"]["count"] == (4 if name == "parted" else 1)
    orders = [numbers_of(sample for sample in samples if sample.epoch == epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert orders[0] != orders[1] != orders[2] and orders[0] != sorted(orders[0])


def test_images_that_are_not_shuffled_come_in_the_order_of_the_generator():
    samples = read(open_source("discs", shuffle=False), 0, 2 * COUNT)
    assert numbers_of(samples) == 2 * list(range(COUNT))
    assert [sample.name for sample in samples[:2]] == ["disc 0 of generator:discs", "disc 1 of generator:discs"]
    assert [sample.epoch for sample in samples] == COUNT * [0] + COUNT * [1]


@pytest.mark.parametrize("name", ["discs", "parted", "from-start", "endless"])
def test_any_number_is_read_as_in_order(name):
    samples = read(open_source(name), 0, 70)
    for number in (0, 9, 22, 23, 45, 46, 69):
        assert open_source(name).read(number) == samples[number]
    source = pickle.loads(pickle.dumps(open_source(name)))
    assert [source.read(number) for number in (40, 10, 60)] == [samples[number] for number in (40, 10, 60)]
    assert source.replacement(60, 3) == open_source(name).replacement(60, 3)


def test_a_restart_makes_no_image_before_the_block_it_needs_where_the_function_takes_a_start(registered):
    made = []

    @register_source("counted")
    def counted(start=0):
        for number in range(start, 1000):
            made.append(number)
            yield drawn(number)

    open_source("counted").read(500)
    assert min(made) == 496 and len(made) == 8  # blocks of 8


@pytest.mark.parametrize("number, kind", enumerate(["png", "array", "picture"]))
def test_bytes_arrays_and_pictures_are_the_same_pixels(number, kind):
    sample = open_source("kinds", shuffle=False).read(number)
    pixels, _ = open_image(sample.data).decode()
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), drawn(0))
    assert sample.name == {"picture": "a picture of generator:kinds"}.get(kind, f"image {number} of generator:kinds")


@pytest.mark.parametrize(
    "number, reason", [(3, "None stands for it"), (4, "not an image"), (5, "mode CMYK")], ids=["None", "bytes", "mode"]
)
def test_what_cannot_be_read_is_broken_with_its_reason(number, reason):
    sample = open_source("kinds", shuffle=False).read(number)
    with pytest.raises(BrokenImage, match=reason):
        open_image(sample.data)


def test_an_array_that_is_filled_again_is_kept_as_it_was(registered):
    @register_source("reused")
    def reused():
        image = np.empty((4, 4, 3), dtype=np.uint8)
        for number in range(8):
            image[:] = number
            yield image

    assert [int(image[0, 0, 0]) for image in images_of(read(open_source("reused", shuffle=False), 0, 8))] == [*range(8)]


def test_a_generator_is_mixed_with_files_and_with_another(paths, files):
    mix = {"more": {"path": str(paths["flat"]), "weight": 2}, "other": {"path": "generator:parted"}}
    source = open_source("discs", mix=mix)
    samples = read(source, 0, 1024)
    assert np.bincount([sample.source for sample in samples]).tolist() == [256, 512, 256]
    assert {sample.name.partition(": ")[0] for sample in samples} == {"data.train", "data.mix.more", "data.mix.other"}
    assert {key: (entry["count"], entry["unit"]) for key, entry in source.listing().items()} == {
        "data.train": (1, "generators"),
        "data.mix.more": (COUNT, "images"),
        "data.mix.other": (4, "generators"),
    }


def test_the_listing_changes_with_the_function(registered):
    before = open_source("discs").listing()

    @register_source("other")
    def other():
        yield drawn(1)

    assert open_source("discs").listing() == before
    assert open_source("other").listing()["data.train"]["digest"] != before["data.train"]["digest"]


# --- what a run gets


def batches_of(config, start, stop, rank=0, world_size=1, num_workers=0, start_method=None):
    """Global crops and broken items of the batches of one process."""
    source = open_training_source(config.data, config.train.seed)
    batches = TrainingBatches(source, config, start, stop, rank, world_size)
    loader = build_loader(batches, num_workers, pin_memory=False, start_method=start_method)
    return [(batch.global_crops.numpy(), [*map(tuple, batch.broken)]) for batch in loader]


def same(left, right):
    assert len(left) == len(right)
    for (crops, broken), (others, met) in zip(left, right):
        np.testing.assert_array_equal(crops, others)
        assert broken == met


@pytest.fixture
def config(tiny_config):
    return tiny_config("data.train.path=generator:parted", "data.shuffle_buffer=8", "data.num_workers=0")


def test_workers_and_restarts_change_no_sample(config):
    whole = batches_of(config, 0, 8)
    same(batches_of(config, 0, 8, num_workers=2), whole)
    same(batches_of(config, 5, 8), whole[5:])
    same(batches_of(config, 5, 8, num_workers=2), whole[5:])


def test_two_processes_read_what_one_reads_in_turn(config):
    ranks = [batches_of(config, 0, 3, rank, 2) for rank in range(2)]
    size = config.train.batch_size
    one, two = batches_of(config, 0, 6), [batch for pair in zip(*ranks) for batch in pair]
    assert len(one[0][0]) == 2 * size
    same(two, one)


def test_broken_images_are_named_once_and_replaced(config, registered):
    @register_source("holed")
    def holed():
        for number in range(COUNT):
            yield None if number == 7 else drawn(number)

    config.data.train.path = "generator:holed"
    crops, broken = zip(*batches_of(config, 0, -(-COUNT // config.train.batch_size)))
    named = [item for items in broken for item in items]
    assert ("image", "image 7 of generator:holed", "None stands for it") in named
    assert all(len(batch) == 2 * config.train.batch_size for batch in crops)


def test_spawned_workers_import_the_function():
    assert b"parted" in (content := pickle.dumps(open_source("parted"))) and __name__.encode() in content
    assert numbers_of(read(pickle.loads(content), 0, 5)) == numbers_of(read(open_source("parted"), 0, 5))


def test_a_function_that_spawned_workers_cannot_import_is_refused(registered):
    @register_source("local")
    def local():
        yield drawn(0)

    with pytest.raises(ValueError, match="move the function to the top of its module") as caught:
        pickle.dumps(open_source("local"))
    assert "generator:local" in str(caught.value) and "\n" not in str(caught.value)


def test_a_killed_run_continues_with_the_samples_it_would_have_had(config):
    config.train.epochs, seen = 2, []

    def note(trainer):
        next_batch = trainer._next_batch

        def noted(loader):
            batch = next(loader)
            seen.append((trainer.step, batch.global_crops.numpy()))
            return next_batch(iter([batch]))

        trainer._next_batch = noted

    train(config, until=3, prepare=note)  # killed with its fourth batch, after the checkpoint of update 2
    train(config, prepare=note)
    assert [step for step, _ in seen] == [0, 1, 2, 3, 2, 3]
    expected = batches_of(config, 0, 4)
    for step, crops in seen:
        np.testing.assert_array_equal(crops, expected[step][0])


# --- what is refused


@pytest.mark.parametrize(
    "function, options, error, message",
    [
        (discs(), {}, TypeError, "register the function that makes it"),
        (7, {}, TypeError, "type int, which cannot be called"),
        (lambda count: [], {}, TypeError, "needs the argument count"),
        (lambda: [], {"shards": 2}, TypeError, "shards=2 and no parameter `shard`"),
        (lambda shard: [], {}, TypeError, "shards=1 and a parameter `shard`"),
        (lambda: [], {"shards": 0}, ValueError, "shards=0"),
        (lambda: [], {"name": "a name"}, ValueError, "rename it"),
        (lambda: [], {"name": "discs"}, ValueError, "already registered by .*discs"),
    ],
)
def test_what_cannot_be_a_source_is_refused_when_it_is_registered(function, options, error, message, registered):
    with pytest.raises(error, match=message) as caught:
        register_source(**{"name": "new", **options})(function)
    assert "\n" not in str(caught.value) and "new" not in generators._registered


def failing():
    yield drawn(0)
    raise KeyError("gone")


@pytest.mark.parametrize(
    "function, message",
    [
        (failing, "generator:new raised KeyError at image 1: 'gone'"),
        (lambda: [drawn(0), 7], "yields an object of the type int as image 1"),
        (lambda: [drawn(0), (1, 2, 3)], "yields a tuple of int, int, int as image 1"),
        (lambda: 7, "raised TypeError at image 0"),
        (lambda: [], "the streaming source has no samples"),
    ],
)
def test_a_function_that_yields_no_images_ends_the_run_with_its_name(function, message, registered):
    register_source("new")(function)
    with pytest.raises(ValueError, match=message) as caught:
        read(open_source("new", shuffle=False), 0, 3)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_not_registered_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="generator:dics: no source of this name .*discs.*import the module"):
        open_source("dics")


def test_keys_of_files_are_refused_with_a_generator():
    config = TrainingSourceConfig(path="generator:discs", split="validation")
    with pytest.raises(ValueError, match="data.train.split=validation has no effect on generator:discs"):
        open_training_source(DataConfig(train=config), 0)


def test_only_training_reads_generators():
    with pytest.raises(ValueError, match="generator:discs is a generator, which only data.train and data.mix read"):
        open_images(SourceConfig(path="generator:discs"), streaming=False)


def test_a_source_handed_in_from_python_is_checked():
    class Pictures:
        def __len__(self):
            return COUNT

        def read(self, index):
            return files[index]

    files = [(str(number).encode(), f"picture {number}") for number in range(COUNT)]
    source = MapSource(Pictures(), seed=0)
    check_source(source)
    samples = read(source, 0, COUNT)
    assert sorted(sample.data for sample in samples) == sorted(data for data, _ in files)
    assert source.listing() == {} and source.num_shards == 0
    with pytest.raises(TypeError, match="Pictures is not a source.*lacks num_shards, replacement, listing"):
        check_source(Pictures())
