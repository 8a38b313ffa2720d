"""Damaged checkpoints: named in one line, passed over by `--resume auto`, refused where they are asked for by name."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from dinov2_hf.cli import main
from dinov2_hf.runs.checkpoint import find_checkpoints, read_model_tensors
from dinov2_hf.runs.integrity import choose_checkpoint, damage_of, prune_checkpoints, set_aside
from dinov2_hf.runs.provenance import Provenance, digest_of
from dinov2_hf.train import Trainer, build_accelerator
from dinov2_hf.weights import open_weights

from .damages import as_of_0_5, flip, sign
from .running import train


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run as it was after 4 updates."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints" / "step-00000006")
    return folder


@pytest.fixture
def newest(run):
    return run / "checkpoints" / "step-00000004"


def distcp(checkpoint):
    return checkpoint / "__0_0.distcp"


def write(name, content):
    return lambda checkpoint: (checkpoint / name).write_text(content)


def remove(name):
    return lambda checkpoint: (checkpoint / name).unlink()


def truncate(name, share=0.5):
    def act(checkpoint):
        path = checkpoint / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return act


def change_run_file(**values):
    def act(checkpoint):
        path = checkpoint / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return act


def replace_by_folder(name):
    def act(checkpoint):
        (checkpoint / name).unlink()
        (checkpoint / name).mkdir()

    return act


def move_out(name):
    """In its place a link to where it is now."""

    def act(checkpoint):
        target = checkpoint.parents[1] / "elsewhere"
        (checkpoint / name).rename(target)
        (checkpoint / name).symlink_to(target)

    return act


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def file_in_place_of_the_folder(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.write_text("")


def of_another_update(checkpoint):
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name("step-00000002"), checkpoint)


def signed(act):
    """Damages that a writer of the checksums can also do."""

    def both(checkpoint):
        act(checkpoint)
        sign(checkpoint)

    return both


DAMAGES = {
    "tensors truncated": (truncate("__0_0.distcp"), r"__0_0.distcp has [\d,]+ bytes instead of [\d,]+"),
    "tensors missing": (remove("__0_0.distcp"), "__0_0.distcp is missing"),
    "tensors empty": (truncate("__0_0.distcp", 0), "__0_0.distcp has 0 bytes"),
    "tensors flipped": (lambda c: flip(distcp(c), 64, seed=0), "the checksum of __0_0.distcp is not that in manifest"),
    "tensors too many": (write("__7_0.distcp", "x"), "__7_0.distcp is not in manifest.json"),
    "tensors a folder": (replace_by_folder("__0_0.distcp"), "__0_0.distcp is not a file"),
    "tensors elsewhere": (move_out("__0_0.distcp"), "__0_0.distcp is a link that leads outside the folder"),
    "metadata missing": (remove(".metadata"), ".metadata is missing"),
    "metadata empty": (truncate(".metadata", 0), ".metadata has 0 bytes"),
    "metadata truncated": (truncate(".metadata"), ".metadata has [0-9,]+ bytes instead"),
    "metadata flipped": (lambda c: flip(c / ".metadata", 1, seed=1), "the checksum of .metadata"),
    "metadata truncated and signed": (signed(truncate(".metadata")), ".metadata .*"),
    "tensors truncated and signed": (signed(truncate("__0_0.distcp")), ".metadata needs .* bytes of __0_0.distcp"),
    "run.json missing": (remove("run.json"), "run.json is missing"),
    "run.json empty": (write("run.json", ""), "run.json has 0 bytes"),
    "run.json empty and signed": (signed(write("run.json", "")), "run.json is not JSON"),
    "run.json a list": (signed(write("run.json", "[]")), "run.json does not hold names and values"),
    "run.json with one key": (signed(write("run.json", '{"step": 4}')), "run.json lacks 'global_batch_size'"),
    "run.json of wrong type": (signed(change_run_file(step="4")), "run.json has step='4'"),
    "run.json of odd counters": (signed(change_run_file(counters=[1])), r"run.json has step=4, counters=\[1\]"),
    "run.json of odd sums": (
        signed(change_run_file(means={"loss": [2, []]})),
        r"run.json has \[2, \[\]\] as the sums of 'loss'",
    ),
    "run.json of odd names": (
        signed(change_run_file(broken=[["image"]])),
        r"run.json has \['image'\] among what is broken",
    ),
    "run.json with a key of another": (signed(change_run_file(shape=1)), "run.json has the unknown key 'shape'"),
    "run.json of another update": (signed(change_run_file(step=6)), "run.json is that of update 6"),
    "run.json of a later version": (signed(change_run_file(format=99)), "run.json has format 99, of a newer version"),
    "config missing": (remove("config.yaml"), "config.yaml is missing"),
    "config odd": (signed(write("config.yaml", "a: [")), "config.yaml cannot be read: .*"),
    "config of other keys": (signed(write("config.yaml", "sheep: 1")), "config.yaml cannot be read: sheep in .*"),
    "config a list": (signed(write("config.yaml", "[1]")), "config.yaml cannot be read: .*"),
    "manifest missing": (remove("manifest.json"), "manifest.json is missing"),
    "manifest odd": (write("manifest.json", '{"files": [1]}'), "manifest.json is not a list of files"),
    "manifest with an odd checksum": (
        write("manifest.json", '{"files": {"run.json": {"size": 3, "sha256": "0"}}}'),
        "manifest.json has an odd entry 'run.json'",
    ),
    "manifest of no files": (write("manifest.json", '{"files": {}}'), "__0_0.distcp is not in manifest.json"),
    "provenance odd": (signed(write("provenance.json", "{}")), "provenance.json is not the provenance"),
    "folder empty": (empty, "the folder is empty"),
    "folder a file": (file_in_place_of_the_folder, "it is not a folder"),
    "another checkpoint's folder": (of_another_update, "run.json is that of update 2"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_newest_checkpoint_is_named_in_one_line_and_the_one_before_is_taken(newest, caplog, name):
    act, expected = DAMAGES[name]
    act(newest)
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        checkpoint, damaged = choose_checkpoint(newest.parent, "auto")
    assert (checkpoint.name, damaged) == ("step-00000002", [newest])
    (record,) = caplog.records
    message = record.getMessage()
    assert "\n" not in message
    assert f"the checkpoint {newest} is damaged: " in message and "continues from step-00000002" in message
    assert re.search(f"is damaged: {expected}", message)


@pytest.mark.parametrize("name", ["tensors flipped", "metadata missing", "run.json of wrong type", "config odd"])
def test_damaged_checkpoint_is_refused_by_name_with_the_name_of_a_good_one(newest, name):
    act, expected = DAMAGES[name]
    act(newest)
    good = newest.with_name("step-00000002")
    with pytest.raises(ValueError, match=f"{expected}.*; the newest whole one is {good}$"):
        choose_checkpoint(newest.parent, str(newest))


def test_whole_checkpoints_have_no_damage_and_the_newest_is_taken(newest, caplog):
    assert [damage_of(path) for path in find_checkpoints(newest.parent)] == [None, None]
    assert choose_checkpoint(newest.parent, "auto") == (newest, [])
    assert choose_checkpoint(newest.parent, str(newest)) == (newest, [])
    assert choose_checkpoint(newest.parent / "nowhere", "auto") == (None, [])
    (newest / ".DS_Store").write_bytes(b"x")  # what other programs leave does not count
    assert damage_of(newest) is None
    assert not caplog.records


def test_sizes_and_small_files_are_compared_without_reading_the_tensors(newest):
    flip(distcp(newest), 64, seed=0)
    assert damage_of(newest, contents=False) is None and damage_of(newest) is not None
    truncate("__0_0.distcp")(newest)
    assert damage_of(newest, contents=False) is not None


def test_run_goes_on_from_the_checkpoint_before_to_the_same_end(finished, run, newest, tiny_config_in):
    flip(distcp(newest), 64, seed=3)
    content = distcp(newest).read_bytes()
    trainer = train(tiny_config_in(run, "train.keep_checkpoints=3"))
    expected = read_model_tensors(finished / "checkpoints" / "step-00000006")
    found = trainer.objective.state_dict()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["damaged-00000004", "step-00000002", "step-00000004", "step-00000006"]
    assert distcp(run / "checkpoints" / "damaged-00000004").read_bytes() == content
    assert [damage_of(path) for path in find_checkpoints(run / "checkpoints")] == [None] * 3


def test_run_whose_checkpoints_are_all_damaged_is_refused_and_left_as_it_is(run, newest, tiny_config_in):
    truncate("__0_0.distcp")(newest)
    remove("run.json")(newest.with_name("step-00000002"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    config = tiny_config_in(run)
    with pytest.raises(
        ValueError,
        match=r"no checkpoint in .* is whole \(step-00000004: __0_0.distcp has .*; step-00000002: run.json is missing\)"
        "; restore one, or start again with another train.output_dir",
    ):
        Trainer.from_config(config, build_accelerator(config.train))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_damaged_checkpoint_gets_a_free_name(newest):
    for expected in ("damaged-00000002", "damaged-00000002-2"):
        folder = newest.with_name("step-00000002")
        folder.mkdir(exist_ok=True)
        set_aside([folder])
        assert newest.with_name(expected).is_dir() and not folder.exists()


def test_damaged_checkpoint_does_not_push_a_good_one_out(finished, tmp_path):
    folder = Path(shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints"))
    truncate("__0_0.distcp")(folder / "step-00000004")
    prune_checkpoints(folder, keep=2, keep_every=0, checkpoint_steps=2)
    assert [path.name for path in find_checkpoints(folder)] == [f"step-{step:08d}" for step in (2, 4, 6)]
    (folder / "step-00000001").write_text("a file")  # of somebody else
    prune_checkpoints(folder, keep=1, keep_every=0, checkpoint_steps=2)
    assert [path.name for path in find_checkpoints(folder)] == ["step-00000001", "step-00000006"]


@pytest.mark.parametrize("command", [["export"], ["inspect"]])
def test_run_whose_newest_checkpoint_is_damaged_is_not_read_from_an_older_one(run, newest, tmp_path, capsys, command):
    (remove(".metadata") if command == ["inspect"] else lambda c: flip(distcp(c), 64, seed=0))(newest)
    output = [str(tmp_path / "out")] if command == ["export"] else []
    for path in (run, newest):
        if command == ["inspect"]:
            main([*command, str(path), *output])
            message = capsys.readouterr().out
            assert "a checkpoint that cannot be read" in message
        else:
            with pytest.raises(SystemExit) as ended:
                main([*command, str(path), *output])
            assert ended.value.code == 2 and not Path(*output).exists()
            message = capsys.readouterr().err.splitlines()[-1]
        good = newest.with_name("step-00000002")
        assert f"the checkpoint {newest} is damaged: " in message and f"the newest whole one is {good}" in message
    main([*command, str(good), *output])


def test_weights_are_not_read_from_a_damaged_checkpoint(run, newest):
    flip(distcp(newest), 1, seed=0)
    for path in (run, newest):
        with pytest.raises(ValueError, match="step-00000004 is damaged: the checksum of __0_0.distcp"):
            open_weights(str(path), "init.path").network()


def test_checkpoint_of_0_5_loads_with_one_warning(finished, run, newest, tiny_config_in, caplog):
    as_of_0_5(newest)
    assert sorted(path.name for path in newest.iterdir()) == [".metadata", "__0_0.distcp", "config.yaml", "run.json"]
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        trainer = train(tiny_config_in(run))
    assert [record.getMessage() for record in caplog.records] == [
        f"{newest} is from dinov2_hf 0.5 and has no checksums of its files; only its tensors were compared with their "
        "CRC-32"
    ]
    expected = read_model_tensors(finished / "checkpoints" / "step-00000006")
    found = trainer.objective.state_dict()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_flipped_numbers_of_a_checkpoint_of_0_5_are_found(newest):
    """Every tensor has a CRC-32 of torch.save. Between the tensors is padding, which does not count."""
    as_of_0_5(newest)
    whole = distcp(newest).read_bytes()
    tensors = read_model_tensors(newest)
    for seed in range(4):
        distcp(newest).write_bytes(whole)
        flip(distcp(newest), 4, seed)
        damage = damage_of(newest)
        if damage is None:
            found = read_model_tensors(newest)
            assert [name for name in tensors if not torch.equal(found[name], tensors[name])] == []
        else:
            assert damage == "__0_0.distcp differs from what was written"


def test_recorded_digest_is_that_of_the_weights(finished, newest):
    checkpoints = find_checkpoints(finished / "checkpoints")
    recorded = [Provenance.read(path).weights for path in checkpoints]
    assert recorded == [digest_of(read_model_tensors(path)) for path in checkpoints]
    assert len(set(recorded)) == 3
    tensors = read_model_tensors(checkpoints[0])
    name = next(name for name in tensors if tensors[name].is_floating_point())
    tensors[name].view(-1)[0] = torch.nextafter(tensors[name].view(-1)[0], torch.tensor(torch.inf))
    assert digest_of(tensors) != recorded[0]  # a single last bit
    assert digest_of({"a": tensors[name]}) != digest_of({"b": tensors[name]})


def test_files_and_folders_are_on_the_disk_before_a_checkpoint_has_its_name(tiny_config, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.rename

    def recording_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def recording_rename(path, target):
        events.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "rename", recording_rename)
    train(tiny_config("train.epochs=1"))
    named = events.index("writing-00000002 -> step-00000002")
    files = {"__0_0.distcp", "config.yaml", "run.json", "provenance.json", "manifest.json"}
    assert files | {"writing-00000002"} <= set(events[:named])
    assert events[events.index("manifest.json") :].index("writing-00000002") > 0  # the folder after its last file
    assert ".metadata.tmp" in events[:named] and "checkpoints" in events[named:]


def test_files_that_changed_between_stop_and_resume_are_named(run, tiny_config_in, image_folder, tmp_path, caplog):
    images = Path(shutil.copytree(image_folder, tmp_path / "images"))
    where, folder = f"data.train.path={images}", tmp_path / "other"
    train(tiny_config_in(folder, where), until=3)

    def warnings_of_resume():
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
            config = tiny_config_in(folder, where)
            Trainer.from_config(config, build_accelerator(config.train))
        return [record.getMessage() for record in caplog.records]

    assert warnings_of_resume() == []
    shutil.copy(images / "blobs" / "01.jpg", images / "blobs" / "zz.jpg")
    (message,) = warnings_of_resume()
    assert re.search(r"the files of data.train changed: 24 images .* when .* was written, 25 images .* now", message)
    (images / "blobs" / "01.jpg").unlink()  # as many as before, but others
    (message,) = warnings_of_resume()
    assert re.search(r"24 images \(digest (\w+)\) when the checkpoint was written, 24 images \(digest (?!\1)", message)


def test_another_environment_is_said_where_a_run_continues(run, newest, tiny_config_in, caplog):
    config = tiny_config_in(run)

    def said():
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="dinov2_hf"):
            Trainer.from_config(config, build_accelerator(config.train))
        return [text for text in map(logging.LogRecord.getMessage, caplog.records) if "another environment" in text]

    assert said() == []
    path = newest / "provenance.json"
    content = json.loads(path.read_text())
    content["environment"] |= {"threads": 64, "cpu_capability": "AVX2"}
    path.write_text(json.dumps(content))
    sign(newest)
    (message,) = said()
    assert "threads: 64 then, 1 now" in message and "cpu_capability: AVX2 then" in message
