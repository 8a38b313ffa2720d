"""The wheel in an environment of its own outside the clone: what it holds, what it does, and what it says of extras.

The environment has links to the distributions that the wheel requires without extras, and nothing else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from .tiny import TINY, write_photographs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXTRAS = ("sklearn", "scipy", "faiss", "datatrove", "ray", "nicegui", "onnx", "onnxruntime", "shtab", "xformers")
"""Modules that only extras bring."""


def build_wheel(folder: Path) -> Path:
    """Builds the wheel from a copy of the sources, so that nothing is written into them."""
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("src", "configs", "model_cards"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    subprocess.run(command, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def required(requirements: list[str], extras: set[str], found: dict[str, Distribution]) -> None:
    """Adds the distributions that satisfy `requirements`, and what these require in turn."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            continue
        key = f"{requirement.name.lower()}[{','.join(sorted(requirement.extras))}]"
        if key not in found:
            found[key] = distribution(requirement.name)
            required(found[key].requires or [], requirement.extras, found)


def link_distributions(requirements: list[str], folder: Path) -> None:
    """Links what the required distributions have in `site-packages` into a folder."""
    found: dict[str, Distribution] = {}
    required(requirements, set(), found)
    folder.mkdir()
    for each in found.values():
        for name in {path.parts[0] for path in each.files or ()} - {"..", "__pycache__"}:
            link, target = folder / name, each.locate_file(name)
            if not link.exists() and Path(target).exists():
                link.symlink_to(target)


@dataclass
class Installed:
    """An environment with the wheel, and a folder to work in."""

    folder: Path
    bin: Path

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        environment = {key: value for key, value in os.environ.items() if key not in left_out}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [self.bin / program, *map(str, arguments)], capture_output=True, text=True, cwd=self.folder, env=environment
        )

    def output(self, program: str, *arguments: object) -> str:
        done = self.run(program, *arguments)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The installed wheel beside a folder of photographs."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    environment, work = folder / "environment", folder / "work"
    venv.create(environment, symlinks=True)
    binaries = environment / "bin"
    install = [sys.executable, "-m", "pip", "--python", binaries / "python", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", wheel], check=True, cwd=folder)
    (site,) = environment.glob("lib/python*/site-packages")
    (metadata,) = site.glob("dinov2_hf-*.dist-info")
    link_distributions(Distribution.at(metadata).requires or [], folder / "links")
    (site / "core.pth").write_text(f"{folder / 'links'}\n")
    work.mkdir()
    (work / "images").mkdir()
    write_photographs(work / "images")
    return Installed(work, binaries)


@pytest.fixture(scope="module")
def trained(installed):
    """Trains with the installed command; returns what it prints."""
    few = [*TINY, "train.epochs=2", "knn.reference.path=images", "knn.query.path=images", "knn.query.split=train"]
    few += ["knn.resize_size=32", "knn.crop_size=32", "knn.batch_size=8", "knn.k=5"]
    return installed.output("dinov2-hf", "pretrain", "images", "--output", "run", "--device", "cpu", *few)


FIND = """
import importlib.util, json, sys
import dinov2_hf
print(json.dumps([dinov2_hf.__file__, [name for name in sys.argv[1:] if importlib.util.find_spec(name)]]))
"""


def test_environment_has_the_package_of_the_wheel_and_no_extra(installed):
    place, extras = json.loads(installed.output("python", "-c", FIND, *EXTRAS))
    assert Path(place).is_relative_to(installed.bin.parent) and extras == []


def test_wheel_holds_recipes_model_cards_and_the_mark_of_types(installed):
    (package,) = installed.bin.parent.glob("lib/python*/site-packages/dinov2_hf")
    for folder, pattern in (("configs", "*.yaml"), ("model_cards", "*.md")):
        there = {path.relative_to(package / folder): path.read_bytes() for path in (package / folder).rglob(pattern)}
        assert there == {path.relative_to(ROOT / folder): path.read_bytes() for path in (ROOT / folder).rglob(pattern)}
        assert there
    assert (package / "py.typed").is_file()


def test_recipes_are_listed_by_name(installed):
    listed = installed.output("dinov2-hf", "recipes")
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert re.search(rf"^ +{path.stem} ", listed, re.MULTILINE), path


def test_pretraining_says_where_everything_is_and_what_to_do_next(installed, trained):
    assert re.search(r"k-NN accuracy of the teacher: [\d.]+ % at first, [\d.]+ % at the end", trained)
    for command in re.findall(r"^ +(dinov2-hf .+)", trained, re.MULTILINE):
        assert "run" in command
    assert "moving average" not in trained and trained.count("dinov2-hf ") == 4
    names = {path.name for path in (installed.folder / "run" / "export").iterdir()}
    assert names >= {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "heads.safetensors"}
    card = (installed.folder / "run" / "export" / "README.md").read_text()
    assert "library_name: transformers" in card and "{{" not in card


def test_evaluation_leaves_its_results(installed, trained):
    words = ["--model", "run", "--data", "images", "test.split=train", "k=[1]", "num_workers=0", "--output", "knn"]
    printed = installed.output("dinov2-hf", "evaluate", "knn", *words)
    assert "| k-NN accuracy (%), k = 1 |" in printed
    assert json.loads((installed.folder / "knn" / "results.json").read_text())["results"][0]["value"] == 100


FROM_PYTHON = """
import sys
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained("run/export")
assert type(model).__module__.startswith("transformers."), type(model)
assert "dinov2_hf" not in sys.modules
from PIL import Image
pixels = AutoImageProcessor.from_pretrained("run/export")(Image.open(sys.argv[1]), return_tensors="pt")
first = model(**pixels).pooler_output
import torch
from dinov2_hf import extract_features, open_run
run = open_run("run")
again = extract_features("run", [sys.argv[1]], device="cpu").parts["cls"][:, -1]
assert torch.allclose(first, again.float(), atol=1e-5), (first - again).abs().max()
print(run.metrics()["loss"].iloc[-1], run.export("exported.safetensors", format="timm"))
"""


def test_stock_transformers_and_the_package_give_the_same_features(installed, trained):
    image = next((installed.folder / "images").rglob("*.jpg"))
    loss, path = installed.output("python", "-c", FROM_PYTHON, image).split()
    assert float(loss) > 0 and (installed.folder / path).stat().st_size > 0


WITHOUT_EXTRAS = {
    "curate": "curate images --model run --output curated select=all --device cpu",
    "evaluate": "evaluate logistic --model run --data images test.split=train --device cpu",
    "page": "visualize page run --device cpu",
    "onnx": "export run run.onnx --format onnx",
    "completion": "completion bash",
    "xformers": "pretrain images --output other model.attn_implementation=xformers",
}
"""A command that needs each extra."""

RUN_ALL = """
import contextlib, io, json, sys
from dinov2_hf.cli import main
said = []
for words in sys.argv[1:]:
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words.split())
            status = 0
        except SystemExit as ended:
            status = ended.code
    said.append((status, errors.getvalue()))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def refusals(installed, trained):
    """What each command says that needs an extra, by the name of the extra."""
    printed = installed.output("python", "-c", RUN_ALL, *WITHOUT_EXTRAS.values())
    return dict(zip(WITHOUT_EXTRAS, json.loads(printed)))


@pytest.mark.parametrize("extra", WITHOUT_EXTRAS)
def test_command_without_its_extra_names_it_in_one_line(refusals, extra):
    status, said = refusals[extra]
    line = said.splitlines()[-1]
    assert status == 2 and line.startswith("dinov2-hf: error: ") and f"dinov2_hf[{extra}]" in line
    assert said.count("error") == 1 and "Traceback" not in said
