"""Imports go down only, in the order of the layout."""

import ast
from pathlib import Path

import dinov2_hf

PACKAGE = Path(__file__).parents[1] / "src" / "dinov2_hf"

BELOW = {
    "files": "",
    "launcher": "",
    "config": "files",
    "data": "config files",
    "backbones": "config files",
    "objectives": "backbones data config files",
    "runs": "objectives backbones data config files",
    "weights": "runs objectives backbones data config files",
    "features": "weights runs objectives backbones data config files",
    "train": "weights runs objectives backbones data config files launcher",
    "evaluation": "train features weights runs objectives backbones data config files",
    "visualize": "evaluation train features weights runs objectives backbones data config files",
    "curation": "train features weights runs objectives backbones data config files",
    "hub": "train features weights runs objectives backbones data config files",
    "api": "evaluation visualize curation hub train features weights runs objectives backbones data config files",
    "cli": "api evaluation visualize curation hub train features weights runs objectives backbones data config files "
    "launcher",
    "__main__": "cli",
    "": "api evaluation objectives backbones data",
}
"""What each part of the package may import from it."""

FILES = sorted(PACKAGE.rglob("*.py"))


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


def test_imports_go_down_only():
    wrong = []
    for path in FILES:
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        part = module.split(".")[0]
        assert part in BELOW, f"{part} has no place in the layout"
        allowed = {part, "__version__", *BELOW[part].split()}
        wrong += [f"{module} imports {name}" for name in imports_of(path) if name.split(".")[0] not in allowed]
    assert wrong == []


def test_terms_import_torch_only():
    standard = {"__future__", "collections", "dataclasses", "math", "typing"}
    for path in (PACKAGE / "objectives" / "terms").glob("*.py"):
        assert external_imports_of(path) <= {"torch", *standard}, path.name


def test_config_imports_nothing_heavy():
    heavy = {"torch", "accelerate", "transformers", "datasets", "numpy"}
    for path in (PACKAGE / "config").rglob("*.py"):
        assert not external_imports_of(path) & heavy, path.name


def test_every_public_name_is_found_and_known_to_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert {name: part for part, names in dinov2_hf._PLACES.items() for name in names} == typed
    assert set(dinov2_hf.__all__) == {*typed, "__version__"}
    for name in dinov2_hf.__all__:
        assert getattr(dinov2_hf, name) is not None
