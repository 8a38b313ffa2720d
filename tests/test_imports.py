"""Imports go down only: cli -> train, evaluation, curation, hub -> ssl, data, features -> models, losses."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dinov2_hf"

# What each part of the package may import from it, plus `files`, which every part may use. `ssl.batch` is a leaf that
# `data` may use.
ALLOWED = {
    "files": set(),
    "config": set(),
    "models": set(),
    "losses": set(),
    "ssl.batch": set(),
    "data": {"config", "ssl.batch"},
    "ssl": {"config", "ssl.batch", "models", "losses"},
    "features": {"config", "data", "models"},
    "train": {"config", "data", "ssl", "models", "losses"},
    "evaluation": {"config", "data", "features", "models"},
    "curation": {"config", "data", "features", "models"},
    "visualize": {"config", "data", "evaluation", "features", "models"},
    "hub": {"config", "features", "models"},
    "launch": {"config", "data", "evaluation", "features", "hub", "models", "train", "visualize"},
    "exchange": {"config", "features", "hub", "models", "train"},
    "cli": {"config", "curation", "data", "evaluation", "exchange", "features", "hub", "models", "train", "visualize"},
    "": {"models"},
}


def part_of(module: str) -> str:
    if module == "ssl.batch":
        return module
    return module.split(".")[0]


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, relative to the package."""
    package = list(path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            elif (node.module or "").split(".")[0] == "dinov2_hf":
                base = node.module.split(".")[1:]
            else:
                continue
            base = [name for name in base if name]
            found |= {".".join(base)} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("dinov2_hf.") for alias in node.names if "dinov2_hf" in alias.name}
    return found


def external_imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    part = part_of(module)
    assert part in ALLOWED, f"{part} has no place in the layout"
    for imported in imports_of(path):
        target = part_of(imported)
        assert target in {part, "files", *ALLOWED[part]}, f"{module or '__init__'} imports {imported}"


def test_losses_import_torch_alone():
    for path in (PACKAGE / "losses").glob("*.py"):
        assert external_imports_of(path) <= {"torch", "__future__", "collections", "dataclasses", "math"}, path.name


def test_config_imports_nothing_heavy():
    heavy = {"torch", "accelerate", "transformers", "datasets", "numpy"}
    for path in (PACKAGE / "config").glob("*.py"):
        assert not external_imports_of(path) & heavy, path.name


def test_files_hold_one_idea():
    """The soft limit of 400 lines."""
    long = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}
