"""The code of the pages runs, page by page, as a reader runs it: Python blocks, files, commands and tests."""

import importlib
import inspect
import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from dinov2_hf.cli import main
from dinov2_hf.config import RUNS, load_config, save_config

from ..reader import SMALL
from ..registries import importing_from
from .pages import DOCS, ROOT, blocks_of

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
EXTEND = [page for page in PAGES if page.parent.name == "extend"]
NOT_RUN = {
    "torch.hub.load": "fetches code from the Hub",
    "timm.create_model": "timm is not among the requirements",
    "onnxruntime.InferenceSession": "tests/weights/test_onnx.py does it",
    "push_folder": "needs a Hub; tests/hub/test_push.py does it",
    "background.submit": "needs a Hub",
}
"""Blocks that are compiled only, by what they call, and why."""


@pytest.fixture
def read(tmp_path, monkeypatch, image_folder, small_set, small_run):
    """Reads a page from top to bottom in a folder with images and a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples/data").mkdir(parents=True)
    (tmp_path / "examples/data/clothing").symlink_to(small_set)
    for name in ("quickstart", "mine"):
        shutil.copytree(small_run.folder, tmp_path / "runs" / name)
    shutil.copytree(small_run.export(), tmp_path / "OUTPUT")
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "scan.png")
    Image.fromarray((grey / 256).astype(np.uint8)).convert("RGB").save(tmp_path / "image.jpg")
    page_module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page_module)

    without_knn = [*SMALL, "knn.reference.path=null"]
    save_config(load_config("quickstart", without_knn), "small.yaml")
    distilling = [*without_knn, "distill.teacher=runs/quickstart"]
    save_config(load_config("distill/quickstart", distilling, RUNS["distill_prototypes"]), "small_student.yaml")
    words = {
        "/my/images": str(image_folder),
        '"quickstart"': '"small.yaml"',
        '"distill/quickstart"': '"small_student.yaml"',
    }

    def read(page):
        names = vars(page_module)
        for block in blocks_of(page):
            text = re.sub("|".join(words), lambda match: words[match[0]], block.text)
            if block.title:
                Path(block.title).write_text(text)
            elif block.language == "python":
                code = compile("\n" * (block.line - 1) + text, str(page), "exec")
                if not any(call in text for call in NOT_RUN):
                    exec(code, names)
            elif block.language == "bash" and page in EXTEND:
                for command in text.replace("\\\n", " ").splitlines():
                    program, *arguments = shlex.split(command, comments=True)
                    assert program == "dinov2-hf"
                    main(arguments)
                    AcceleratorState._reset_state(reset_partial_state=True)
            AcceleratorState._reset_state(reset_partial_state=True)
        return names

    with importing_from(tmp_path):
        yield read
    AcceleratorState._reset_state(reset_partial_state=True)


def python_blocks(page):
    return [block for block in blocks_of(page) if block.language == "python"]


TRAINING = ("evaluator", "objective", "source")
"""Pages that train runs of their own, beside those of which one is in the fast run."""


def page_param(page):
    return pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in TRAINING else [])


@pytest.mark.parametrize("page", [page_param(page) for page in PAGES if python_blocks(page)])
def test_code_of_the_page_runs(read, page, tmp_path):
    read(page)
    for path in tmp_path.glob("test_*.py"):
        for name, test in vars(importlib.import_module(path.stem)).items():
            if name.startswith("test_"):
                torch.manual_seed(0)
                folder = tmp_path / name
                folder.mkdir()
                test(**({"tmp_path": folder} if inspect.signature(test).parameters else {}))


def test_every_exception_names_a_block():
    text = "".join(block.text for page in PAGES for block in python_blocks(page))
    assert all(call in text for call in NOT_RUN)
