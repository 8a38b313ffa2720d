"""`dinov2-hf config`: every value that a command would use, and where it comes from."""

import re

import pytest

from dinov2_hf.cli import main
from dinov2_hf.config import RUNS, dotted_keys, load_config, save_config, value_at
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.config.evaluations import DepthEvaluation, KnnEvaluation
from dinov2_hf.config.recipes import list_recipes

PATH = "data.train.path=/images"


@pytest.fixture
def shown(capsys):
    """What a command line prints."""

    def run(*words):
        main(["config", *map(str, words)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """The line with which a command line is refused."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["config", *map(str, words)])
        output = capsys.readouterr()
        assert ended.value.code == 2 and output.err.count("\n") == 1 and not output.out
        return output.err

    return run


def origins(text):
    """The comment at each value, by dotted key."""
    found, sections, before = {}, [], None
    for line in text.splitlines():
        item = re.match(r"( *)'?(\w+)'?:(.*)", line)
        if item is None:
            before = line.strip().removeprefix("# ") if line.strip().startswith("#") else before
            continue
        sections[len(item[1]) // 2 :] = [item[2]]
        _, mark, origin = item[3].rpartition("  # ")
        if mark or before:
            found[".".join(sections)], before = origin if mark else before, None
    return found


def test_every_value_is_printed_with_where_it_comes_from(shown, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("optim: {base_lr: 0.002, min_lr: 0.0001}\ndata: {mix: {web: {path: /web}}}\n")
    found = origins(shown(path, PATH, "optim.base_lr=1e-3"))
    config = load_config(path, [PATH])
    assert list(found) == list(dotted_keys(config))
    assert found["optim.base_lr"] == found["data.train.path"] == "the command line"
    assert found["optim.min_lr"] == found["data.mix.web.path"] == str(path)
    assert found["optim.betas"] == found["data.mix.web.weight"] == found["train.output_dir"] == "default"


@pytest.mark.parametrize(
    "values",
    [
        "",
        "init.path='a: b #c'",
        "data.mix.no.path=/web",
        f"data.train.split='{'many words ' * 20}'",
        "colors.std=[1,1,1]",
    ],
)
def test_what_is_printed_is_a_config_file_that_gives_the_same(values, shown, tmp_path):
    words = ["quickstart", *filter(None, [values])]
    path = tmp_path / "again.yaml"
    path.write_text(shown(*words, "train.output_dir=/out"))
    config = load_config("quickstart", [*words[1:], "train.output_dir=/out"])
    if config.init.path:
        config.init.path = str(tmp_path.cwd() / config.init.path)
    assert load_config(path) == config


def test_paths_are_printed_as_seen_from_anywhere(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    text = shown("data.train.path=photos")
    assert f"path: {tmp_path}/photos  # the command line" in text
    assert f"output_dir: {tmp_path}/runs/dinov2  # default" in text


def test_recipe_is_named_by_its_name(shown):
    found = origins(shown("vits14_1gpu", PATH))
    assert found["optim.base_lr"] == "the recipe pretrain/vits14_1gpu"
    assert origins(shown("--config", "vits14_1gpu", PATH)) == found


def test_configuration_of_a_run_comes_from_its_folder(shown, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = load_config(None, [PATH, f"train.output_dir={run}", "train.seed=3"])
    save_config(config, run / "config.yaml")
    text = shown(run, "train.seed=4")
    assert f"base_lr: 0.004  # {run / 'config.yaml'}" in text and "seed: 4  # the command line" in text
    found = origins(text)
    assert set(found.values()) == {str(run / "config.yaml"), "the command line"}


def test_what_was_translated_from_0_5_is_said(shown, tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("distill: {teacher: /teacher, objective: features}\ncrops: {num_local: 0}\n")
    found = origins(shown(path, PATH))
    assert found["objective"] == f"{path}, translated from 0.5" and found["distill.teacher"] == str(path)


@pytest.mark.parametrize("words", [["--objective", "distill_features"], ["objective=distill_features"]])
def test_objective_is_chosen_by_option_or_key(words, shown):
    text = shown(*words, PATH, "distill.teacher=/t", "crops.num_local=0")
    assert "objective: distill_features  # the command line" in text and "cosine_weight: 0.9  # default" in text


def test_configurations_of_other_commands_are_printed(shown, tmp_path):
    assert "cosine" not in shown("--for", "distill", PATH, "distill.teacher=/t")
    knn = origins(shown("--for", "knn", "train.path=/x"))
    assert list(knn) == list(dotted_keys(load_config(None, ["train.path=/x"], KnnEvaluation)))
    depth = shown("depth_kitti")
    assert "max_depth: 80.0  # the recipe evaluate/depth_kitti" in depth
    assert list(origins(depth)) == list(dotted_keys(load_config("depth_kitti", kind=DepthEvaluation)))
    curate = origins(shown("curate/quickstart", "embed.model=/m"))
    config = load_config("curate/quickstart", ["embed.model=/m"], CurationConfig)
    assert {key for key in curate} == set(dotted_keys(config)) and curate["rows_per_shard"].startswith("the recipe")
    assert origins(shown("quickstart", "--for", "curate", "embed.model=/m")) == curate
    save_config(config, tmp_path / "curation.yaml")
    assert origins(shown(tmp_path))["rows_per_shard"] == str(tmp_path / "curation.yaml")


RECIPES = [recipe for recipe in list_recipes() if recipe.kind != "accelerate"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_can_be_printed_by_its_name(recipe, shown):
    given = {
        "pretrain": [PATH, "init.path=/first"],
        "distill": [PATH, "distill.teacher=/teacher"],
        "curate": ["embed.model=/m"],
        "evaluate": [],
    }
    found = origins(shown(recipe.name, *given[recipe.kind]))
    assert f"the recipe {recipe.name}" in found.values() and "default" in found.values()


def test_what_a_run_would_refuse_is_refused_in_one_line(refused, tmp_path):
    assert "data.train.path is not set" in refused("vits14_1gpu")
    assert "init.path is left open" in refused("highres_vits14", PATH)
    assert "did you mean optim.base_lr" in refused(PATH, "optim.base_lrr=1")
    assert "did you mean pretrain/vits14_1gpu" in refused("vits14", PATH)
    assert "is a launch file of accelerate" in refused("one_gpu", PATH)
    assert f"{tmp_path} has no config.yaml and no curation.yaml" in refused(tmp_path)
    assert "nothing" in refused("--for", "nothing") and "dinov1" in refused(PATH, "--objective", "dinov1")


def test_token_is_never_printed(refused, tmp_path, monkeypatch):
    token = "hf_" + "a" * 30
    path = tmp_path / "own.yaml"
    path.write_text(f"init: {{path: {token}}}\n")
    assert token not in refused(path, PATH) and token not in refused(PATH, f"init.path={token}")
    monkeypatch.setenv("HF_TOKEN", "b" * 40)
    path.write_text("init: {path: '${oc.env:HF_TOKEN}'}\n")
    assert "b" * 20 not in refused(path, PATH)


def test_objectives_are_those_that_are_registered(shown):
    for objective in ("dinov2", "distill_prototypes"):
        assert objective in RUNS
        keys = [PATH] + ["distill.teacher=/t"] * objective.startswith("distill")
        config = load_config(None, [f"objective={objective}", *keys])
        text = shown(f"objective={objective}", *keys)
        assert f"seed: {value_at(config, 'train.seed')}  # default" in text
