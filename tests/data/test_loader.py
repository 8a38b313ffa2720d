from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image

from dinov2_hf.config import load_config
from dinov2_hf.data.loader import TrainingBatches, build_loader
from dinov2_hf.data.sources.training import open_training_source

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
NUM_COLORED, LEVEL = 21, 12


def configure(path, *overrides, streaming=False):
    return load_config(
        None,
        [
            f"data.train.path={path}",
            f"data.train.streaming={streaming}",
            "data.shuffle_buffer=8",
            "model.patch_size=8",
            "crops.global_size=32",
            "crops.local_size=16",
            "crops.num_local=3",
            "train.batch_size=4",
            "train.seed=7",
            *overrides,
        ],
    )


def batches_of(config, start=0, stop=8, rank=0, world_size=1):
    source = open_training_source(config.data, config.train.seed)
    return TrainingBatches(source, config, start, stop, rank, world_size)


def assert_same(first, second, names=None):
    """Two batches, or the fields `names` of them, are equal to the last bit."""
    for name in names or [item.name for item in fields(first)]:
        one, other = getattr(first, name), getattr(second, name)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), name
        else:
            assert one == other, name


IMAGES = ["global_crops", "local_crops", "global_colors", "local_colors"]


def differs(first, second, name):
    return not torch.equal(getattr(first, name), getattr(second, name))


@pytest.fixture(scope="module")
def colored(tmp_path_factory, encode):
    """Images of one colour each, by which their crops are recognised."""
    folder = tmp_path_factory.mktemp("colored")
    for index in range(NUM_COLORED):
        pixels = np.full((20, 24, 3), LEVEL * index, dtype=np.uint8)
        (folder / f"{index:02}.png").write_bytes(encode(pixels))
    return folder


