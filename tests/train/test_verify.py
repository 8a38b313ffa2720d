"""`dinov2-hf verify`: a stretch of a run trained again, compared to the bit, without writing into the run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from dinov2_hf.cli import main
from dinov2_hf.config import load_config
from dinov2_hf.runs.provenance import Provenance

from .damages import flip, sign
from .running import train


def verify(capsys, *arguments):
    """Exit status, standard output and the last line of standard error of the command."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        main(["verify", *map(str, arguments)])
        status = 0
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    return status, printed.out, (printed.err.splitlines() or [""])[-1]


def tree(folder):
    """Names, times and contents of all there is."""
    return {
        path: (path.lstat().st_mtime_ns, path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(checkpoint, name, old, new):
    """Replaces words in a file of a checkpoint, and the checksum with them."""
    text = (checkpoint / name).read_text()
    assert old in text
    (checkpoint / name).write_text(text.replace(old, new))
    sign(checkpoint)


@pytest.mark.parametrize(
    ("arguments", "first", "last"), [([], 3, 4), (["--from", "4"], 5, 6), (["--from", "2", "--to", "6"], 3, 6)]
)
def test_stretch_gives_the_weights_of_the_checkpoint_and_nothing_is_written(finished, capsys, arguments, first, last):
    before = tree(finished)
    status, output, _ = verify(capsys, finished, *arguments)
    digest = Provenance.read(finished / "checkpoints" / f"step-{last:08d}").weights
    assert status == 0 and output.count(digest) == 2
    assert f"equal: updates {first} to {last} give the weights of the checkpoint, bit for bit" in output
    assert tree(finished) == before


def test_stretch_is_verified_with_data_workers_too(run, capsys):
    change(run / "checkpoints" / "step-00000002", "config.yaml", "num_workers: 0", "num_workers: 2")
    status, output, _ = verify(capsys, run)
    assert (status, "equal: updates 3 to 4" in output) == (0, True)


def test_stretch_of_a_distillation_is_verified(finished, tiny_overrides, tmp_path, capsys):
    overrides = ["objective=distill_prototypes", f"distill.teacher={finished}", "train.epochs=2"]
    overrides += ["students.narrow.preset=tiny", "students.narrow.hidden_size=24", "students.narrow.patch_size=8"]
    overrides += ["students.narrow.num_hidden_layers=1", "students.narrow.num_attention_heads=2"]
    train(load_config(None, [*tiny_overrides, *overrides]))
    status, output, error = verify(capsys, tmp_path / "run")
    assert status == 0 and "equal: updates 3 to 4" in output, (output, error)


def test_run_on_relative_paths_is_verified_from_another_folder(
    image_folder, tiny_overrides, tmp_path, monkeypatch, capsys
):
    (tmp_path / "photos").symlink_to(image_folder)
    monkeypatch.chdir(tmp_path)
    keys = ["data.train.path=photos", "train.output_dir=run", "train.epochs=2", "train.keep_checkpoints=2"]
    train(load_config(None, [*tiny_overrides, *keys]))
    monkeypatch.chdir("/")
    status, output, error = verify(capsys, tmp_path / "run")
    assert status == 0 and "equal: updates 3 to 4" in output, (output, error)


def test_other_data_and_another_environment_are_named_where_the_weights_differ(run, image_folder, tmp_path, capsys):
    start, end = (run / "checkpoints" / f"step-{step:08d}" for step in (2, 4))
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    shutil.copy(images / "blobs" / "01.jpg", images / "blobs" / "zz.jpg")
    change(start, "config.yaml", str(image_folder), str(images))
    change(end, "provenance.json", f'"torch": "{torch.__version__}"', '"torch": "1.0"')
    before = tree(run)
    status, output, _ = verify(capsys, run)
    assert status == 1 and "different: updates 3 to 4 do not give the weights of the checkpoint" in output
    assert re.search(r"\d+ of \d+ tensors differ; the largest difference is \S+, in (student|teacher)\.", output)
    assert "the files of data.train changed: 24 images" in output and "25 images" in output
    assert f"torch: 1.0 then, {torch.__version__} now" in output and "numpy" not in output
    assert tree(run) == before


def test_weights_that_are_not_those_recorded_are_refused(run, capsys):
    end = run / "checkpoints" / "step-00000004"
    digest = Provenance.read(end).weights
    change(end, "provenance.json", digest, "0" * 64)
    status, output, error = verify(capsys, run)
    assert status == 2 and not output
    assert f"records the digest {'0' * 16}… of its weights, and theirs is {digest[:16]}…" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "3"], r"--from 3: .* has no checkpoint after that update; it has 2, 4, 6"),
        (["--from", "6"], r"--from 6: .* has no later checkpoint to compare with; it has 2, 4, 6"),
        (["--from", "4", "--to", "2"], r"--to 2: .* has no checkpoint after that update beyond 4; it has 2, 4, 6"),
    ],
)
def test_stretch_that_is_not_there_is_refused(finished, capsys, arguments, message):
    status, output, error = verify(capsys, finished, *arguments)
    assert status == 2 and not output and re.search(message, error)


def test_what_cannot_be_verified_is_refused_in_one_line(run, capsys):
    start, end = (run / "checkpoints" / f"step-{step:08d}" for step in (2, 4))
    flip(end / "__0_0.distcp", 1, seed=0)
    status, _, error = verify(capsys, run)
    assert status == 2 and f"the checkpoint {end} is damaged: the checksum of __0_0.distcp" in error
    origin = json.loads((start / "provenance.json").read_text())
    origin["environment"]["processes"] = 2
    (start / "provenance.json").write_text(json.dumps(origin))
    sign(start)
    status, _, error = verify(capsys, run, "--to", "6")
    assert status == 2 and "written by 2 processes and there are 1 here" in error
    assert "accelerate launch --num_processes 2 -m dinov2_hf verify" in error
    for step in (2, 4):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    status, _, error = verify(capsys, run)
    assert status == 2 and "has 1 checkpoint and a stretch lies between two" in error


def test_inspect_shows_what_a_checkpoint_records(finished, capsys):
    main(["inspect", str(finished)])
    shown = capsys.readouterr().out
    newest = Provenance.read(finished / "checkpoints" / "step-00000006")
    assert f"SHA-256 {newest.weights}" in shown
    assert "data.train: 24 images (digest " in shown
    assert f"torch {torch.__version__}" in shown and "processes 1" in shown and "threads 1" in shown
    assert re.search(r"code +dinov2_hf \d+\.\d+", shown)


def test_recorded_processes_and_threads_are_those_of_the_run(finished):
    environment = Provenance.read(finished / "checkpoints" / "step-00000006").environment
    assert (environment["processes"], environment["threads"], environment["device"]) == (1, 1, "cpu")
