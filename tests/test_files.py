"""What may be written where: no command writes into a source, over an input, or over what it did not make."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dinov2_hf.config import DINOv2RunConfig, save_config
from dinov2_hf.config.loading import SIGNATURE as SAVED
from dinov2_hf.files import (
    SIGNATURE,
    Output,
    beside,
    check_outputs,
    made_anything,
    made_evaluation,
    made_nothing,
    made_picture,
    made_run,
)


@pytest.fixture(autouse=True)
def photographs(tmp_path, monkeypatch):
    """`photos/a.jpg`, `photos/b.jpg`, `photos/deep/c.jpg` and `other/d.jpg` in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/b.jpg", "photos/deep/c.jpg", "other/d.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"photograph " + name.encode())
    return tmp_path


def refusal(path, images=(), folder=False, made=None, **more):
    """What is said of an output; empty where it is allowed."""
    output = Output("--output", Path(path), made or (made_run if folder else made_picture), folder)
    try:
        check_outputs([output], [("--images", str(each)) for each in images], **more)
    except ValueError as error:
        assert "\n" not in str(error) and f"--output={path}" in str(error) and "; " in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(
    "output",
    [
        "photos/new.png",
        "photos/deep/new.png",
        "photos/new/deeper/still/new.png",
        "other/../photos/new.png",
        "link/new.png",
        "link/../photos/new.png",
        "dangling.png",
        "photos/a.jpg",
    ],
)
@pytest.mark.parametrize("source", ["photos", "photos/", "./photos", "link", "photos/**/*.jpg", "photos/**", "gather"])
def test_nothing_is_written_into_a_folder_of_images_whatever_it_is_called(output, source):
    Path("link").symlink_to("photos")
    Path("dangling.png").symlink_to("photos/new.png")
    Path("gather").mkdir()
    Path("gather/class").symlink_to("../photos")  # whose images a listing of `gather` finds
    assert f"--images={source}; give another file for --output" in refusal(output, [source])
    assert f"--images={source}; give another folder for --output" in refusal(
        f"{output}-run", [source], folder=True
    ) or (output == "dangling.png")


@pytest.mark.parametrize(
    "source", ["photos/a.jpg", "photos/*.jpg", "photos/?.jpg", "*/a.jpg", "list.txt", "photos/link.jpg"]
)
def test_a_photograph_is_never_replaced_however_it_is_named(source, photographs):
    Path("list.txt").write_text("photos/a.jpg\n")
    Path("photos/link.jpg").symlink_to("a.jpg")
    Path("hard.png").hardlink_to("photos/a.jpg")
    for output in ("photos/a.jpg", photographs / "photos/a.jpg", "photos/deep/../a.jpg", "photos/link.jpg", "hard.png"):
        assert refusal(output, [source])
    assert refusal("photos/a.jpg", made=made_anything)[:0] == ""
    for source in ([], ["other"], ["table.csv"]):  # not an input: it is not ours all the same
        assert "exists already, and this command did not write it; give another" in refusal("photos/a.jpg", source)


