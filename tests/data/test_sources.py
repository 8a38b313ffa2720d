import os
import pickle
import shutil
from collections import Counter
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov2_hf.config import DataConfig, TrainingSourceConfig
from dinov2_hf.data.sources.lanes import RUN, advise, locate
from dinov2_hf.data.sources.mixture import MixedSource
from dinov2_hf.data.sources.training import open_training_source, reading_advice

KINDS = ["folder", "flat", "tables", "tars", "table.parquet", "saved", "splits"]
BUFFER = 8
PERIOD = 1024
both = pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])


def configure(path, streaming=False, shuffle=True, shuffle_buffer=BUFFER, lanes=0, mix=None, **options):
    return DataConfig(
        train=TrainingSourceConfig(path=str(path), streaming=streaming, **options),
        mix={name: TrainingSourceConfig(**source) for name, source in (mix or {}).items()},
        shuffle=shuffle,
        shuffle_buffer=shuffle_buffer,
        lanes=lanes,
    )


def open_source(path, streaming=False, seed=0, **options):
    return open_training_source(configure(path, streaming, **options), seed)


def read_all(source, start, stop):
    return [source.read(number) for number in range(start, stop)]


def data_of(samples):
    return [sample.data for sample in samples]


def numbers_of(samples, files):
    """Which of `files` the samples are, sorted; -1 for none of them."""
    return sorted(files.index(sample.data) if sample.data in files else -1 for sample in samples)


def refusal(config):
    with pytest.raises(ValueError) as caught:
        open_training_source(config, 0)
    return str(caught.value)


@both
@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_holds_every_image_once(kind, streaming, paths, files):
    source = open_source(paths[kind], streaming)
    samples = read_all(source, 0, 6 * len(files))  # the shorter of two lanes is ahead of the other
    for epoch in range(3):
        chosen = [sample for sample in samples if sample.epoch == epoch]
        assert numbers_of(chosen, files) == list(range(len(files)))
        assert len({sample.index for sample in chosen}) == len(files)
        if source.lanes == 1:
            assert chosen == samples[epoch * len(files) : (epoch + 1) * len(files)]
            assert sorted(sample.index for sample in chosen) == list(range(len(files)))
    assert source.lanes == (2 if streaming and kind in ("tables", "tars") else 1)


@both
def test_order_differs_between_epochs(streaming, paths, files):
    samples = read_all(open_source(paths["saved"], streaming), 0, 3 * len(files))
    first, second, third = (
        data_of(samples)[start : start + len(files)] for start in range(0, len(samples), len(files))
    )
    assert first != second and second != third and first != third
    assert first != files


@pytest.mark.parametrize("kind", ["saved", "tables"])
@both
def test_order_depends_on_the_seed_alone(streaming, kind, paths, files):
    count = len(files) + 10
    samples = read_all(open_source(paths[kind], streaming, seed=3), 0, count)
    assert read_all(open_source(paths[kind], streaming, seed=3), 0, count) == samples
    assert data_of(read_all(open_source(paths[kind], streaming, seed=4), 0, count)) != data_of(samples)


def test_order_of_a_map_source_does_not_depend_on_how_it_is_stored(paths, files):
    expected = data_of(read_all(open_source(paths["saved"]), 0, len(files)))
    for kind in ("tables", "table.parquet", "splits", "flat", "tars"):
        assert data_of(read_all(open_source(paths[kind]), 0, len(files))) == expected


@pytest.mark.parametrize("kind", ["flat", "tables", "tars", "table.parquet", "saved"])
@both
def test_order_is_that_of_the_source_where_nothing_is_shuffled(kind, streaming, paths, files):
    source = open_source(paths[kind], streaming, shuffle=False)
    samples = read_all(source, 0, 2 * len(files))
    assert data_of(samples) == 2 * files
    assert [(sample.epoch, sample.index) for sample in samples] == [
        divmod(number, len(files)) for number in range(2 * len(files))
    ]


def test_lanes_of_a_stream_that_is_not_shuffled_are_the_files(paths, files):
    source = open_source(paths["tables"], streaming=True, shuffle=False, lanes=2)
    assert data_of(read_all(source, 0, 3 * RUN)) == files[:8] + files[12:20] + files[8:12] + files[:4]


