"""Broken shards of a stream: what can be read of them is, in an order that nothing changes; they are named once."""

import json
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dinov2_hf.config import DataConfig, SourceConfig, TrainingSourceConfig
from dinov2_hf.data.sources.columns import open_images
from dinov2_hf.data.sources.shards import LOST, Shards
from dinov2_hf.data.sources.training import open_training_source

PER_SHARD, NUM_SHARDS = 5, 4
ALL = range(PER_SHARD * NUM_SHARDS)


def members_of(path):
    with tarfile.open(path) as archive:
        return archive.getmembers()


def overwrite(path, start, data):
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(data)


def cut(path, length):
    data = path.read_bytes()
    path.write_bytes(data[: length if length >= 0 else len(data) + length])


def damage_group(path, group, first_byte=0):
    chunk = pq.read_metadata(path).row_group(group).column(0)
    start = (chunk.dictionary_page_offset or chunk.data_page_offset) + first_byte
    overwrite(path, start, b"\xff" * (chunk.total_compressed_size - first_byte))


def write_tar(path, values, write_tar):
    write_tar(path, {f"{number:03}": {"png": data} for number, data in enumerate(values)})


def write_parquet(path, values, *_):
    pq.write_table(pa.table({"image": values}), path, row_group_size=2, use_dictionary=False)


def write_arrow(path, values, *_):
    table = pa.table({"image": values})
    with pa.ipc.new_stream(path, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=2):
            writer.write_batch(batch)


def write_json(path, values, *_):
    rows = []
    for number, data in enumerate(values):
        file = path.with_name(f"{path.name}-{number}.png")
        file.write_bytes(data)
        rows.append(json.dumps({"file": file.name}))
    path.write_text("\n".join(rows) + "\n")


def write_csv(path, values, *_):
    write_json(path, values)
    path.write_text("file\n" + "".join(json.loads(line)["file"] + "\n" for line in path.read_text().splitlines()))


WRITERS = {"tar": write_tar, "parquet": write_parquet, "arrow": write_arrow, "jsonl": write_json, "csv": write_csv}
# what is done to a shard of five images, and which of them can still be read
DAMAGES = {
    "tar cut within an image": ("tar", lambda path: cut(path, members_of(path)[3].offset_data + 100), [0, 1, 2]),
    "tar cut within a header": ("tar", lambda path: cut(path, members_of(path)[3].offset + 100), [0, 1, 2]),
    "tar of no bytes": ("tar", lambda path: cut(path, 0), []),
    "tar that is none": ("tar", lambda path: path.write_bytes(b"no archive" * 200), []),
    "tar with a damaged header": ("tar", lambda path: overwrite(path, members_of(path)[2].offset, b"?" * 99), [0, 1]),
    "tar with a zeroed header": (
        "tar",
        lambda path: overwrite(path, members_of(path)[2].offset, bytes(512)),
        [0, 1],
    ),
    "tar that is gone": ("tar", lambda path: path.unlink(), []),
    "parquet with a damaged row group": ("parquet", lambda path: damage_group(path, 1), [0, 1, 4]),
    "parquet with damaged data pages": ("parquet", lambda path: damage_group(path, 0, 40), [2, 3, 4]),
    "parquet without a footer": ("parquet", lambda path: cut(path, -20), []),
    "parquet of no bytes": ("parquet", lambda path: cut(path, 0), []),
    "arrow cut off": ("arrow", lambda path: cut(path, -700), [0, 1, 2, 3]),
    "arrow of no bytes": ("arrow", lambda path: cut(path, 0), []),
    "CSV with a row too long": ("csv", lambda path: path.write_text("file\na.png\nb.png,c.png\n"), []),
    "JSON cut off": ("jsonl", lambda path: cut(path, -6), []),
}


@pytest.fixture(params=DAMAGES)
def damage(request):
    return DAMAGES[request.param]


