"""The table of defaults in docs/fidelity.md is that of the code and of the recipes."""

import re

import pytest
import yaml

from dinov2_hf.config import DINOv2RunConfig, dotted_keys, load_config, value_at
from dinov2_hf.config.recipes import find_recipe

from .pages import DOCS

COLUMNS = {2: "vitl16_short_imagenet1k", 3: "vitl14_142m"}
NOT_OF_TRAINING = ("data.", "knn.", "train.output_dir")
EXCEPTIONS = {"model.patch_size", "model.num_register_tokens", "crops.local_size", "teacher.centering"}


def values_of(recipe=None):
    """The values of all keys by default, or with a recipe."""
    path = find_recipe(recipe, "pretrain").path if recipe else None
    config = load_config(path, ["data.train.path=/x", "train.output_dir=/y"], DINOv2RunConfig)
    return {key: value_at(config, key) for key in dotted_keys(config)}


def table():
    page = (DOCS / "fidelity.md").read_text()
    section = re.search(r"^## Where the defaults come from\n(.*?)^## ", page, re.S | re.M)[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): [yaml.safe_load(cell) for cell in row[1:]] for row in rows[2:]}


def test_the_table_has_the_defaults_of_the_code():
    defaults = values_of()
    assert {key: cells[0] for key, cells in table().items()} == {key: defaults[key] for key in table()}


@pytest.mark.parametrize("column, recipe", COLUMNS.items())
def test_the_table_has_every_key_in_which_a_recipe_differs_from_the_defaults(column, recipe):
    defaults, values = values_of(), values_of(recipe)
    assert {key: cells[column - 1] for key, cells in table().items()} == {key: values[key] for key in table()}
    changed = {key for key, value in values.items() if value != defaults[key] and not key.startswith(NOT_OF_TRAINING)}
    assert changed <= table().keys()


def test_the_short_recipe_differs_in_the_four_keys_that_the_pages_name():
    defaults, values = values_of(), values_of("vitl16_short_imagenet1k")
    changed = {key for key, value in values.items() if value != defaults[key] and not key.startswith(NOT_OF_TRAINING)}
    assert changed == EXCEPTIONS
