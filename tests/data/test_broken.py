"""Names and reasons of what cannot be read, on one line each."""

import pytest

from dinov2_hf.data import Broken, write_broken


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a b/photo #1 [2] é 写真 🙂.jpg", "a b/photo #1 [2] é 写真 🙂.jpg"),
        ("two\nlines\r\u2028\x85.jpg", r"two\nlines\r\u2028\x85.jpg"),
        ("tab\t.jpg", r"tab\t.jpg"),
        ("back\\n.jpg", r"back\\n.jpg"),
        (b"\xff\xe9.jpg".decode("utf-8", "surrogateescape"), r"\udcff\udce9.jpg"),
    ],
    ids=["printable", "newlines", "tab", "backslash", "not_utf8"],
)
def test_broken_files_are_written_one_a_line_whatever_their_name(tmp_path, name, written):
    items = [Broken("image", name, "cut\noff"), Broken("shard", "b.tar", "empty")]
    text = write_broken(tmp_path, items).read_text(encoding="utf-8")
    assert text == f"image\t{written}\tcut\\noff\nshard\tb.tar\tempty\n" and len(text.splitlines()) == 2
    assert str(items[0]) == f"{written}: cut\\noff"
