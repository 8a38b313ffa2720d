import pickle
import zipfile

import numpy as np
import pytest
from datasets import Dataset, Features, Image, IterableDataset

from dinov2_hf.config import SourceConfig
from dinov2_hf.data.sources import LabeledImages, MapSource, StreamSource, open_training_source

KINDS = ["folder", "flat", "tables", "table.parquet", "saved", "splits"]
BUFFER = 8


def open_source(path, streaming=False, seed=0, **options):
    return open_training_source(SourceConfig(path=str(path), streaming=streaming, **options), seed, BUFFER)


def read_all(source, start, stop):
    return [source.read(number) for number in range(start, stop)]


def data_of(samples):
    return [sample.data for sample in samples]


def numbers_of(samples, files):
    """Which of `files` the samples are, sorted; -1 for none of them."""
    return sorted(files.index(sample.data) if sample.data in files else -1 for sample in samples)


def refusal(**options):
    with pytest.raises(ValueError) as caught:
        open_training_source(SourceConfig(**options), 0, BUFFER)
    return str(caught.value)


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_holds_every_image_once(kind, streaming, paths, files):
    source = open_source(paths[kind], streaming)
    for epoch in range(3):
        samples = read_all(source, epoch * len(files), (epoch + 1) * len(files))
        assert numbers_of(samples, files) == list(range(len(files)))
        assert [sample.epoch for sample in samples] == [epoch] * len(files)
        assert sorted(sample.index for sample in samples) == list(range(len(files)))


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_order_differs_between_epochs(streaming, paths, files):
    samples = read_all(open_source(paths["saved"], streaming), 0, 3 * len(files))
    first, second, third = (
        data_of(samples)[start : start + len(files)] for start in range(0, len(samples), len(files))
    )
    assert first != second and second != third and first != third
    assert first != files


@pytest.mark.parametrize("kind", ["saved", "tables"])
@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_order_depends_on_the_seed_alone(streaming, kind, paths, files):
    count = len(files) + 10
    samples = read_all(open_source(paths[kind], streaming, seed=3), 0, count)
    assert read_all(open_source(paths[kind], streaming, seed=3), 0, count) == samples
    assert data_of(read_all(open_source(paths[kind], streaming, seed=4), 0, count)) != data_of(samples)


def test_order_of_a_map_source_does_not_depend_on_how_it_is_stored(paths, files):
    expected = data_of(read_all(open_source(paths["saved"]), 0, len(files)))
    for kind in ("tables", "table.parquet", "splits", "flat"):
        assert data_of(read_all(open_source(paths[kind]), 0, len(files))) == expected


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_random_access_equals_reading_in_order(streaming, paths, files):
    in_order = read_all(open_source(paths["saved"], streaming), 0, 3 * len(files))
    source = open_source(paths["saved"], streaming)
    for number in np.random.default_rng(0).permutation(len(in_order))[:30]:
        assert source.read(int(number)) == in_order[number]


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_source_that_was_pickled_goes_on_with_the_same_samples(streaming, paths, files):
    expected = read_all(open_source(paths["saved"], streaming), 0, 40)
    source = pickle.loads(pickle.dumps(open_source(paths["saved"], streaming)))
    assert read_all(source, 0, 40) == expected


def test_map_source_is_shuffled_over_its_whole_length(paths, files):
    position = np.zeros((100, len(files)))
    for seed in range(100):
        samples = read_all(open_source(paths["saved"], seed=seed), 0, len(files))
        position[seed, [sample.index for sample in samples]] = np.arange(len(files))
    # the mean of 100 uniform positions has a deviation of 6.6 / sqrt(100) = 0.66; five of it
    assert np.abs(position.mean(axis=0) - (len(files) - 1) / 2).max() < 3.3


def test_split_chooses_the_rows(paths, files):
    validation = open_source(paths["splits"], split="validation")
    assert numbers_of(read_all(validation, 0, 5), files) == list(range(5))
    assert validation.read(5).epoch == 1


def test_slice_of_a_split_of_a_folder_is_read(paths, files):
    source = open_source(paths["flat"], split="train[:10]")
    assert numbers_of(read_all(source, 0, 10), files) == list(range(10))


def test_named_image_column_is_read(files, tmp_path):
    encoded = [{"bytes": data, "path": None} for data in files]
    columns = {"first": encoded, "second": encoded[::-1]}
    Dataset.from_dict(columns, features=Features({"first": Image(), "second": Image()})).save_to_disk(tmp_path / "two")
    unnamed = open_source(tmp_path / "two").read(0)
    second = open_source(tmp_path / "two", image_column="second").read(0)
    assert unnamed.data == files[unnamed.index]
    assert second.data == files[::-1][second.index]


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_samples_of_a_folder_are_named_by_their_files(streaming, paths, files):
    for sample in read_all(open_source(paths["folder"], streaming), 0, len(files)):
        with open(sample.name, "rb") as file:
            assert file.read() == sample.data


def test_samples_of_a_table_are_named_by_their_rows(paths):
    sample = open_source(paths["table.parquet"]).read(7)
    assert sample.name == f"row {sample.index}"


