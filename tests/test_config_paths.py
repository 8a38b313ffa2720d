"""A relative path in a config file is relative to the folder of the file; others to the working directory."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dinov2_hf.config import (
    BackboneConfig,
    DINOv2RunConfig,
    RunConfig,
    images_of,
    load_config,
    load_saved_config,
    models_of,
    path_to,
    paths_in,
    save_config,
)
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.config.evaluations import EvaluationConfig, FineGrainedEvaluation, RobustnessEvaluation
from dinov2_hf.config.notes import say

PATH = "data.train.path=/images"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory `here` beside the folder `project` of the config file `project/run.yaml`."""
    say.cache_clear()
    for name in ("here", "project"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def write(folder, text):
    path = folder / "project" / "run.yaml"
    path.write_text(text)
    return path


def place(folder, name):
    """Makes a folder with an image."""
    (folder / name).mkdir(parents=True)
    (folder / name / "a.jpg").touch()
    return str(folder / name)


@pytest.mark.parametrize(
    "value", ["photos", "photos/", "./photos", "../project/photos", "photos/*.jpg", "photos/a.jpg"]
)
@pytest.mark.parametrize("spelled", ["absolute", "relative"])
def test_path_in_a_file_is_relative_to_the_folder_of_the_file(folder, value, spelled, caplog):
    place(folder, "project/photos")
    path = write(folder, f"data: {{train: {{path: '{value}'}}}}\n")
    found = load_config(path if spelled == "absolute" else "../project/run.yaml").data.train.path
    assert os.path.abspath(found) == os.path.normpath(folder / "project" / value)
    assert os.path.isabs(found) == (spelled == "absolute")
    assert not caplog.records


def test_paths_of_every_role_follow_the_rule(folder):
    for name in ("photos", "model", "more"):
        place(folder, f"project/{name}")
    (folder / "project" / "knn.yaml").write_text("test: {path: photos}\noutput_dir: results\ncache_dir: features\n")
    path = write(
        folder,
        "data: {train: {path: photos}, mix: {web: {path: more}}}\ninit: {path: model}\ntrain: {output_dir: out}\n"
        "evaluations: {birds: {protocol: knn, config: knn.yaml}}\n"
        "knn: {reference: {path: photos}, query: {path: more}}\n",
    )
    config = load_config(path)
    project = folder / "project"
    assert {key: value for key, _, value in paths_in(config)} == {
        "init.path": str(project / "model"),
        "data.train.path": str(project / "photos"),
        "data.mix.web.path": str(project / "more"),
        "knn.reference.path": str(project / "photos"),
        "knn.query.path": str(project / "more"),
        "evaluations.birds.config": str(project / "knn.yaml"),
        "train.output_dir": str(project / "out"),
    }
    evaluation = load_config(config.evaluations["birds"].config, kind=EvaluationConfig)
    assert (evaluation.test.path, evaluation.output_dir, evaluation.cache_dir) == tuple(
        str(project / name) for name in ("photos", "results", "features")
    )


def test_paths_of_a_curation_follow_the_rule(folder):
    for name in ("pool", "seed", "model"):
        place(folder, f"project/{name}")
    path = write(
        folder,
        "pool: {web: {path: pool/**/*.jpg}}\nseeds: {birds: {path: seed}}\nembed: {model: model}\noutput_dir: out\n"
        "concepts: {model: facebook/dinov2-large}\n",
    )
    config = load_config(path, kind=CurationConfig)
    assert config.pool["web"].path == str(folder / "project" / "pool/**/*.jpg")
    assert dict(models_of(config)) == {
        "embed.model": str(folder / "project" / "model"),
        "concepts.model": "facebook/dinov2-large",
    }
    assert config.output_dir == str(folder / "project" / "out")


def test_path_on_the_command_line_and_a_default_are_relative_to_the_working_directory(folder):
    place(folder, "project/photos")
    path = write(folder, "data: {train: {path: photos}}\n")
    config = load_config(path, ["data.train.path=photos", "init.path=model"])
    assert (config.data.train.path, config.init.path) == ("photos", "model")
    assert config.train.output_dir == "runs/run"
    assert load_config({"data": {"train": {"path": "photos"}}}).data.train.path == "photos"


@pytest.mark.parametrize(
    "value",
    [
        "/images",
        "~/images",
        "generator:circles",
        "https://example.org/a.tar",
        "hf://datasets/me/birds/a.parquet",
        "zip://*.jpg::https://example.org/a.zip",
        "me/birds",
        "mnist",
    ],
)
def test_value_that_is_not_a_relative_path_stays_as_it_is(folder, value):
    assert load_config(write(folder, f"data: {{train: {{path: '{value}'}}}}\n")).data.train.path == value


def test_folder_with_the_form_of_a_name_on_the_hub_is_a_path(folder):
    place(folder, "project/me/birds")
    config = load_config(write(folder, "data: {train: {path: me/birds}}\ninit: {path: me/model}\n"))
    assert config.data.train.path == str(folder / "project" / "me" / "birds") and config.init.path == "me/model"


def test_path_at_which_nothing_lies_is_named_beside_the_file(folder):
    config = load_config(write(folder, "data: {train: {path: some/deep/photos}}\ninit: {path: teacher.pth}\n"))
    assert config.data.train.path == str(folder / "project" / "some/deep/photos")
    assert config.init.path == str(folder / "project" / "teacher.pth")


def test_path_of_0_5_relative_to_the_working_directory_is_used_with_one_line(folder, caplog):
    place(folder, "here/photos")
    place(folder, "here/val")
    path = write(
        folder, "data: {train: {path: photos}}\nknn: {reference: {path: photos}, query: {path: 'val/*.jpg'}}\n"
    )
    for _ in range(2):
        config = load_config(path)
        assert (config.data.train.path, config.knn.query.path) == ("photos", "val/*.jpg")
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{path} has paths that are relative to the working directory, as in dinov2_hf 0.5; ")
    assert "a path in a config file is relative to the folder of the file" in line
    assert "write data.train.path=../here/photos and knn.reference.path=../here/photos and knn.query.path=" in line


def test_path_beside_the_file_comes_before_the_working_directory(folder, caplog):
    place(folder, "here/photos")
    place(folder, "project/photos")
    config = load_config(write(folder, "data: {train: {path: photos}}\n"))
    assert config.data.train.path == str(folder / "project" / "photos") and not caplog.records


@pytest.mark.parametrize("holds_a_run", [True, False])
def test_output_in_the_working_directory_is_continued_only_where_it_holds_a_run(folder, holds_a_run, caplog):
    (folder / "here" / "out").mkdir()
    if holds_a_run:
        save_config(load_config(None, [PATH]), "out/config.yaml")
    config = load_config(write(folder, "train: {output_dir: out}\n"), [PATH])
    assert config.train.output_dir == ("out" if holds_a_run else str(folder / "project" / "out"))
    assert ("write train.output_dir=../here/out" in caplog.text) == holds_a_run


def test_interpolation_of_another_key_is_relative_to_what_that_key_is_relative_to(folder, monkeypatch):
    place(folder, "here/photos")
    place(folder, "project/photos")
    monkeypatch.setenv("PHOTOS", "photos")
    path = write(folder, "knn: {reference: {path: '${data.train.path}'}, query: {path: '${oc.env:PHOTOS}'}}\n")
    config = load_config(path, ["data.train.path=photos"])
    assert config.knn.reference.path == config.data.train.path == "photos"
    assert config.knn.query.path == str(folder / "project" / "photos")


def test_dots_behind_a_link_lead_where_the_file_system_says(folder):
    place(folder, "elsewhere/photos")
    (folder / "elsewhere" / "configs").mkdir()
    os.symlink(folder / "elsewhere" / "configs", folder / "project" / "configs")
    path = folder / "project" / "configs" / "run.yaml"
    path.write_text("data: {train: {path: ../photos}}\n")
    assert os.path.realpath(load_config(path).data.train.path) == os.path.realpath(folder / "elsewhere" / "photos")


# --- files that a command wrote --------------------------------------------------------------------------------------


def test_saved_paths_mean_the_same_from_any_folder(folder, monkeypatch):
    place(folder, "here/photos")
    config = load_config(
        None,
        [
            *("data.train.path=photos", "init.path=facebook/dinov2-base", "train.output_dir=run"),
            *("data.mix.web.path=https://example.org/a.tar", "data.mix.home.path=~/photos"),
        ],
    )
    (folder / "here" / "run").mkdir()
    save_config(config, "run/config.yaml")
    assert config.data.train.path == "photos", "what is saved is a copy"
    monkeypatch.chdir("/")
    for read in (load_saved_config, load_config):
        saved = read(folder / "here" / "run" / "config.yaml")
        assert (saved.data.train.path, saved.train.output_dir) == (
            str(folder / "here" / "photos"),
            str(folder / "here" / "run"),
        )
        assert saved.init.path == "facebook/dinov2-base"
        assert (saved.data.mix["web"].path, saved.data.mix["home"].path) == ("https://example.org/a.tar", "~/photos")


def test_relative_paths_in_what_a_run_of_0_5_saved_are_those_of_the_working_directory(folder, caplog):
    place(folder, "here/photos")
    run = folder / "here" / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        "# Written by dinov2_hf\ndata: {train: {path: some/deep/photos}}\ntrain: {output_dir: run}\n"
    )
    for read in (load_saved_config, load_config):
        config = read(run / "config.yaml")
        assert (config.data.train.path, config.train.output_dir) == ("some/deep/photos", "run")
    assert not caplog.records