@pytest.mark.parametrize("kind, lanes", [("saved", 1), ("tables", 2), ("tars", 2)])
@both
def test_random_access_equals_reading_in_order(streaming, kind, lanes, paths, files):
    in_order = read_all(open_source(paths[kind], streaming), 0, 3 * len(files))
    source = open_source(paths[kind], streaming)
    assert source.lanes == (lanes if streaming else 1)
    for number in np.random.default_rng(0).permutation(len(in_order))[:30]:
        assert source.read(int(number)) == in_order[number]


@pytest.mark.parametrize("kind", ["saved", "tables"])
@both
def test_source_that_was_pickled_goes_on_with_the_same_samples(streaming, kind, paths):
    expected = read_all(open_source(paths[kind], streaming), 0, 40)
    source = open_source(paths[kind], streaming)
    copy = pickle.loads(pickle.dumps(source))
    assert read_all(copy, 0, 40) == expected
    assert read_all(pickle.loads(pickle.dumps(copy)), 20, 40) == expected[20:]  # one that has files open


def _send(queue, source, numbers):
    try:
        queue.put((os.getpid(), [source.read(number).data for number in numbers]))
    except Exception as error:
        queue.put((os.getpid(), [repr(error)]))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_forks_of_a_stream_that_is_being_read_do_not_disturb_each_other(kind, tmp_path, write_tar):
    rng = np.random.default_rng(0)
    values = [rng.bytes(300_000) for _ in range(40)]  # too much for the buffer of an open file
    if kind == "tar":
        write_tar(tmp_path / "data.tar", {f"{index:02}": {"jpg": value} for index, value in enumerate(values)})
    else:
        pq.write_table(pa.table({"image": values}), tmp_path / "data.parquet", row_group_size=2)
    source = open_source(tmp_path / f"data.{kind}", streaming=True, shuffle=False)
    assert data_of(read_all(source, 0, 5)) == values[:5]  # the file is open
    context = get_context("fork")
    queue = context.SimpleQueue()
    forks = [context.Process(target=_send, args=(queue, source, range(5, 40))) for _ in range(3)]
    for fork in forks:
        fork.start()
    own = data_of(read_all(source, 5, 40))
    received = [queue.get() for _ in forks]
    for fork in forks:
        fork.join()
    assert len({pid for pid, _ in received} | {os.getpid()}) == 4
    for read in [own, *(read for _, read in received)]:
        assert [values.index(value) if value in values else -1 for value in read] == list(range(5, 40))


def test_map_source_is_shuffled_over_its_whole_length(paths, files):
    position = np.zeros((100, len(files)))
    for seed in range(100):
        samples = read_all(open_source(paths["saved"], seed=seed), 0, len(files))
        position[seed, [sample.index for sample in samples]] = np.arange(len(files))
    # the mean of 100 uniform positions has a deviation of 6.6 / sqrt(100) = 0.66; five of it
    assert np.abs(position.mean(axis=0) - (len(files) - 1) / 2).max() < 3.3


@pytest.mark.parametrize("kind", ["saved", "tables"])
@both
def test_replacements_are_the_samples_that_follow_in_the_lane(streaming, kind, paths):
    source, other = open_source(paths[kind], streaming), open_source(paths[kind], streaming)
    in_order = [[], []]
    for number in range(300):
        in_order[locate(number, source.lanes)[0]].append(source.read(number))
    for number in (0, 7, 8, 15, 30):
        lane, position = locate(number, source.lanes)
        for attempt in (1, 2, 5, 40):
            assert other.replacement(number, attempt) == in_order[lane][position + attempt]
        assert other.read(number) == in_order[lane][position]


def test_more_lanes_than_files_are_refused_with_what_is_possible(paths):
    message = refusal(configure(paths["tables"], streaming=True, lanes=3))
    assert message == (
        "data.lanes=3, but data.train has 2 shards (files) to read side by side; use 2 or fewer, or 0 for automatic"
    )
    mix = {"web": {"path": str(paths["table.parquet"]), "streaming": True}}
    assert "data.mix.web has 1 shards" in refusal(configure(paths["tables"], streaming=True, lanes=2, mix=mix))


