import pytest

from dinov2_hf.config import SourceConfig
from dinov2_hf.evaluation.datasets import LabeledImages


@pytest.mark.parametrize("kind", ["folder", "tables", "table.parquet", "saved", "splits"])
def test_labeled_images_come_with_their_labels_in_order(kind, paths, files, labels):
    images = LabeledImages(SourceConfig(path=str(paths[kind])))
    assert len(images) == len(files)
    assert images.names == ["cat", "dog"]
    expected = dict(zip(files, labels, strict=True))
    assert [expected[images.read(index)[0]] for index in range(len(images))] == images.labels.tolist()
    if kind != "folder":  # a folder of classes is read class by class
        assert [images.read(index)[0] for index in range(len(images))] == files


def test_table_of_paths_and_labels_is_read(tmp_path, files):
    rows = ["file,kind"]
    for index, data in enumerate(files):
        (tmp_path / f"{index}.png").write_bytes(data)
        rows.append(f"{index}.png,{('dog', 'cat')[index % 2]}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    images = LabeledImages(SourceConfig(path=str(tmp_path / "table.csv"), label_column="kind"))
    assert images.names == ["cat", "dog"]
    assert images.labels.tolist() == [1 - index % 2 for index in range(len(files))]
    assert [images.read(index) for index in range(len(images))] == [
        (data, str(tmp_path / f"{index}.png")) for index, data in enumerate(files)
    ]


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