def test_an_own_picture_that_is_read_is_not_replaced():
    Path("own.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"tEXtSoftware\0dinov2_hf")
    assert refusal("own.png") == ""
    Path("list.txt").write_text("\nown.png\n")
    for source in ("own.png", "./own.png", "*.png", "list.txt"):
        assert refusal("own.png", [source])
    assert "is the file of --maps=own.png" in refusal("own.png", files=[("--maps", "own.png")])


@pytest.mark.parametrize("source", ["photos", "photos/a.jpg", "photos/*.jpg", "photos/deep/*.jpg", "list.txt", "far/x"])
def test_a_folder_around_a_source_is_no_output(source):
    Path("photos/config.yaml").write_text(SIGNATURE)  # as if a run had been there
    Path("list.txt").write_text("photos/deep/c.jpg\n")
    Path("far").mkdir()
    Path("far/x").symlink_to("../photos/deep")
    assert f"--images={source}; give another folder" in refusal("photos", [source], folder=True)
    assert "is the folder of --model=photos" in refusal("photos", folder=True, models=[("--model", "photos")])
    assert "is a folder around --model=photos/a.jpg" in refusal(
        "photos", folder=True, models=[("--model", "photos/a.jpg")]
    )


def test_a_pattern_of_a_later_listing_is_not_written_to():
    assert "would be read by the pattern of --images=*/*.png" in refusal("other/new.png", ["*/*.png"])
    assert "would be read by the pattern of --images=*/*.png" in refusal("new", ["*/*.png"], folder=True)
    assert refusal("other/new.png", ["photos/*.png"]) == "" == refusal("new.png", ["*/*.png"])
    assert refusal("new", ["photos/*.jpg"], folder=True) == "" == refusal("photos/new", ["photos/*.jpg"], folder=True)
    assert refusal("photos/new.png", ["photos/*.jpg"]) == ""


def test_new_names_beside_sources_and_in_folders_of_models_are_free():
    assert refusal("pca.png", ["photos"]) == "" == refusal("photos/pca.png", ["photos/a.jpg", "user/set"])
    assert refusal("photographs", ["photos"], folder=True) == ""  # whose name only begins alike
    assert refusal("photos/model.onnx", made=made_nothing, models=[("SOURCE", "photos")]) == ""
    assert refusal("photos/results", folder=True, made=made_evaluation, models=[("--model", "photos")]) == ""


def test_loops_of_links_end():
    Path("photos/deep/up").symlink_to("..")
    Path("photos/self").symlink_to(".")
    assert refusal("photos/x.png", ["photos"]) and refusal("x.png", ["photos"]) == ""


def test_another_name_of_a_folder_is_found_by_its_inode(monkeypatch):
    """As on file systems that ignore case, or where a folder is mounted twice: `photos` is called `PHOTOS` too."""
    stat, exists = os.stat, os.path.exists
    as_it_is = lambda path: os.fspath(path).replace("PHOTOS", "photos")  # noqa: E731
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: stat(as_it_is(path), *a, **k))
    monkeypatch.setattr(os.path, "exists", lambda path: exists(as_it_is(path)))
    assert "lies in the folder of --images=photos" in refusal("PHOTOS/new.png", ["photos"])


@pytest.mark.parametrize("held", [["notes.txt"], ["a.jpg"], ["config.yaml"], ["results.json"], ["src/main.py", "x"]])
def test_a_folder_of_other_things_is_no_output(held):
    for name in held:
        Path("full", name).parent.mkdir(parents=True, exist_ok=True)
        Path("full", name).write_text("{}")
    for made in (made_run, made_evaluation):
        said = refusal("full", folder=True, made=made)
        assert "which this command did not write; give a new folder, an empty one, or" in said
        assert repr(sorted(held)[0].split("/")[0]) in said
    assert refusal("full/notes.txt" if held == ["notes.txt"] else "full/" + held[0], folder=True)
    assert refusal("full", folder=True, made=made_anything) == ""  # features have names of their own there


@pytest.mark.parametrize(
    "kind, held",
    [
        (made_run, {}),
        (made_run, {"slurm-17.out": "", "logs/err": "", ".DS_Store": ""}),
        (made_run, {"config.yaml": f"{SIGNATURE}\nmodel: 1"}),
        (made_run, {"config.yaml": "model: {}", "metrics.jsonl": "", "notes.txt": ""}),
        (made_run, {"checkpoints/step-00000001/run.json": "{}", "x": ""}),
        (made_evaluation, {"results.json": '{"versions": {"python": "3", "dinov2_hf": "0.5.0"}}', "notes.md": ""}),
        (made_evaluation, {"finetune.pt": ""}),
        (made_evaluation, {"features/0123/key.json": ""}),
        (made_evaluation, {"knn/results.json": '{"versions": {"python": "3", "dinov2_hf": "0.5.0"}}'}),
    ],
)
def test_an_own_folder_is_known_again(kind, held):
    for name, text in held.items():
        Path("own", name).parent.mkdir(parents=True, exist_ok=True)
        Path("own", name).write_text(text)
    Path("own").mkdir(exist_ok=True)
    assert refusal("own", folder=True, made=kind) == ""


def test_a_checkpoint_is_not_the_folder_of_a_run():
    Path("step").mkdir()
    config = DINOv2RunConfig()
    config.data.train.path = "photos"
    save_config(config, Path("step/config.yaml"))
    assert SAVED == SIGNATURE and refusal("step", folder=True) == ""
    Path("step/run.json").write_text("{}")
    assert refusal("step", folder=True)


