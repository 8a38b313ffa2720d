"""`RunFolder` finds everything in the folder of a run by the names that the run wrote."""

import json

import pytest
from accelerate import Accelerator

from dinov2_hf.config import load_config
from dinov2_hf.config.loading import save_config
from dinov2_hf.files import made_run
from dinov2_hf.runs import RunFolder
from dinov2_hf.runs.checkpoint import check_same_run
from dinov2_hf.runs.metrics import MetricLog


@pytest.fixture
def run(tmp_path):
    """A folder with checkpoints after 2 and 4 updates, of which the newer one is damaged, and five lines of metrics."""
    run = RunFolder(tmp_path / "run")
    for step in (2, 4):
        checkpoint = run.checkpoints / f"step-{step:08}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "run.json").write_text(json.dumps({"step": step, "global_batch_size": 8}))
    (checkpoint / "run.json").write_text("{")
    lines = [json.dumps({"step": step, "loss": 1.0, "koleo": 0.5}) for step in range(5)]
    run.metrics_file.write_text("\n".join(lines) + '\n{"step": 5, "lo')
    return run


def test_config_comes_back_and_the_folder_is_known_as_a_run(tmp_path):
    run, config = RunFolder(tmp_path / "run"), load_config(None, ["data.train.path=x", "train.output_dir=/out"])
    run.write_config(config)
    assert run.read_config() == config and made_run(run.path)
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]


def test_paths_on_resume_are_compared_by_what_they_lead_to(tmp_path, monkeypatch):
    """As 0.5 saved them, relative to the folder in which the run was started, and as this version reads its configs."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "others", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    checkpoint = tmp_path / "step-00000002"
    checkpoint.mkdir()
    (checkpoint / "config.yaml").write_text(
        "# Written by dinov2_hf\ndata: {train: {path: photos}}\ninit: {path: me/model}\ntrain: {output_dir: run}\n"
    )

    def check(path):
        config = load_config(None, [f"data.train.path={path}", "init.path=me/model"])
        check_same_run(checkpoint, config, 4, 4)

    for path in ("photos", "./photos/", tmp_path / "photos", tmp_path / "link", tmp_path / "others/../photos"):
        check(path)
    with pytest.raises(ValueError, match=r"data.train.path='others', but .* was written with data.train.path='photos'"):
        check("others")
    monkeypatch.chdir("elsewhere")
    with pytest.raises(ValueError, match="data.train.path="):
        check(tmp_path / "photos")


def test_channels_of_the_source_are_read_at_the_start_and_may_change_later(tmp_path):
    started = load_config(None, ["data.train.path=photos", "init.path=me/model", "init.channels=mean"])
    save_config(started, tmp_path / "config.yaml")
    check_same_run(tmp_path, load_config(None, ["data.train.path=photos"]), 4, 4)


def test_a_line_of_metrics_on_a_full_disk_names_the_remedy(tmp_path, small_disk):
    log = MetricLog(tmp_path, Accelerator(cpu=True), 0)
    with small_disk(), pytest.raises(OSError, match=r"metrics.jsonl cannot be written: .*; make room on its disk"):
        log.write(1, {f"loss/{number}": 1.0 for number in range(1000)})


def test_state_is_that_of_the_newest_checkpoint_in_which_it_can_be_read(run):
    assert [path.name for path in run.find_checkpoints()] == ["step-00000002", "step-00000004"]
    assert run.read_state().step == 2


def test_metrics_end_with_the_update_that_is_asked_for_and_have_their_new_names(run):
    assert [line["step"] for line in run.read_metrics()] == [0, 1, 2, 3, 4]
    assert run.read_metrics(until=1) == [{"step": step, "loss": 1.0, "loss/koleo": 0.5} for step in (0, 1)]


def test_checkpoint_leads_to_the_folder_of_its_run(run):
    found = RunFolder.of_checkpoint(run.find_checkpoints()[0])
    assert found.path == run.path.resolve() and found.config_file.name == "config.yaml"


def test_each_student_has_an_export_and_a_picture_of_its_own(run):
    places = [run.export(), run.export("small"), run.features_picture(), run.features_picture("small")]
    assert [place.name for place in places] == ["export", "export-small", "features.png", "features-small.png"]


def test_folder_that_is_not_there_holds_nothing(tmp_path):
    run = RunFolder(tmp_path / "nowhere")
    assert run.read_metrics() == run.find_checkpoints() == [] and run.read_state() is None
    with pytest.raises(FileNotFoundError, match="config.yaml"):
        run.read_config()