def test_advice_is_for_streams_that_hold_images_alone(paths):
    for kind, streaming in [("tables", False), ("folder", True), ("flat", True)]:
        assert reading_advice(open_source(paths[kind], streaming), 8, num_workers=3, num_processes=2) is None
    for kind in ("tables", "tars"):
        source = open_source(paths[kind], streaming=True)
        assert reading_advice(source, 8, num_workers=2, num_processes=1) is None
        assert reading_advice(source, 8, num_workers=3, num_processes=2) == advise(2, 2, 8, 3, 2)
    mix = {"web": {"path": str(paths["tables"]), "streaming": True}}
    assert reading_advice(open_source(paths["folder"], mix=mix), 8, num_workers=3, num_processes=2) is not None


@pytest.fixture
def halves(tmp_path, dataset, files):
    """Two parts of the images: 8 in one table, 12 in two."""
    (tmp_path / "more").mkdir()
    dataset.select(range(8)).to_parquet(tmp_path / "few.parquet")
    dataset.select(range(8, 14)).to_parquet(tmp_path / "more" / "0.parquet")
    dataset.select(range(14, 20)).to_parquet(tmp_path / "more" / "1.parquet")
    return tmp_path / "few.parquet", tmp_path / "more"


def mixture(halves, few=1.0, more=3.0, streaming=(False, True), seed=0, **options):
    mix = {"more": {"path": str(halves[1]), "weight": more, "streaming": streaming[1]}}
    return open_source(halves[0], streaming[0], seed, mix=mix, weight=few, **options)


STREAMING = pytest.mark.parametrize("streaming", [(False, False), (False, True), (True, True)], ids=str)