def test_what_cannot_be_written_is_said_before(photographs):
    assert "is a folder; give a file" in refusal("photos")
    assert "is a file; give a folder" in refusal("photos/a.jpg", folder=True)
    assert "photos/a.jpg is a file; give another path" in refusal("photos/a.jpg/x/y.png")
    assert "~ that the shell did not replace" in refusal("~/runs/a", folder=True)
    assert "exists already; give another name or remove it" in refusal("photos", made=made_nothing)


def test_a_file_is_whole_or_not_there_and_other_names_of_it_stay():
    Path("hard").hardlink_to("photos/a.jpg")
    with beside(Path("hard")) as temporary:
        temporary.write_bytes(b"new")
    assert Path("hard").read_bytes() == b"new" and Path("photos/a.jpg").read_bytes() == b"photograph photos/a.jpg"
    with pytest.raises(OSError), beside(Path("new/file")) as temporary:
        temporary.write_bytes(b"half")
        raise OSError
    assert list(Path("new").iterdir()) == []


def test_a_folder_replaces_a_folder_as_a_whole_or_leaves_it():
    for content, error in (("first", None), ("half", OSError), ("second", None)):
        try:
            with beside(Path("new/model")) as temporary:
                temporary.mkdir()
                (temporary / content).write_text(content)
                if error:
                    raise error
        except OSError:
            pass
        assert [path.name for path in Path("new").iterdir()] == ["model"]
        assert [path.name for path in Path("new/model").iterdir()] == ["first" if error else content]
    with pytest.raises(OSError), beside(Path("photos")) as temporary:  # a file never replaces a folder
        temporary.write_text("file")
    assert len(list(Path("photos").iterdir())) == 3


def test_files_that_belong_to_a_file_are_moved_with_it():
    with beside(Path("new/model.onnx")) as temporary:
        assert temporary.name == "model.onnx"  # which refers to its data by name
        temporary.write_text("model")
        temporary.with_name("model.onnx.data").write_text("weights")
        assert list(Path("new").glob("model*")) == []
    assert sorted(path.name for path in Path("new").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_block_that_writes_nothing_keeps_the_file():
    Path("kept").write_text("old")
    with pytest.raises(FileNotFoundError), beside(Path("kept")):
        pass
    assert Path("kept").read_text() == "old"


# -------------------------------------------------------------------------------------------------------- mode and disk


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_asks_for(umask, mode):
    before = os.umask(umask)
    try:
        with beside(Path("model.safetensors")) as temporary:
            save_file({"a": torch.zeros(3)}, temporary)
        with beside(Path("folder")) as temporary:
            (temporary / "deep").mkdir(parents=True)
            save_file({"a": torch.zeros(3)}, temporary / "deep/model.safetensors")
            (temporary / "config.json").write_text("{}")
            (temporary / "link").symlink_to("config.json")
    finally:
        os.umask(before)
    for path in ("model.safetensors", "folder/deep/model.safetensors", "folder/config.json"):
        assert oct(os.stat(path).st_mode & 0o777) == oct(mode), path
    assert sorted(path.name for path in Path("folder").iterdir()) == ["config.json", "deep", "link"]


WRITERS = {
    "text": lambda path: path.write_text("x" * 2000),
    "safetensors": lambda path: save_file({"a": torch.zeros(2000)}, path),
    "torch": lambda path: torch.save({"a": torch.zeros(2000)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_refuses_is_an_error_of_one_line_that_names_the_path(writer, small_disk):
    with small_disk(), pytest.raises(OSError) as raised, beside(Path("new/model")) as temporary:
        WRITERS[writer](temporary)
    said = str(raised.value)
    assert said.startswith("new/model cannot be written: ") and "make room on its disk" in said and "\n" not in said
    assert list(Path("new").iterdir()) == []


def test_other_errors_stay_what_they_are():
    for error in (FileNotFoundError(2, "No such file", "source"), ValueError("x"), RuntimeError("x")):
        with pytest.raises(type(error)) as raised, beside(Path("new")):
            raise error
        assert raised.value is error
