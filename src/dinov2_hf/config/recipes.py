"""Recipes: the configurations under `configs/`, of a clone or in the installed package, and their names."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from .secrets import masked

KINDS = {
    "pretrain": "dinov2-hf pretrain --config NAME",
    "distill": "dinov2-hf distill --config NAME",
    "evaluate": "dinov2-hf evaluate EVALUATOR --config NAME",
    "curate": "dinov2-hf curate --config NAME",
    "accelerate": 'accelerate launch --config_file "$(dinov2-hf recipes --path NAME)"',
}
"""The folders of recipes, each with the command that takes one."""

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Recipe:
    """A file of `configs/`."""

    kind: str
    """Its folder: one of `KINDS`."""
    stem: str
    """The name of the file, without `.yaml`."""
    path: Path

    @property
    def name(self) -> str:
        """The whole name, such as `pretrain/quickstart`."""
        return f"{self.kind}/{self.stem}"

    @property
    def title(self) -> str:
        """The first line of the file, which says what it is for."""
        return self.path.read_text().partition("\n")[0].lstrip("# ")


def recipes_folder() -> Path:
    """Returns the folder of the recipes: `configs/` of a clone, or what the installed package has of it."""
    clone = _PACKAGE.parents[1] / "configs"
    return clone if _PACKAGE.parent.name == "src" and clone.is_dir() else _PACKAGE / "configs"


def list_recipes() -> list[Recipe]:
    """Returns all recipes, by kind and name."""
    folder = recipes_folder()
    return [Recipe(kind, path.stem, path) for kind in KINDS for path in sorted((folder / kind).glob("*.yaml"))]


def find_recipe(name: str, kind: str | None = None) -> Recipe:
    """Returns the recipe that a name means: `vits14_1gpu`, or `pretrain/quickstart` where several kinds have it.

    Args:
        kind: where it is looked for first.

    Raises:
        FileNotFoundError: there is no such recipe; names the nearest ones.
        ValueError: several kinds have one of that name.
    """
    recipes = list_recipes()
    found = [recipe for recipe in recipes if name in (recipe.stem, recipe.name)]
    if preferred := [recipe for recipe in found if recipe.kind == kind]:
        found = preferred
    if not found:
        known = {key: recipe.name for recipe in reversed(recipes) for key in (recipe.name, recipe.stem)}
        wanted = Path(name).with_suffix("").name if name.endswith(".yaml") else name
        near = dict.fromkeys(known[key] for key in difflib.get_close_matches(wanted, known, n=3))
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise FileNotFoundError(
            masked(f"config file {name!r} does not exist, and no recipe has that name{hint}")
            + ("" if near else "; `dinov2-hf recipes` lists them")
        )
    if len(found) > 1:
        raise ValueError(f"several recipes are called {name!r}; write {' or '.join(recipe.name for recipe in found)}")
    return found[0]