@pytest.fixture
def broken(damage, tmp_path, files, write_tar):
    """Opens the stream of four shards of which the one at `place` is broken; with the images that can be read."""
    kind, harm, left = damage

    def open_broken(place=1, lanes=1, opened=True, **options):
        paths = [tmp_path / f"{number}.{kind}" for number in range(NUM_SHARDS)]
        for number, path in enumerate(paths):
            WRITERS[kind](path, files[number * PER_SHARD : (number + 1) * PER_SHARD], write_tar)
        train = TrainingSourceConfig(path=str(tmp_path / f"*.{kind}"), streaming=True)

        def open_source():
            return open_training_source(DataConfig(train=train, shuffle_buffer=8, lanes=lanes, **options), 0)

        gone = harm is DAMAGES["tar that is gone"][1]
        source = open_source() if gone else None
        harm(paths[place])
        readable = [number for number in ALL if number // PER_SHARD != place]
        readable += [place * PER_SHARD + number for number in left]
        return (lambda: source) if gone else open_source, sorted(readable), str(paths[place])

    return open_broken


def test_broken_shard_is_read_up_to_where_it_breaks_in_every_pass(broken, files):
    for place in (0, 3):
        open_source, readable, path = broken(place)
        source = open_source()
        samples = [source.read(number) for number in range(3 * len(ALL))]
        for epoch in (0, 1):
            mine = [sample for sample in samples if sample.epoch == epoch]
            assert sorted(files.index(sample.data) for sample in mine if not sample.repeated) == readable
            assert {files.index(sample.data) for sample in mine} == set(readable)
        found = [item for sample in samples for item in sample.broken]
        assert [(item.kind, item.name) for item in found] == [("shard", path)]
        assert found[0].reason and "\n" not in found[0].reason


@pytest.mark.parametrize("lanes", [1, 2])
def test_stream_with_a_broken_shard_goes_on_from_any_number_as_if_it_had_been_read(broken, lanes):
    open_source, _, _ = broken(lanes=lanes)
    source = open_source()
    samples = [source.read(number) for number in range(90)]
    for start in (1, 7, 13, 22, 38, 61, 85):
        again = open_source()
        assert [again.read(number) for number in range(start, start + 5)] == samples[start : start + 5]
    backwards = open_source()
    assert [backwards.read(number) for number in range(89, -1, -6)] == samples[89::-6]


def test_shards_without_rows_are_no_shards_that_are_broken(tmp_path, files, write_tar):
    empty = pa.table({"image": pa.array([], pa.binary())})
    pq.write_table(pa.table({"image": files[:5]}), tmp_path / "1.parquet")
    for number in (0, 2):
        pq.write_table(empty, tmp_path / f"{number}.parquet")
        write_tar(tmp_path / f"{number}.tar", {})
    write_tar(tmp_path / "1.tar", {f"{number}": {"png": data} for number, data in enumerate(files[:5])})
    for kind in ("parquet", "tar"):
        for streaming in (False, True):
            train = TrainingSourceConfig(path=str(tmp_path / f"*.{kind}"), streaming=streaming)
            source = open_training_source(DataConfig(train=train, shuffle=False), 0)
            samples = [source.read(number) for number in range(10)]
            assert [sample.data for sample in samples] == 2 * files[:5]
            assert not any(sample.broken for sample in samples)


def test_lost_rows_are_replaced_evenly_by_those_of_their_block_or_after_it(tmp_path, files):
    pq.write_table(pa.table({"image": files}), tmp_path / "a.parquet", row_group_size=6, use_dictionary=False)
    damage_group(tmp_path / "a.parquet", 1)
    readable = [number for number in range(len(files)) if number // 6 != 1]
    for block in (3, 12, 23):
        train = TrainingSourceConfig(path=str(tmp_path / "a.parquet"), streaming=True)
        source = open_training_source(DataConfig(train=train, shuffle_buffer=block), 0)
        samples = [source.read(number) for number in range(2 * len(files))]
        for epoch in (0, 1):
            mine = [sample for sample in samples if sample.epoch == epoch]
            assert sorted(files.index(sample.data) for sample in mine if not sample.repeated) == readable
            assert max(Counter(sample.data for sample in mine).values()) <= 3
            assert len({sample.index for sample in mine}) == len(files)


def test_rows_that_are_lost_keep_their_place(tmp_path, files):
    write_parquet(tmp_path / "a.parquet", files[:7])
    damage_group(tmp_path / "a.parquet", 1)
    shards = Shards(open_images(SourceConfig(path=str(tmp_path / "a.parquet")), streaming=True))
    assert shards.length(0) == 7
    expected = [*files[:2], LOST, LOST, *files[4:7]]
    for start in range(8):
        assert list(shards.values(0, start)) == list(enumerate(expected))[start:]


def test_stream_of_nothing_but_broken_shards_is_refused_naming_one(tmp_path, files):
    write_parquet(tmp_path / "a.parquet", files[:2])
    damage_group(tmp_path / "a.parquet", 0)
    train = TrainingSourceConfig(path=str(tmp_path / "a.parquet"), streaming=True)
    source = open_training_source(DataConfig(train=train), 0)
    with pytest.raises(ValueError, match=r"1 of 1 shards are broken, such as .*a\.parquet: row group 0"):
        source.read(0)


def test_broken_shards_of_a_mixture_say_of_which_source(tmp_path, files):
    write_parquet(tmp_path / "a.parquet", files[:4])
    write_parquet(tmp_path / "b.parquet", files[4:8])
    damage_group(tmp_path / "b.parquet", 0)
    configs = [TrainingSourceConfig(path=str(tmp_path / f"{name}.parquet"), streaming=True) for name in "ab"]
    source = open_training_source(DataConfig(train=configs[0], mix={"web": configs[1]}, shuffle_buffer=4), 0)
    assert source.num_shards == 2
    found = [item for number in range(40) for item in source.read(number).broken]
    assert [item.name for item in found] == [f"data.mix.web: {tmp_path}/b.parquet"]


def test_shard_without_the_column_is_broken(tmp_path, files):
    write_parquet(tmp_path / "a.parquet", files[:4])
    pq.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    train = TrainingSourceConfig(path=str(tmp_path / "*.parquet"), streaming=True)
    source = open_training_source(DataConfig(train=train, shuffle_buffer=4), 0)
    samples = [source.read(number) for number in range(12)]
    assert {sample.data for sample in samples} == set(files[:4])
    assert ["lacks the column 'image' and has other" in item.reason for s in samples for item in s.broken] == [True]
