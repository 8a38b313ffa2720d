import re
from itertools import permutations

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, IterableDataset, concatenate_datasets

from dinov2_hf.config import SourceConfig
from dinov2_hf.data.sources.columns import ImageColumn, open_images
from dinov2_hf.data.sources.lanes import RUN, Lane, advise, automatic_lanes, locate, readers_of_a_lane
from dinov2_hf.data.sources.shards import Shards
from dinov2_hf.data.sources.training import StreamSource

BUFFER = 8


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 64])
def test_every_place_of_every_lane_has_one_number(lanes):
    numbers = 5 * RUN * lanes
    places = [locate(number, lanes) for number in range(numbers)]
    assert sorted(places) == [(lane, position) for lane in range(lanes) for position in range(5 * RUN)]
    for lane in range(lanes):  # in order
        positions = [position for at, position in places if at == lane]
        assert positions == sorted(positions)
    for start in range(0, numbers, RUN):
        assert len({lane for lane, _ in places[start : start + RUN]}) == 1


def test_automatic_lanes_are_a_power_of_two_with_even_shares():
    for shards in range(1, 3000):
        lanes = automatic_lanes(shards)
        assert lanes in (1, 2, 4, 8, 16, 32, 64) and lanes <= shards
        assert shards % lanes == 0 or shards // lanes >= 10
        bigger = 2 * lanes
        assert bigger > min(shards, 64) or (shards % bigger and shards // bigger < 10)  # the most that are even


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 8, 12, 16])
def test_readers_of_a_lane_are_counted_as_reading_counts_them(lanes, batch_size):
    for readers in (1, 2, 3, 8):
        seen = [set() for _ in range(lanes)]
        for batch in range(2 * lanes * RUN * readers):
            for number in range(batch * batch_size, (batch + 1) * batch_size):
                seen[locate(number, lanes)[0]].add(batch % readers)
        assert readers_of_a_lane(lanes, batch_size, readers) == max(map(len, seen))


def test_advice_is_given_where_files_are_read_several_times_and_helps():
    assert advise(64, 200, batch_size=64, num_workers=8, num_processes=1) is None
    assert advise(1, 1, batch_size=64, num_workers=0, num_processes=1) is None
    text = advise(64, 5000, batch_size=64, num_workers=6, num_processes=8)
    assert "64 in all" in text and "48 data workers" in text
    workers, lanes = (int(re.search(rf"data\.{name}=(\d+)", text)[1]) for name in ("num_workers", "lanes"))
    assert readers_of_a_lane(64, 64, 6 * 8) > 1
    assert readers_of_a_lane(64, 64, workers * 8) == 1
    assert advise(lanes, 5000, batch_size=64, num_workers=6, num_processes=8) is None
    assert "into more files" in advise(8, 8, batch_size=64, num_workers=4, num_processes=8)


@pytest.fixture
def tables(tmp_path, dataset, files):
    """Three parquet files of 9, 8 and 6 images in row groups of 3; their bytes in order."""
    for file, rows in enumerate([range(9), range(9, 17), range(17, 23)]):
        dataset.select(rows).to_parquet(tmp_path / f"{file}.parquet", batch_size=3)
    return str(tmp_path / "*.parquet")


def open_lane(path, number=0, lane=0, lanes=1, block_size=BUFFER, shuffle=True, key=(0, 0, 0)):
    images = open_images(SourceConfig(path=str(path)), streaming=True)
    opened = Lane(Shards(images), lane, lanes, key, block_size, shuffle)
    opened.read(number)
    return opened


def rows_of(entries):
    return [(entry.shard, entry.row) for entry in entries]


SHARDS = [9, 8, 6]
ALL_ROWS = [(shard, row) for shard, length in enumerate(SHARDS) for row in range(length)]


@pytest.mark.parametrize("block_size", [1, 4, 8, 1000])
def test_every_epoch_of_a_lane_has_every_row_once_in_a_new_order(block_size, tables):
    lane = open_lane(tables, block_size=block_size)
    entries = [lane.read(number) for number in range(4 * 23)]
    orders = [rows_of(entries[start : start + 23]) for start in range(0, 4 * 23, 23)]
    for epoch, order in enumerate(orders):
        assert sorted(order) == ALL_ROWS
        assert [(entry.epoch, entry.position) for entry in entries[23 * epoch : 23 * epoch + 23]] == [
            (epoch, position) for position in range(23)
        ]
    assert len(set(map(tuple, orders))) == 4 or block_size == 1  # blocks of one leave the order of the files alone
    assert len(set(map(tuple, orders))) > 1


