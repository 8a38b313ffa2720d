"""Names and reasons of what cannot be read, on one line each."""

import os

import pytest
from torch.utils.data import DataLoader, Dataset

from dinov2_hf.data import Broken, write_broken
from dinov2_hf.data.broken import leave_out, recording


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a b/photo #1 [2] é 写真 🙂.jpg", "a b/photo #1 [2] é 写真 🙂.jpg"),
        ("two\nlines\r\u2028\x85.jpg", r"two\nlines\r\u2028\x85.jpg"),
        ("tab\t.jpg", r"tab\t.jpg"),
        (b"\xff\xe9.jpg".decode("utf-8", "surrogateescape"), r"\xff\xe9.jpg"),
    ],
    ids=["printable", "newlines", "tab", "not_utf8"],
)
def test_broken_files_are_written_one_a_line_whatever_their_name(tmp_path, name, written):
    items = [Broken("image", name, "cut\noff"), Broken("shard", "b.tar", "empty")]
    text = write_broken(tmp_path, items).read_text(encoding="utf-8")
    assert text == f"image\t{written}\tcut\\noff\nshard\tb.tar\tempty\n" and len(text.splitlines()) == 2
    assert str(items[0]) == f"{written}: cut\\noff"


def test_list_of_broken_files_goes_where_nothing_is_broken_any_more(tmp_path):
    assert write_broken(tmp_path, []) is None
    write_broken(tmp_path, [Broken("image", "a", "cut off")])
    write_broken(tmp_path, [])
    assert not list(tmp_path.iterdir())


class Reading(Dataset):
    """Leaves out two of three rows, each of which is read three times."""

    def __len__(self):
        return 9

    def __getitem__(self, row):
        if row % 3:
            leave_out("image", f"{row % 3}\n.jpg", f"cut off\tat {row}")
        return row


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_data_workers_leave_out_is_recorded_once_each(workers):
    before = dict(os.environ)
    with recording() as outer:
        leave_out("video", "0.webp", "empty")
        with recording() as found:
            list(DataLoader(Reading(), batch_size=None, num_workers=workers))
    assert [(item.kind, item.name) for item in found] == [("image", "1\n.jpg"), ("image", "2\n.jpg")]
    assert [item.reason[:10] for item in found] == ["cut off\tat"] * 2
    assert outer == [Broken("video", "0.webp", "empty")]
    leave_out("image", "later", "unseen")
    assert dict(os.environ) == before