def recognise(crops):
    """Which of the coloured images each of `crops` shows."""
    levels = crops[:, 0, 0, 0].long()
    assert (crops == crops[:, :1, :1, :1]).all() and (levels % LEVEL == 0).all()
    return (levels // LEVEL).tolist()


def mix_with(path, *overrides, streaming=False):
    """Overrides that mix another source in."""
    return [f"data.mix.more.path={path}", f"data.mix.more.streaming={streaming}", *overrides]


@pytest.mark.parametrize(
    "kind, streaming, other",
    [
        ("saved", False, None),
        ("saved", True, None),
        ("tables", True, None),
        ("tars", True, None),
        ("saved", False, False),
        ("saved", False, True),
        ("tables", True, True),
    ],
)
def test_batches_do_not_depend_on_the_number_of_workers(kind, streaming, other, paths):
    mix = [] if other is None else mix_with(paths["tars"], streaming=other)
    config = configure(paths[kind], *mix, streaming=streaming)
    expected = list(batches_of(config))
    assert len(expected) == 8
    for num_workers in (0, 1, 4):
        torch.manual_seed(num_workers)  # the global generators have no part in it
        np.random.seed(num_workers)
        loaded = list(build_loader(batches_of(config), num_workers, pin_memory=False))
        assert len(loaded) == 8
        for one, other in zip(loaded, expected, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("kind", ["tables", "table.parquet", "saved", "tars"])
def test_map_style_and_streaming_give_the_same_batches_where_the_order_is_the_same(kind, paths):
    stored, streamed = (
        list(batches_of(configure(paths[kind], "data.shuffle=false", streaming=streaming)))
        for streaming in (False, True)
    )
    assert len(stored) == len(streamed) == 8  # more than an epoch of the data
    for one, other in zip(stored, streamed, strict=True):
        assert_same(one, other)


@pytest.fixture(scope="module")
def many(tmp_path_factory, encode):
    """64 images of one colour each, by which their crops are recognised: 16 in each of four tables."""
    folder = tmp_path_factory.mktemp("many")
    for table in range(4):
        levels = range(16 * table, 16 * table + 16)
        encoded = [{"bytes": encode(np.full((9, 9, 3), level, np.uint8)), "path": None} for level in levels]
        rows = Dataset.from_dict({"image": encoded}, features=Features({"image": Image()}))
        rows.to_parquet(folder / f"{table}.parquet", batch_size=5)
    return folder


@pytest.mark.parametrize("num_processes, num_workers", [(1, 0), (1, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("kind", ["map", "stream", "mixture", "mixture of streams"])
def test_processes_and_workers_together_read_every_image_as_often_as_any_other(kind, num_processes, num_workers, many):
    """And so none is lost or read twice in an epoch of the data."""
    overrides = ["crops.global_size=8", "crops.num_local=0", "train.batch_size=16"]
    path, share, epochs = f"{many}/*.parquet", None, 2
    if "mixture" in kind:
        # 2 of 3 samples are of the first table; 1,024 samples of each lane are what the shares are made for
        path, streams = f"{many}/0.parquet", kind == "mixture of streams"
        overrides += mix_with(f"{many}/[12].parquet", "data.mix.more.weight=1", "data.train.weight=3", streaming=True)
        config = configure(path, *overrides, streaming=streams)
        share, samples = (768, 256), 1024 * (1 if streams else 2)
    else:
        config = configure(path, *overrides, streaming=kind == "stream")
        samples = 64 * epochs
    batches = samples // 16 // num_processes
    levels, broken = Counter(), []
    for rank in range(num_processes):
        loader = build_loader(batches_of(config, 0, batches, rank, num_processes), num_workers, pin_memory=False)
        for batch in loader:
            levels.update(batch.global_crops[:16, 0, 0, 0].tolist())
            broken += batch.broken
    assert broken == []
    if share is None:
        assert levels == Counter(dict.fromkeys(range(64), epochs))
    else:
        times = samples // 1024
        assert levels == Counter(dict.fromkeys(range(16), share[0] * times // 16)) + Counter(
            dict.fromkeys(range(16, 48), share[1] * times // 32)
        )


def test_sources_of_a_mixture_have_crops_of_their_own_and_the_first_those_it_has_alone(tmp_path, encode, photograph):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for index in range(4):
            (tmp_path / name / f"{index}.png").write_bytes(encode(photograph(40, 48)))  # the same image eight times
    alone = batches_of(configure(tmp_path / "one", "train.batch_size=8")).batch(0)
    config = configure(tmp_path / "one", *mix_with(tmp_path / "two"), "train.batch_size=24")
    mixed = batches_of(config).batch(0)
    for name in ("global_crops", "local_crops"):
        views = getattr(mixed, name)
        assert len(torch.unique(views.flatten(1), dim=0)) == len(views)
        first = getattr(alone, name)[0]
        assert any(torch.equal(first, view) for view in views)


def test_second_run_through_a_loader_gives_the_same_batches(paths):
    loader = build_loader(batches_of(configure(paths["saved"]), stop=3), 1, pin_memory=False)
    assert len(loader) == 3
    for one, other in zip(list(loader), list(loader), strict=True):
        assert_same(one, other)


def test_batch_does_not_depend_on_those_read_before(paths):
    config = configure(paths["saved"])
    expected = list(batches_of(config))
    batches = batches_of(config)
    for number in (7, 2, 5, 5, 0):
        assert_same(batches.batch(number), expected[number])


@pytest.mark.parametrize(
    "kind, streaming, mixed",
    [("saved", False, False), ("saved", True, False), ("tables", True, False), ("tars", True, True)],
)
@pytest.mark.parametrize("start", [1, 5, 7])
def test_restart_gives_the_batches_of_the_uninterrupted_run(start, kind, streaming, mixed, paths):
    config = configure(paths[kind], *(mix_with(paths["flat"]) if mixed else []), streaming=streaming)
    expected = list(batches_of(config))
    restarted = list(build_loader(batches_of(config, start=start), 1, pin_memory=False))
    assert len(restarted) == 8 - start
    for one, other in zip(restarted, expected[start:], strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("kind, streaming", [("saved", False), ("saved", True), ("tables", True)])
def test_processes_together_read_what_one_process_reads(kind, streaming, paths):
    config = configure(paths[kind], streaming=streaming)
    expected = list(batches_of(config))
    for rank in range(2):
        for one, other in zip(batches_of(config, 0, 4, rank, 2), expected[rank::2], strict=True):
            assert_same(one, other, IMAGES)


def test_samples_do_not_depend_on_the_batch_size(colored):
    small = batches_of(configure(colored))
    large = batches_of(configure(colored, "train.batch_size=8"))
    for number in range(4):
        parts = [small.batch(2 * number), small.batch(2 * number + 1)]
        whole = large.batch(number)
        for name in IMAGES:
            views = [getattr(part, name).unflatten(0, (-1, 4)) for part in parts]
            assert torch.equal(torch.cat(views, dim=1), getattr(whole, name).unflatten(0, (-1, 8)))


def test_samples_of_two_processes_follow_the_order_of_the_source(colored):
    config = configure(colored)
    source = open_training_source(config.data, config.train.seed)
    order = [int(source.read(number).name[-6:-4]) for number in range(32)]
    read = [
        recognise(batches_of(config, rank=rank, world_size=2).batch(number).global_crops[:4])
        for number in range(4)
        for rank in range(2)
    ]
    assert sum(read, []) == order
    assert sorted(order[:NUM_COLORED]) == list(range(NUM_COLORED))


class Backwards:
    """The first `count` samples of a source from the last to the first."""

    def __init__(self, source, count):
        self.source, self.count = source, count

    def read(self, number):
        return self.source.read(self.count - 1 - number)


def test_crops_and_colours_belong_to_the_sample_and_not_to_its_place_in_the_order(paths):
    config = configure(paths["saved"])
    source = open_training_source(config.data, config.train.seed)
    forwards, backwards = TrainingBatches(source, config, 0, 2), TrainingBatches(Backwards(source, 8), config, 0, 2)
    for name in IMAGES:
        views = torch.cat([getattr(batch, name).unflatten(0, (-1, 4)) for batch in forwards], dim=1)
        turned = torch.cat([getattr(batch, name).unflatten(0, (-1, 4)) for batch in backwards], dim=1)
        assert torch.equal(turned, views.flip(1))


def test_masks_differ_between_processes_and_steps(paths):
    config = configure(paths["saved"])
    batches = [batches_of(config, rank=rank, world_size=2).batch(number) for rank in range(2) for number in range(2)]
    for first in range(4):
        for second in range(first):
            assert differs(batches[first], batches[second], "masks")


def test_everything_depends_on_the_seed(paths):
    first = batches_of(configure(paths["saved"])).batch(0)
    second = batches_of(configure(paths["saved"], "train.seed=8")).batch(0)
    for name in [*IMAGES, "masks"]:
        assert differs(first, second, name)


def test_image_is_cut_and_coloured_anew_every_epoch(tmp_path, encode, photograph):
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(encode(photograph(40, 48)))  # the same image four times
    config = configure(tmp_path, "train.batch_size=12")
    batch = batches_of(config).batch(0)
    for name in IMAGES:
        views = getattr(batch, name)
        assert len(torch.unique(views.flatten(1), dim=0)) == len(views)


def test_crops_are_stored_view_by_view(colored):
    config = configure(colored, "colors.blur_probability=[0,1,0]", "colors.solarize_probability=1")
    batch = batches_of(config).batch(0)
    images = recognise(batch.global_crops[:4])
    assert len(set(images)) == 4
    assert recognise(batch.global_crops) == images * 2
    assert recognise(batch.local_crops) == images * 3
    sigma, solarize = batch.global_colors[:, 9], batch.global_colors[:, 10]
    assert (sigma[:4] == 0).all() and (sigma[4:] > 0).all()
    assert solarize.tolist() == [0] * 4 + [1] * 4
    assert (batch.local_colors[:, 9:] == 0).all()


def test_batch_holds_uint8_crops_and_one_colour_row_for_each(paths):
    batch = batches_of(configure(paths["saved"])).batch(0)
    assert batch.global_crops.shape == (8, 3, 32, 32) and batch.local_crops.shape == (12, 3, 16, 16)
    assert batch.global_crops.dtype == batch.local_crops.dtype == torch.uint8
    assert batch.global_colors.shape == (8, 11) and batch.local_colors.shape == (12, 11)
    assert batch.masks.shape == (8, 16) and batch.masks.dtype == torch.bool
    assert batch.num_images == 4 and batch.broken == []


def test_half_of_the_crops_are_masked_and_indices_say_where(paths):
    for batch in batches_of(configure(paths["saved"])):
        masked = batch.masks.sum(dim=1)
        assert (masked > 0).sum() == 4
        assert torch.equal(batch.masks.flatten().nonzero().flatten(), batch.mask_indices)
        assert batch.masks.flatten()[batch.mask_indices].all()
        torch.testing.assert_close(batch.mask_weights, 1 / masked[batch.mask_indices // 16])
        assert batch.mask_weights.sum().item() == pytest.approx(4)


def test_no_masks_where_the_patch_objective_is_off(paths):
    batch = batches_of(configure(paths["saved"], "ibot.loss_weight=0")).batch(0)
    assert not batch.masks.any() and len(batch.mask_indices) == len(batch.mask_weights) == 0


def test_no_local_crops_where_none_are_configured(paths):
    batch = batches_of(configure(paths["saved"], "crops.num_local=0")).batch(0)
    assert batch.local_crops.shape == (0, 3, 16, 16) and batch.local_colors.shape == (0, 11)
    assert batch.global_crops.shape == (8, 3, 32, 32)


@pytest.fixture
def damaged(tmp_path, encode):
    """The coloured images; numbers 3, 4, 10 and 17 are texts."""
    for index in range(NUM_COLORED):
        data = encode(np.full((20, 24, 3), LEVEL * index, dtype=np.uint8))
        (tmp_path / f"{index:02}.jpg").write_bytes(b"a text" if index in (3, 4, 10, 17) else data)
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_broken_images_are_replaced_by_the_next_readable_one_and_named(streaming, damaged):
    config = configure(damaged, "train.batch_size=7", streaming=streaming)
    source = open_training_source(config.data, config.train.seed)
    names = [source.read(number).name for number in range(2 * NUM_COLORED + 10)]
    texts = {str(damaged / f"{index:02}.jpg") for index in (3, 4, 10, 17)}
    for number, batch in enumerate(batches_of(config, 0, 6)):  # two epochs
        expected, broken = [], []
        for slot in range(7 * number, 7 * number + 7):
            while names[slot] in texts:
                broken.append(names[slot])
                slot += 1
            expected.append(int(names[slot][-6:-4]))
        assert recognise(batch.global_crops) == expected * 2
        assert recognise(batch.local_crops) == expected * 3
        assert [item.name for item in batch.broken] == broken
        assert all(item.kind == "image" and item.reason for item in batch.broken)


def test_every_broken_image_is_met_in_every_epoch(damaged):
    batches = list(batches_of(configure(damaged, "train.batch_size=7"), 0, 3))
    met = {item.name[-6:-4] for batch in batches for item in batch.broken}
    assert met == {"03", "04", "10", "17"}


def test_replacement_has_crops_and_colours_of_its_own(tmp_path, encode, photograph):
    (tmp_path / "0.png").write_bytes(encode(photograph(40, 48)))
    for index in (1, 2):
        (tmp_path / f"{index}.png").write_bytes(b"a text")
    batch = batches_of(configure(tmp_path, "train.batch_size=6")).batch(0)
    assert len(batch.broken) >= 4
    for name in IMAGES:
        views = getattr(batch, name)
        assert len(torch.unique(views.flatten(1), dim=0)) == len(views)


def test_broken_images_do_not_change_with_the_number_of_workers(damaged):
    config = configure(damaged)
    expected = list(batches_of(config))
    for one, other in zip(build_loader(batches_of(config), 2, pin_memory=False), expected, strict=True):
        assert_same(one, other)
    assert sum(len(batch.broken) for batch in expected) > 4


@pytest.mark.parametrize("streaming, num_workers", [(False, 0), (True, 0), (False, 1)])
def test_source_of_broken_images_alone_is_refused_with_the_first_batch(streaming, num_workers, tmp_path):
    for index in range(5):
        (tmp_path / f"{index}.jpg").write_bytes(b"a text")
    loader = build_loader(batches_of(configure(tmp_path, streaming=streaming)), num_workers, pin_memory=False)
    with pytest.raises(ValueError) as caught:
        next(iter(loader))
    message = str(caught.value)
    assert "images in a row cannot be decoded" in message and str(tmp_path) in message
    assert "data.train.path" in message and "data.train.image_column" in message
    assert "Traceback" not in message and "\n" not in message


@pytest.fixture
def two_threads():
    """Two threads have computed in this process; a fork that waits for the second one, which it lacks, hangs."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(2**22).exp()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_batches_do_not_depend_on_how_workers_are_started(streaming, start_method, paths, two_threads):
    config = configure(paths["table.parquet"], streaming=streaming)
    expected = list(batches_of(config, stop=3))
    loader = build_loader(batches_of(config, stop=3), 1, pin_memory=False, start_method=start_method)
    for one, other in zip(loader, expected, strict=True):
        assert_same(one, other)


def test_truncated_images_of_any_kind_are_replaced(tmp_path, encode, photograph):
    for index, kind in enumerate(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]):
        data = encode(photograph(40, 48, index), kind)
        (tmp_path / f"{index}.{kind.lower()}").write_bytes(data[: len(data) // 2])
    (tmp_path / "whole.png").write_bytes(encode(np.full((20, 24, 3), 36, dtype=np.uint8)))
    batch = batches_of(configure(tmp_path, "train.batch_size=7")).batch(0)
    assert recognise(batch.global_crops) == [3] * 14
    assert {Path(item.name).stem for item in batch.broken} == set("012345")