def test_lanes_together_have_every_row_and_none_twice(tables):
    rows = []
    for lane, length in enumerate([9 + 6, 8]):
        opened = open_lane(tables, lane=lane, lanes=2)
        rows += rows_of([opened.read(number) for number in range(length)])
    assert sorted(rows) == ALL_ROWS


def test_order_of_a_lane_differs_by_seed_and_source(tables):
    orders = []
    for key in [(0, 3, 0), (1, 3, 0), (0, 3, 1), (0, 3, 0)]:
        lane = open_lane(tables, key=key)
        orders.append(rows_of([lane.read(number) for number in range(23)]))
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_files_come_in_a_new_order_and_rows_are_shuffled_within_blocks(tables):
    lane, found = open_lane(tables, block_size=4), []
    for epoch in range(20):
        order = rows_of([lane.read(23 * epoch + number) for number in range(23)])
        for files in permutations(range(3)):
            rows = [(shard, row) for shard in files for row in range(SHARDS[shard])]
            if all(sorted(order[start : start + 4]) == sorted(rows[start : start + 4]) for start in range(0, 23, 4)):
                found.append(files)
                assert order != rows
    assert len(found) == 20  # every epoch is rows in the order of some files, but for the order within blocks
    assert len(set(found)) == 6  # and every order of the files has its turn


def test_order_of_the_source_where_nothing_is_shuffled(tables):
    lane = open_lane(tables, shuffle=False, block_size=1)
    assert rows_of([lane.read(number) for number in range(46)]) == 2 * ALL_ROWS


@pytest.mark.parametrize("block_size", [1, 5, 1000])
@pytest.mark.parametrize(
    "kind, lanes",
    [("table.parquet", 1), ("folder", 1), ("tables", 1), ("tables", 2), ("saved", 1), ("tars", 2)],
)
def test_lane_that_is_opened_at_any_number_goes_on_as_the_one_that_was_read(kind, lanes, block_size, paths):
    for lane in range(lanes):
        opened = open_lane(paths[kind], lane=lane, lanes=lanes, block_size=block_size)
        whole = [opened.read(number) for number in range(60)]
        for number in (0, 1, 7, 8, 12, 22, 23, 30, 46, 59):
            again = open_lane(paths[kind], number, lane, lanes, block_size)
            assert [again.read(later) for later in range(number, 60)] == whole[number:]


@pytest.mark.parametrize("lanes", [1, 3])
def test_lane_of_a_saved_set_that_is_opened_at_any_number_goes_on_as_the_one_that_was_read(lanes, tmp_path, dataset):
    concatenate_datasets([dataset] * 9).save_to_disk(tmp_path)  # 207 rows
    for lane in range(lanes):
        opened = open_lane(tmp_path, lane=lane, lanes=lanes)
        assert len(opened._shards) == 3
        whole = [opened.read(number) for number in range(2 * 207)]
        assert len(set(rows_of(entry for entry in whole if entry.epoch == 0))) == 207 // lanes
        for number in (1, 68, 69, 70, 137, 138, 206, 207, 276, 413):
            again = open_lane(tmp_path, number, lane, lanes)
            assert again.read(number) == whole[number]
            assert again.read(number, 2) == opened.read(number, 2)


def test_jump_in_a_lane_is_made_by_the_shorter_way(files):
    rows = []
    source = StreamSource(Shards(counting_stream(files, rows)), seed=0, shuffle_buffer=BUFFER)
    whole = [source.read(number) for number in range(700)]
    read = len(rows)
    assert source.read(50 * 300 + 7).epoch == 50
    assert len(rows) - read < 300
    assert source.read(50 * 300 + 290).epoch == 50
    assert len(rows) - read < 600
    assert source.read(699) == whole[699]


def damage(path, group):
    """Overwrites the data of a row group; what describes it is left."""
    footer = pq.read_metadata(path).row_group(group)
    with open(path, "r+b") as file:
        for column in range(footer.num_columns):
            chunk = footer.column(column)
            file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
            file.write(b"\xff" * chunk.total_compressed_size)