def test_deleted_file_and_missing_value_give_no_bytes(tmp_path, files):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(files[index])
    values = [{"bytes": None, "path": str(tmp_path / f"{index}.png")} for index in range(3)] + [None]
    stored = Dataset.from_dict({"image": values}, features=Features({"image": Image()}))
    (tmp_path / "1.png").unlink()
    source = MapSource(stored, "image", seed=0)
    samples = {sample.index: sample for sample in read_all(source, 0, 4)}
    assert [samples[index].data for index in range(4)] == [files[0], b"", files[2], b""]
    assert samples[1].name == str(tmp_path / "1.png") and samples[3].name == "row 3"


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_images_in_an_archive_are_read(streaming, tmp_path, files):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for index, data in enumerate(files):
            archive.writestr(f"{index:02}.png", data)
    source = open_source(tmp_path, streaming)
    assert numbers_of(read_all(source, 0, len(files)), files) == list(range(len(files)))


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_empty_folder_is_refused(streaming, paths):
    message = refusal(path=str(paths["empty"]), streaming=streaming)
    assert str(paths["empty"]) in message and "empty folder" in message and "put images into it" in message


@pytest.mark.parametrize("name", ["inner/", "notes.bin"])
def test_folder_without_anything_to_read_is_refused(name, tmp_path):
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(b"\0")
    message = refusal(path=str(tmp_path))
    assert str(tmp_path) in message and "no images or tables" in message


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_missing_folder_is_refused(streaming, tmp_path):
    path = str(tmp_path / "nowhere")
    message = refusal(path=path, streaming=streaming)
    assert message.startswith(f"{path} does not exist; give a folder of images")


def test_missing_relative_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "./nowhere does not exist" in refusal(path="./nowhere")


def test_file_of_another_kind_is_refused_naming_those_that_can_be_read(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n")
    message = refusal(path=str(tmp_path / "table.csv"))
    assert "table.csv is a .csv file" in message and ".parquet" in message and ".arrow" in message


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("kind", ["folder", "tables", "splits"])
def test_unknown_split_is_refused_naming_those_there_are(kind, streaming, paths):
    message = refusal(path=str(paths[kind]), split="test", streaming=streaming)
    assert "split='test' is not in" in message and str(paths[kind]) in message
    assert "train" in message.removeprefix("split='test'").replace(str(paths[kind]), "")


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("kind", ["saved", "table.parquet", "splits"])
def test_slice_of_a_split_is_read_or_refused_but_not_ignored(kind, streaming, paths, files):
    try:
        source = open_source(paths[kind], streaming, split="train[:10]")
    except ValueError as error:
        assert "train[:10]" in str(error)
    else:
        assert numbers_of(read_all(source, 0, 10), files) == list(range(10))


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_missing_column_is_refused_naming_those_there_are(streaming, paths):
    message = refusal(path=str(paths["saved"]), image_column="image", streaming=streaming)
    assert str(paths["saved"]) in message and "image_column='image'" in message
    assert "its columns are id, picture, kind, code, text" in message


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_set_without_images_is_refused_naming_its_columns(streaming, dataset, tmp_path):
    dataset.remove_columns("picture").to_parquet(tmp_path / "table.parquet")
    message = refusal(path=str(tmp_path / "table.parquet"), streaming=streaming)
    assert "its columns are id, kind, code, text" in message and "image_column=" in message


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_column_of_another_type_is_refused_naming_type_and_remedy(streaming, paths):
    message = refusal(path=str(paths["saved"]), image_column="code", streaming=streaming)
    assert "'code'" in message and "int64" in message and "cast_column" in message


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_set_without_rows_is_refused(streaming, dataset, tmp_path):
    dataset.select([]).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="no data|no rows|no samples"):
        open_source(tmp_path / "table.parquet", streaming).read(0)


@pytest.mark.parametrize("kind", ["folder", "tables", "table.parquet", "saved", "splits"])
def test_labeled_images_come_with_their_labels_in_order(kind, paths, files, labels):
    images = LabeledImages(SourceConfig(path=str(paths[kind])))
    assert len(images) == len(files)
    assert images.names == ["cat", "dog"]
    expected = dict(zip(files, labels, strict=True))
    assert [expected[images.read(index)[0]] for index in range(len(images))] == images.labels.tolist()
    if kind != "folder":  # a folder of classes is read class by class
        assert [images.read(index)[0] for index in range(len(images))] == files


def test_images_without_labels_are_refused_naming_columns_and_remedy(dataset, paths, tmp_path):
    with pytest.raises(ValueError) as caught:
        LabeledImages(SourceConfig(path=str(paths["flat"])))
    assert str(paths["flat"]) in str(caught.value) and "ClassLabel" in str(caught.value)
    assert "its columns are image" in str(caught.value) and "folder" in str(caught.value)


def test_missing_label_column_is_refused_naming_those_there_are(paths):
    with pytest.raises(ValueError) as caught:
        LabeledImages(SourceConfig(path=str(paths["saved"]), label_column="class"))
    assert "label_column='class'" in str(caught.value) and "id, picture, kind, code, text" in str(caught.value)


@pytest.mark.parametrize("column", ["code", "text"])
def test_labels_of_any_column_number_its_class_names(column, paths, dataset):
    images = LabeledImages(SourceConfig(path=str(paths["saved"]), label_column=column))
    assert len(images.names) == 2
    assert [images.names[label] for label in images.labels] == [str(value) for value in dataset[column]]


def test_stepping_back_in_a_stream_does_not_read_it_from_the_start(files):
    rows = []

    def generate():
        for index in range(300):
            rows.append(index)
            yield {"image": {"bytes": files[index % len(files)], "path": None}}

    stream = IterableDataset.from_generator(generate, features=Features({"image": Image()}))
    source = StreamSource(stream, "image", seed=0, shuffle_buffer=BUFFER)
    in_order = read_all(source, 0, 200)
    read = len(rows)
    # two unreadable images in a row are replaced by the third, and then the second is asked for
    assert [source.read(number) for number in (200, 201, 202)][2] == source.read(202)
    assert source.read(201).index == 201
    assert source.read(199) == in_order[199]
    assert len(rows) - read < 100