# --- fields from outside the package ---------------------------------------------------------------------------------


@dataclass
class ScorerConfig:
    """A section of an own objective."""

    weights: str | None = field(default=None, metadata=path_to("model"))
    table: str | None = field(default=None, metadata=path_to("file"))
    pictures: str | None = field(default=None, metadata=path_to("images"))
    name: str = "photos"


@dataclass
class OwnBackbone(BackboneConfig):
    family: str = "own"
    pretrained: str | None = field(default=None, metadata=path_to("model"))
    stride = 8


@dataclass
class OwnRunConfig(RunConfig):
    objective: str = "own"
    model: BackboneConfig = field(default_factory=OwnBackbone)
    scorers: dict[str, ScorerConfig] = field(default_factory=dict)


def test_marked_fields_of_own_objectives_and_families_are_paths(folder, monkeypatch):
    monkeypatch.setattr("dinov2_hf.config.loading.RUNS", {"own": OwnRunConfig})
    monkeypatch.setattr("dinov2_hf.config.run.RUNS", {"own": OwnRunConfig})
    for name in ("photos", "model", "table"):
        place(folder, f"project/{name}")
    path = write(
        folder,
        "data: {train: {path: photos}}\nmodel: {pretrained: model}\ncrops: {num_local: 0}\n"
        "scorers: {a: {weights: model, table: table, pictures: photos}}\n",
    )
    config = load_config(path, kind=OwnRunConfig)
    photos, model, table = (str(folder / "project" / name) for name in ("photos", "model", "table"))
    assert dict(images_of(config)) == {"data.train.path": photos, "scorers.a.pictures": photos}
    assert dict(models_of(config)) == {"model.pretrained": model, "scorers.a.weights": model}
    assert config.scorers["a"].table == table and config.scorers["a"].name == "photos"