@pytest.mark.parametrize("number", [5, 8, 14, 20, 23 + 9, 23 + 16, 5 * 23 + 20])
def test_lane_that_is_opened_at_a_number_reads_no_row_group_of_an_earlier_block(number, tables, tmp_path):
    epoch, position = divmod(number, 23)
    lane = open_lane(tables, block_size=4)
    expected = [lane.read(later) for later in range(number, 23 * (epoch + 1))]
    begin = number - position + position // 4 * 4
    needed = {(shard, row // 3) for shard, row in rows_of([lane.read(n) for n in range(begin, 23 * (epoch + 1))])}
    damaged = {(shard, row // 3) for shard, row in ALL_ROWS} - needed
    assert damaged
    for shard, group in damaged:
        damage(tmp_path / f"{shard}.parquet", group)
    lane = open_lane(tables, number, block_size=4)
    assert [lane.read(later) for later in range(number, 23 * (epoch + 1))] == expected
    lane = open_lane(tables, block_size=4)  # the damage is one
    assert {(entry.shard, entry.row // 3) for entry in map(lane.read, range(23))} == needed
    assert {item.name for item in lane._shards.broken} == {str(tmp_path / f"{shard}.parquet") for shard, _ in damaged}


def counting_stream(files, rows, count=300):
    """A stream of images of which the rows that are read are noted in `rows`."""

    def generate():
        for index in range(count):
            rows.append(index)
            yield {"image": {"bytes": files[index % len(files)], "path": None}}

    stream = IterableDataset.from_generator(generate, features=Features({"image": Image()}))
    return ImageColumn(stream.cast_column("image", Image(decode=False)), "image", None)


def test_replacements_do_not_read_a_stream_from_the_start(files):
    rows = []
    source = StreamSource(Shards(counting_stream(files, rows)), seed=0, shuffle_buffer=BUFFER)
    in_order = [source.read(number) for number in range(150)]
    in_order += [source.replacement(149, attempt) for attempt in range(1, 101)]
    read = len(rows)
    assert [source.read(number) for number in range(150, 200)] == in_order[150:200]
    # every image is unreadable but for one in twenty
    for number in range(200, 220):
        assert [source.replacement(number, attempt) for attempt in range(1, 20)] == [
            source.replacement(number, attempt) for attempt in range(1, 20)
        ]
        assert source.read(number) == in_order[number]
    assert len(rows) == read < 300


def test_stream_is_read_no_further_than_the_block_that_is_needed(files):
    rows = []
    source = StreamSource(Shards(counting_stream(files, rows)), seed=0, shuffle_buffer=32)
    for number in range(100):
        source.read(number)
        assert len(rows) <= number // 32 * 32 + 32 + 16  # rows come sixteen at a time


def test_reading_back_gives_the_same_samples(files):
    source = StreamSource(Shards(counting_stream(files, [])), seed=0, shuffle_buffer=BUFFER)
    in_order = [source.read(number) for number in range(200)]
    for number in np.random.default_rng(0).permutation(200)[:10]:
        assert source.read(int(number)) == in_order[number]


def test_stream_without_samples_is_refused(tmp_path, dataset):
    for name in "ab":
        dataset.select([]).to_parquet(tmp_path / f"{name}.parquet")
    for lanes in (1, 2):
        with pytest.raises(ValueError, match="has no samples; check its path and split"):
            open_lane(tmp_path / "*.parquet", lanes=lanes)


def test_lane_without_samples_reads_those_of_all_lanes(tmp_path, dataset):
    for name, rows in [("a", []), ("b", range(9)), ("c", []), ("d", range(9, 16))]:
        dataset.select(rows).to_parquet(tmp_path / f"{name}.parquet")
    for lane in (0, 1):
        entries = list(map(open_lane(tmp_path / "*.parquet", lane=lane, lanes=2).read, range(32)))
        for epoch in (0, 1):
            mine = [entry for entry in entries if entry.epoch == epoch]
            assert sorted(rows_of(mine)) == [(1, row) for row in range(9)] + [(3, row) for row in range(7)]
            assert {entry.repeated for entry in mine} == {lane == 0}
        for number in (5, 16, 25):
            again = open_lane(tmp_path / "*.parquet", number, lane, 2)
            assert [again.read(later) for later in range(number, 32)] == entries[number:]
