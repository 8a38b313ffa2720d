"""The published folders of revisited Oxford and Paris, and hostile ground truth."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.evaluation.datasets import Revisited
from dinov2_hf.evaluation.datasets.plain_pickle import Array, load_plain

NAMES, QUERIES = ["all_souls_1", "oxford_2", "oxford_3", "radcliffe_4"], ["q_1", "q_2"]
TRUTH = {
    "imlist": NAMES,
    "qimlist": QUERIES,
    "gnd": [
        {"bbx": [1.5, 2, 9, 8], "easy": [0, 2], "hard": [3], "junk": []},
        {"bbx": [0, 0, 12.0, 10.0], "easy": [], "hard": [1], "junk": [0]},
    ],
}


def arrays(truth):
    """The same with arrays of numpy in place of lists of numbers."""
    return truth | {
        "gnd": [
            {name: np.array(value, float if name == "bbx" else int) for name, value in row.items()}
            for row in truth["gnd"]
        ]
    }


@pytest.fixture
def folder(tmp_path):
    """`roxford5k` as it is published, with four images and two queries of 16 x 12 pixels."""
    root = tmp_path / "roxford5k"
    (root / "jpg").mkdir(parents=True)
    for name in NAMES + QUERIES:
        Image.new("RGB", (16, 12), (len(name), 0, 0)).save(root / "jpg" / f"{name}.jpg")
    return root


def written(folder, truth, protocol=2):
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, protocol=protocol))
    return str(folder)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", [dict, arrays])
def test_ground_truth_is_read_with_images_boxes_and_rows(folder, kind, protocol):
    found = Revisited(written(folder, kind(TRUTH), protocol))
    assert [file.stem for file in found.database.files] == NAMES
    assert [file.stem for file in found.queries.files] == QUERIES
    data, name = found.queries.read(1)
    assert data == (folder / "jpg" / "q_2.jpg").read_bytes() and name.endswith("q_2.jpg")
    assert found.boxes.tolist() == [[1.5, 2, 9, 8], [0, 0, 12, 10]]
    assert found.rows == {"easy": [[0, 2], []], "hard": [[3], [1]], "junk": [[], [0]]}
    assert found.database.fingerprint != found.queries.fingerprint


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("hidden", ["a list of names", "a row", "an argument of numpy"])
def test_hostile_pickle_is_refused_and_runs_nothing(folder, tmp_path, hidden):
    trap = Trap(str(tmp_path / "sprung"))
    truth = {
        "a list of names": TRUTH | {"imlist": [trap]},
        "a row": TRUTH | {"gnd": [TRUTH["gnd"][0] | {"easy": trap}]},
        "an argument of numpy": TRUTH | {"gnd": np.array([trap], dtype=object)},
    }[hidden]
    with pytest.raises(ValueError, match="gnd_roxford5k.pkl is not the ground truth of a revisited set: it ") as caught:
        Revisited(written(folder, truth))
    assert "\n" not in str(caught.value) and not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x04" + b"\x8d" + (1 << 60).to_bytes(8, "little"),  # a text longer than the file
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x02cnumpy.core.multiarray\nfromfile\n.",
        b"(" * 100_000,
        pickle.dumps(np.zeros((2, 2))),
        pickle.dumps(np.array(["text"])),
    ],
)
def test_damaged_pickles_and_those_of_other_objects_are_refused(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="^it ") as caught:
        load_plain(tmp_path / "x.pkl")
    assert "\n" not in str(caught.value)


def test_arrays_are_read_as_numbers_of_their_type_and_order(tmp_path):
    for values in (np.array([1, -2], ">i4"), np.array([], float), np.array([True, False]), np.float64(0.5)):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(values, protocol=2))
        found = load_plain(tmp_path / "x.pkl")
        assert (found.values if isinstance(found, Array) else found) == values.tolist()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"imlist": ["../../secret"]}, "lies outside of jpg"),
        ({"imlist": [3]}, "not a list of names"),
        ({"gnd": TRUTH["gnd"][:1]}, "not as many entries in gnd as in qimlist"),
        ({"gnd": [TRUTH["gnd"][0] | {"easy": [4]}, TRUTH["gnd"][1]]}, "it names row 4 of 4 images"),
        ({"gnd": [TRUTH["gnd"][0] | {"hard": ["0"]}, TRUTH["gnd"][1]]}, "is not a list of row numbers"),
        ({"gnd": [TRUTH["gnd"][0] | {"bbx": [5, 0, 1, 1]}, TRUTH["gnd"][1]]}, "is not a box"),
        ({"gnd": [{"easy": []}, {"easy": []}]}, "it lacks 'bbx'"),
    ],
)
def test_impossible_ground_truth_is_refused_with_its_value(folder, change, message):
    with pytest.raises(ValueError, match="is not the ground truth of a revisited set") as caught:
        Revisited(written(folder, TRUTH | change))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="must have one ground truth, such as gnd_roxford5k.pkl, and has none"):
        Revisited(str(folder))
    with pytest.raises(FileNotFoundError, match="has none"):
        Revisited(str(tmp_path / "nothing"))
    (folder / "jpg" / "oxford_2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="names oxford_2, and .*oxford_2.jpg does not exist"):
        Revisited(written(folder, TRUTH))
