"""Lines of `metrics.jsonl` that a disk, a kill or a person has damaged."""

import json
import logging

import pytest

from dinov2_hf.runs import RunFolder, plot_metrics

GOOD = [{"step": 1, "loss": 3.0, "epoch": 0.1}, {"step": 2, "loss": None, "epoch": 0.2}]
DAMAGED = {
    "cut": b'{"step": 3, "lo',
    "not names and values": b"[1, 2]",
    "without its update": b'{"loss": 3.0}',
    "an update that is not a number": b'{"step": "three", "loss": 3.0}',
    "a value that is not a number": b'{"step": 3, "loss": "low"}',
    "zeros after a power cut": b"\0" * 50,
    "not text": b'{"step": 3, "loss\xff\xfe": 3.0',
    "nested without end": b"[" * 100_000,
}


def write(folder, *lines, end=b"\n"):
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "metrics.jsonl").write_bytes(b"\n".join(texts) + end)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_left_out_with_a_warning(tmp_path, caplog, name):
    write(tmp_path, GOOD[0], DAMAGED[name], GOOD[1])
    assert RunFolder(tmp_path).read_metrics() == GOOD
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == f"1 of 3 lines of {tmp_path / 'metrics.jsonl'} is damaged and left out"


def test_one_warning_counts_all_damaged_lines_wherever_they_are_read(tmp_path, caplog):
    write(tmp_path, *DAMAGED.values(), *GOOD)
    assert plot_metrics(tmp_path).exists()
    (record,) = caplog.records
    assert record.message.startswith(f"{len(DAMAGED)} of {len(DAMAGED) + 2} lines of ")


@pytest.mark.parametrize(("last", "expected"), [(b'{"step": 3, "lo', GOOD), (b'{"step": 3}', [*GOOD, {"step": 3}])])
def test_a_last_line_without_its_end_is_read_where_it_is_whole(tmp_path, caplog, last, expected):
    write(tmp_path, *GOOD, last, end=b"")
    assert RunFolder(tmp_path).read_metrics() == expected and not caplog.records