def test_every_key_that_is_called_a_path_or_a_folder_is_marked():
    """A new field that holds a path must not be forgotten."""
    kinds = (DINOv2RunConfig, CurationConfig, EvaluationConfig, FineGrainedEvaluation, RobustnessEvaluation)
    for kind in kinds:
        for section in _sections(kind()):
            for name, item in section.__dataclass_fields__.items():
                if name in ("path", "output_dir", "cache_dir", "teacher", "config") and isinstance(item.type, str):
                    marked = "path" in item.metadata
                    assert marked or not item.type.startswith("str"), f"{type(section).__name__}.{name}"


def _sections(config):
    if hasattr(config, "__dataclass_fields__"):
        yield config
        for value in vars(config).values():
            yield from _sections(value)


def test_images_and_models_of_a_configuration_are_those_that_are_set():
    config = load_config(None, [PATH, "init.path=/a", "knn.query.path=/q", "data.mix.web.path=/web"])
    assert dict(images_of(config, "run: ")) == {
        "run: data.train.path": "/images",
        "run: data.mix.web.path": "/web",
        "run: knn.query.path": "/q",
    }
    assert list(models_of(config)) == [("init.path", "/a")]


def test_warning_is_said_by_the_main_process_only(folder, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    place(folder, "here/photos")
    with caplog.at_level(logging.DEBUG):
        assert load_config(write(folder, "data: {train: {path: photos}}\n")).data.train.path == "photos"
    assert not caplog.records and Path("photos").is_dir()
