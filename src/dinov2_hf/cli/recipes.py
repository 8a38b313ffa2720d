"""`dinov2-hf recipes`: the configurations that come with the package."""

from __future__ import annotations

import argparse

from .parser import Commands


def add_recipes(commands: Commands) -> None:
    parser = commands.add_parser(
        "recipes",
        help="list the recipes, or print one",
        about="List the recipes that --config takes by name, with one line each, or print one, to read it or to copy "
        "it. The head of each says what it needs and what it reaches.",
        example="dinov2-hf recipes\ndinov2-hf recipes vits14_1gpu > own.yaml\ndinov2-hf recipes --path fsdp2_8gpu",
    )
    parser.add_input("name", "", "name of a recipe, such as vits14_1gpu or pretrain/quickstart", metavar="NAME")
    parser.add_argument(
        "--path", action="store_true", help="print the path of the file, or of the folder of all recipes"
    )
    parser.set_defaults(run=show_recipes)


def show_recipes(args: argparse.Namespace) -> None:
    from ..config.recipes import KINDS, find_recipe, list_recipes, recipes_folder

    if args.name:
        recipe = find_recipe(args.name, "pretrain")
        print(recipe.path if args.path else recipe.path.read_text(), end="\n" if args.path else "")
        return
    if args.path:
        print(recipes_folder())
        return
    recipes = list_recipes()
    width = max(len(recipe.stem) for recipe in recipes)
    for number, (kind, command) in enumerate(KINDS.items()):
        print("\n" * bool(number) + f"{kind}: {command}")
        for recipe in recipes:
            if recipe.kind == kind:
                print(f"  {recipe.stem:{width}}  {recipe.title}")
