"""`dinov2-hf recipes`: lists the recipes, prints one, says where one lies."""

import pytest

from dinov2_hf.cli import main
from dinov2_hf.config import load_config
from dinov2_hf.config.recipes import KINDS, find_recipe, list_recipes, recipes_folder


@pytest.fixture
def shown(capsys):
    """What a command line prints."""

    def run(*words):
        main(["recipes", *words])
        return capsys.readouterr().out

    return run


def test_every_recipe_is_listed_on_one_line_under_its_kind_and_command(shown):
    groups = shown().strip().split("\n\n")
    assert [group.partition(":")[0] for group in groups] == list(KINDS)
    for group in groups:
        first, *lines = group.splitlines()
        kind, _, command = first.partition(": ")
        assert command == KINDS[kind] and "NAME" in command
        recipes = [recipe for recipe in list_recipes() if recipe.kind == kind]
        assert [line.split(maxsplit=1) for line in lines] == [[recipe.stem, recipe.title] for recipe in recipes]


def test_recipe_is_printed_as_the_file_is_and_can_be_copied(shown, tmp_path):
    text = shown("vits14_1gpu")
    assert text == (recipes_folder() / "pretrain" / "vits14_1gpu.yaml").read_text()
    copy = tmp_path / "own.yaml"
    copy.write_text(text)
    given = ["data.train.path=/images", "train.output_dir=/out"]
    assert load_config(copy, given) == load_config("vits14_1gpu", given)


def test_path_of_a_recipe_or_of_their_folder_is_printed(shown):
    assert shown("--path", "fsdp2_8gpu").strip() == str(recipes_folder() / "accelerate" / "fsdp2_8gpu.yaml")
    assert shown("quickstart", "--path").strip() == str(find_recipe("pretrain/quickstart").path)
    assert shown("--path").strip() == str(recipes_folder())


def test_name_of_no_recipe_ends_with_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["recipes", "vits14"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "did you mean pretrain/vits14_1gpu" in error and error.count("\n") == 1