@STREAMING
def test_mixture_has_its_shares_and_every_image_of_a_source_as_often_as_the_others(streaming, halves, files):
    source = mixture(halves, streaming=streaming)
    assert source.lanes == (2 if streaming == (False, True) else 1)  # the stream with the fewest files decides
    samples = read_all(source, 0, 3 * PERIOD * source.lanes)
    shares = Counter(sample.source for sample in samples)
    assert shares == {0: len(samples) // 4, 1: len(samples) * 3 // 4}
    assert Counter(files.index(sample.data) for sample in samples) == (
        Counter({number: shares[0] // 8 for number in range(8)})
        + Counter({number: shares[1] // 12 for number in range(8, 20)})
    )
    seen = Counter((sample.source, sample.epoch, sample.index) for sample in samples)
    assert set(seen.values()) == {1}
    for number, size in enumerate((8, 12)):
        epochs = Counter(sample.epoch for sample in samples if sample.source == number)
        assert set(epochs.values()) == {size}


@STREAMING
def test_samples_of_a_mixture_are_those_of_its_sources_in_their_order(streaming, halves):
    source = mixture(halves, streaming=streaming, shuffle=False)
    samples = read_all(source, 0, 400)
    for number, path in enumerate(halves):
        own = [sample for sample in samples if sample.source == number]
        alone = read_all(open_source(path, streaming[number], shuffle=False), 0, len(own))
        assert [(one.data, one.epoch, one.index) for one in own] == [(one.data, one.epoch, one.index) for one in alone]


@STREAMING
def test_any_sample_of_a_mixture_is_found_at_once(streaming, halves):
    in_order = read_all(mixture(halves, streaming=streaming), 0, 3 * PERIOD)
    source = mixture(halves, streaming=streaming)
    for number in [3000, *np.random.default_rng(0).permutation(len(in_order))[:30]]:
        assert source.read(int(number)) == in_order[number]


def test_samples_of_a_mixture_say_where_they_are_from(halves, files):
    for sample in read_all(mixture(halves), 0, 50):
        number = files.index(sample.data)
        if number < 8:
            assert sample.name == f"data.train: row {number}" and sample.source == 0
        else:
            file, row = divmod(number - 8, 6)
            assert sample.name == f"data.mix.more: row {row} of {halves[1]}/{file}.parquet" and sample.source == 1


def test_replacements_in_a_mixture_are_of_the_same_source(halves):
    source = mixture(halves)
    for number in range(40):
        sample = source.read(number)
        others = [source.replacement(number, attempt) for attempt in range(1, 9)]
        assert {other.source for other in others} == {sample.source}
        assert len({(other.epoch, other.index) for other in [sample, *others]}) == 9


def test_shares_of_a_mixture_are_even_in_every_stretch(halves):
    chosen = np.array([sample.source for sample in read_all(mixture(halves, few=1, more=1), 0, PERIOD)])
    # of 128 draws without replacement from 1,024 the deviation is 5.3; five of it
    assert all(abs(chosen[start : start + 128].sum() - 64) < 26.5 for start in range(0, PERIOD, 128))
    assert 400 < (chosen[1:] != chosen[:-1]).sum() < 624


def test_mixture_does_not_depend_on_the_order_in_which_its_sources_are_named(halves, paths):
    sources = {"b": {"path": str(halves[1])}, "a": {"path": str(paths["flat"]), "weight": 2.0}}
    first = open_source(halves[0], mix=sources)
    second = open_source(halves[0], mix=dict(reversed(sources.items())))
    assert read_all(first, 0, 100) == read_all(second, 0, 100)


def test_sources_of_a_mixture_have_orders_of_their_own(paths, files):
    source = open_source(paths["table.parquet"], mix={"twin": {"path": str(paths["table.parquet"])}})
    samples = read_all(source, 0, 200)
    twins = [[sample.index for sample in samples if sample.source == number][: len(files)] for number in range(2)]
    assert sorted(twins[0]) == sorted(twins[1]) and twins[0] != twins[1]


def test_counts_of_a_mixture_are_the_weights_by_largest_remainder(halves):
    sources = {name: mixture(halves, streaming=(False, False)) for name in "abc"}
    mixed = MixedSource(sources, [1, 1, 1], seed=0)
    counts = Counter(int(choice) for choice in mixed._pattern(0)[0])
    assert sorted(counts.values()) == [341, 341, 342]


def test_weight_that_is_too_small_to_be_read_is_refused_with_the_smallest(halves):
    config = configure(halves[0], mix={"more": {"path": str(halves[1]), "weight": 0.0001}})
    message = refusal(config)
    assert "data.mix.more.weight=0.0001" in message and "0.000976" in message
    config.mix["more"].weight = 0.001
    assert {sample.source for sample in read_all(open_training_source(config, 0), 0, PERIOD)} == {0, 1}


def listing_of(path, streaming=False, **options):
    return open_source(path, streaming, **options).listing()["data.train"]


@both
@pytest.mark.parametrize("kind", KINDS)
def test_listing_is_the_same_where_the_data_was_moved(kind, streaming, paths, tmp_path, files):
    first = listing_of(paths[kind], streaming)
    assert first["count"] == (2 if streaming and kind in ("tables", "tars") else 1 if streaming and "." in kind else 23)
    assert first["unit"] == ("files" if streaming and kind in ("tables", "tars", "table.parquet") else "images")
    copy = shutil.copytree if paths[kind].is_dir() else shutil.copy
    copy(paths[kind], tmp_path / paths[kind].name)
    assert listing_of(tmp_path / paths[kind].name, streaming) == first


@both
@pytest.mark.parametrize(
    "kind, file, more",
    [
        ("flat", "05.png", "99.png"),
        ("tables", "train-1.parquet", "train-2.parquet"),
        ("tars", "train-1.tar", "train-2.tar"),
    ],
)
def test_listing_differs_where_a_file_was_added_removed_or_renamed(kind, file, more, streaming, paths, tmp_path):
    folder = shutil.copytree(paths[kind], tmp_path / "moved")
    found = [listing_of(folder, streaming)]
    shutil.copy(folder / file, folder / more)
    found.append(listing_of(folder, streaming))
    (folder / file).unlink()
    found.append(listing_of(folder, streaming))
    assert len({listing["digest"] for listing in found}) == 3
    assert found[1]["count"] > found[0]["count"] >= found[2]["count"]


def test_listing_has_every_source_of_a_mixture_and_tables_of_the_same_name_differ_by_size(halves, paths):
    source = mixture(halves)
    assert {name: value["count"] for name, value in source.listing().items()} == {"data.train": 8, "data.mix.more": 2}
    before = listing_of(halves[0])["digest"]
    shutil.copy(paths["table.parquet"], halves[0])
    assert listing_of(halves[0])["digest"] != before
