"""Recipes by name: found in a clone and in an installed package, listed, resolved, refused with the nearest names."""

import logging
import shutil

import pytest

from dinov2_hf.config import (
    DINOv2RunConfig,
    FeatureDistillationConfig,
    PrototypeDistillationConfig,
    load_config,
    recipes,
    save_config,
)
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.config.evaluations import EvaluationConfig, KnnEvaluation
from dinov2_hf.config.recipes import KINDS, find_recipe, list_recipes, recipes_folder

PATH = "data.train.path=/images"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The folder of the recipes as a wheel installs them: in the package, without the photographs of a clone."""
    package = tmp_path / "site-packages" / "dinov2_hf"
    shutil.copytree(recipes_folder(), package / "configs")
    monkeypatch.setattr(recipes, "_PACKAGE", package)
    return package / "configs"


def test_every_recipe_is_listed_with_its_kind_and_a_line():
    found = list_recipes()
    assert {recipe.path for recipe in found} == set(recipes_folder().rglob("*.yaml"))
    assert {recipe.kind for recipe in found} == set(KINDS)
    for recipe in found:
        assert recipe.path == recipes_folder() / recipe.kind / f"{recipe.stem}.yaml"
        assert 20 < len(recipe.title) <= 118 and recipe.title[0] not in "# ", recipe.name
        assert recipe.title.endswith((".", "?", ").")), f"{recipe.name}: its first line is not a whole sentence"


def test_recipes_of_a_clone_and_of_an_installed_package_are_the_same(installed):
    assert recipes_folder() == installed
    assert [recipe.name for recipe in list_recipes()] == sorted(
        (f"{path.parent.name}/{path.stem}" for path in installed.rglob("*.yaml")),
        key=lambda name: (list(KINDS).index(name.partition("/")[0]), name),
    )
    assert load_config("vits14_1gpu", [PATH]).train.output_dir == "runs/vits14_1gpu"


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("vits14_1gpu", None, "pretrain/vits14_1gpu"),
        ("vits14_1gpu", "distill", "pretrain/vits14_1gpu"),
        ("quickstart", "pretrain", "pretrain/quickstart"),
        ("quickstart", "distill", "distill/quickstart"),
        ("curate/quickstart", "pretrain", "curate/quickstart"),
        ("fsdp2_8gpu", None, "accelerate/fsdp2_8gpu"),
    ],
)
def test_name_is_looked_for_in_the_own_kind_first(name, kind, found):
    assert find_recipe(name, kind).name == found


def test_name_of_several_recipes_is_refused_naming_them():
    with pytest.raises(ValueError) as caught:
        load_config("quickstart", kind=KnnEvaluation)
    assert str(caught.value) == (
        "several recipes are called 'quickstart'; write pretrain/quickstart or distill/quickstart or curate/quickstart"
    )


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vits14_1gp", "pretrain/vits14_1gpu"),
        ("pretrain/vitg14", "pretrain/vitg14_142m"),
        ("configs/pretrain/vits14_1gpu.yaml", "pretrain/vits14_1gpu"),
        ("zzzz", None),
    ],
)
def test_name_of_no_recipe_is_refused_in_one_line_with_the_nearest(name, nearest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        load_config(name, [PATH])
    message = str(caught.value)
    assert message.startswith(f"config file {name!r} does not exist, and no recipe has that name; ")
    assert "\n" not in message
    assert f"did you mean {nearest}" in message if nearest else message.endswith("`dinov2-hf recipes` lists them")


def test_name_that_holds_a_token_is_not_shown():
    with pytest.raises(FileNotFoundError) as caught:
        load_config("hf_" + "a" * 30, [PATH])
    assert "hf_***" in str(caught.value) and "aaaa" not in str(caught.value)


def test_launch_file_of_accelerate_is_refused_naming_the_command():
    with pytest.raises(
        ValueError, match=r"one_gpu is a launch file .* accelerate launch --config_file .*--path one_gpu"
    ):
        load_config("one_gpu", [PATH])


def test_file_of_the_same_name_comes_before_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vits14_1gpu").write_text("train: {seed: 7}\n")
    assert load_config("vits14_1gpu", [PATH]).train.seed == 7
    (tmp_path / "vitb14_8gpu").mkdir()
    assert load_config("vitb14_8gpu", [PATH]).model.preset == "base"


def test_kind_of_a_configuration_says_which_recipe_a_name_means():
    teacher = ["distill.teacher=/teacher"]
    assert type(load_config("quickstart")) is DINOv2RunConfig
    assert type(load_config("quickstart", teacher, PrototypeDistillationConfig)) is PrototypeDistillationConfig
    assert load_config("quickstart", teacher, FeatureDistillationConfig).objective == "distill_prototypes"
    assert load_config("quickstart", ["embed.model=m"], CurationConfig).rows_per_shard == 1000
    assert load_config("vits14_from_features", [PATH]).objective == "distill_features"


RECIPES = [recipe for recipe in list_recipes() if recipe.kind in ("pretrain", "distill", "curate")]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_recipe_of_a_run_parses_by_name_and_has_an_output_of_its_own(recipe):
    given = {
        "pretrain": [PATH, "init.path=/first"],
        "distill": [PATH, "distill.teacher=/teacher"],
        "curate": ["embed.model=m"],
    }
    kind = CurationConfig if recipe.kind == "curate" else DINOv2RunConfig
    config = load_config(recipe.name, given[recipe.kind], kind)
    output = config.output_dir if recipe.kind == "curate" else config.train.output_dir
    prefix = "" if recipe.kind == "pretrain" else f"{recipe.kind}_"
    assert output in (f"runs/{prefix}{recipe.stem}", "/data/lvd")


@pytest.mark.parametrize(
    ("name", "kind", "given", "key"),
    [
        ("highres_vitl14", DINOv2RunConfig, [PATH], "init.path"),
        ("quickstart", PrototypeDistillationConfig, [], "distill.teacher"),
        ("vits14_from_vitg14", PrototypeDistillationConfig, [PATH], "distill.teacher"),
        ("quickstart", CurationConfig, [], "embed.model"),
    ],
)
def test_recipe_that_needs_a_model_of_the_user_names_the_key(name, kind, given, key):
    with pytest.raises(ValueError) as caught:
        load_config(name, given, kind)
    assert str(caught.value).startswith(f"{key} is ") and "\n" not in str(caught.value)


def test_value_left_open_is_refused_wherever_it_stands_and_can_be_set(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("init: {path: '???'}\ncrops: {global_scale: '???'}\ndata: {mix: {web: {path: '???'}}}\n")
    keys = ["init.path=/a", "crops.global_scale=[0.4,1]", "data.mix.web.path=/web"]
    config = load_config(path, [PATH, *keys])
    assert (config.init.path, config.crops.global_scale, config.data.mix["web"].path) == ("/a", [0.4, 1.0], "/web")
    for key in keys:
        with pytest.raises(ValueError, match=f"{key.partition('=')[0]} is left open in {path}; set it: "):
            load_config(path, [PATH, *(other for other in keys if other != key)])
    with pytest.raises(ValueError, match="data.train.path is left open in the command line"):
        load_config(None, ["data.train.path=???"])


# --- the bundled photographs -----------------------------------------------------------------------------------------


def test_photographs_of_a_clone_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs = recipes_folder().parent / "examples" / "data" / "clothing"
    config = load_config("quickstart")
    for source in (config.data.train, config.knn.reference, config.knn.query):
        assert source.path == str(photographs) and photographs.is_dir()


def test_installed_recipe_asks_for_images_in_the_place_of_the_photographs(installed, caplog):
    with pytest.raises(ValueError, match="data.train.path is not set; give a folder of images: data.train.path="):
        load_config("quickstart")
    assert "not set: data.train.path, knn.reference.path, knn.query.path; give images" in caplog.text
    config = load_config(installed / "pretrain" / "quickstart.yaml", [PATH])
    assert config.data.train.path == "/images" and not config.knn.enabled
    with pytest.raises(ValueError, match="pool.clothing.path is not set"):
        load_config("quickstart", ["embed.model=m"], CurationConfig)


# --- the default of the output folder --------------------------------------------------------------------------------


def test_output_folder_is_named_after_the_config_file_or_the_objective(tmp_path):
    path = tmp_path / "birds.yaml"
    path.write_text("")
    features = [PATH, "distill.teacher=/t", "objective=distill_features", "crops.num_local=0"]
    assert load_config(path, [PATH]).train.output_dir == "runs/birds"
    assert load_config(path, features).train.output_dir == "runs/distill_birds"
    assert load_config(None, [PATH]).train.output_dir == "runs/dinov2"
    assert load_config(None, features).train.output_dir == "runs/distill_features"
    assert load_config(path, [PATH, "train.output_dir=here"]).train.output_dir == "here"
    assert load_config(path, ["pool.w.path=/w", "embed.model=m", "select=all"], CurationConfig).output_dir == (
        "runs/curate_birds"
    )
    with pytest.raises(ValueError, match="output_dir is not set"):
        load_config(None, ["pool.w.path=/w", "embed.model=m", "select=all"], CurationConfig)
    assert load_config(path, [], EvaluationConfig).output_dir is None


def test_configuration_made_in_python_without_an_output_folder_is_refused():
    config = DINOv2RunConfig()
    config.data.train.path = "/images"
    with pytest.raises(ValueError, match="train.output_dir is not set; give a folder"):
        config.check()


def test_run_in_the_default_folder_of_0_5_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "pretrain").mkdir(parents=True)
    config = load_config(None, [PATH])
    assert not caplog.records
    save_config(config, tmp_path / "runs" / "pretrain" / "config.yaml")
    with caplog.at_level(logging.WARNING):
        load_config(None, [PATH])
    (line,) = (record.getMessage() for record in caplog.records)
    assert "this one goes to runs/dinov2; to continue that one, set train.output_dir=runs/pretrain" in line
