"""The example and the README's commands, as a user runs them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from dinov2_hf.config import DINOv2RunConfig, dotted_keys, load_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def run(*arguments, launcher=("-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes=1")):
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def test_config_heads_say_what_to_run():
    for path in CONFIGS:
        head = path.read_text().split("\n\n")[0]
        assert head.startswith("#") and re.search("dinov2_hf|dinov2-hf", head), path.name


def test_published_defaults_need_a_path_alone():
    assert load_config(None, ["data.train.path=/my/images"]).train.num_steps == 125_000


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart, shortened to four updates of 8 images."""
    folder = tmp_path_factory.mktemp("quickstart")
    shortened = ["train.epochs=2", "train.epoch_length=2", "train.batch_size=8", "knn.epochs=2", "train.log_every=1"]
    done = run(
        "examples/pretrain.py",
        "--config",
        "configs/pretrain/quickstart.yaml",
        *shortened,
        f"train.output_dir={folder}",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done


def test_quickstart_leaves_what_the_readme_promises(quickstart):
    folder, _ = quickstart
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "heads.safetensors"):
        assert (folder / "export" / name).stat().st_size > 0
    for name in ("loss.png", "features.png"):
        image = Image.open(folder / name)
        assert image.width > 600 and len(image.convert("RGB").getcolors(1 << 24)) > 100
    assert (folder / "metrics.jsonl").is_file() and (folder / "config.yaml").is_file()
    assert [path.name for path in (folder / "checkpoints").iterdir()]


def test_quickstart_tells_where_everything_is_and_how_to_load_it(quickstart):
    folder, done = quickstart
    for text in (f"{folder}/export", "loss.png", "features.png", "AutoModel.from_pretrained", "pipeline("):
        assert text in done.stdout
    assert re.search(r"k-NN accuracy of the teacher: [\d.]+ % at first, [\d.]+ % at the end", done.stdout)
    assert re.search(r"img/s", done.stderr)


def test_exported_folder_runs_in_stock_transformers(quickstart):
    folder, _ = quickstart
    model = AutoModel.from_pretrained(folder / "export")
    assert type(model).__module__.startswith("transformers.")
    processor = AutoImageProcessor.from_pretrained(folder / "export")
    image = Image.open(folder / "features.png").convert("RGB")
    with torch.no_grad():
        output = model(**processor(image, return_tensors="pt"))
    assert torch.isfinite(output.last_hidden_state).all()


def test_model_card_tells_the_facts_of_the_run(quickstart):
    folder, _ = quickstart
    card = (folder / "export" / "README.md").read_text()
    knn = [line for line in map(json.loads, (folder / "metrics.jsonl").open()) if "knn_accuracy" in line][-1]
    assert f"{knn['knn_accuracy']:.1f} %" in card
    for text in ("library_name: transformers", "pipeline_tag: image-feature-extraction", "| Updates | 4 |", "clothing"):
        assert text in card
    assert "{{" not in card and str(ROOT) not in card


def test_second_launch_continues(quickstart):
    folder, _ = quickstart
    before = (folder / "metrics.jsonl").read_text()
    config = folder / "config.yaml"
    done = run("examples/pretrain.py", "--config", config, f"train.output_dir={folder}")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "continuing from" in done.stderr
    after = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in after] == [json.loads(line)["step"] for line in before.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.rate=1e-4"], "optim.rate in the command line is not a config key; did you mean optim"),
        (["crops.global_size=225"], "crops.global_size=225 is not a multiple of model.patch_size=8; use 224 or 232"),
        (["--config", "nowhere.yaml"], "config file 'nowhere.yaml' does not exist"),
    ],
)
def test_mistakes_are_answered_in_one_line_without_a_traceback(arguments, message):
    done = run("examples/pretrain.py", "--config", "configs/pretrain/quickstart.yaml", *arguments, launcher=())
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_data_that_cannot_be_read_is_answered_in_one_line(tmp_path):
    done = run("examples/pretrain.py", f"data.train.path={tmp_path}", launcher=())
    assert done.returncode == 2
    assert "is an empty folder" in done.stderr and "Traceback" not in done.stderr


def test_help_shows_a_command():
    done = run("examples/pretrain.py", "--help", launcher=())
    assert done.returncode == 0 and "python examples/pretrain.py --config" in done.stdout


def test_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`((?:examples|configs|docs|src)/[\w./]+)`", text) + re.findall(r"\]\(([^)]+)\)", text):
        name, _, anchor = path.partition("#")
        assert (ROOT / name).exists(), path
        if anchor:  # as the Hub and GitHub make it of a heading
            headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings], path
    keys = set(re.findall(r"\b((?:model|crops|dino|ibot|data|train|knn|optim|teacher)\.[a-z_.]+[a-z])=", text))
    assert keys and keys <= set(dotted_keys(DINOv2RunConfig()))
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_training_commands_of_the_readme_are_valid():
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    pattern = r"^accelerate launch (?:--config_file (\S+) +)?examples/pretrain.py (.+)$"
    commands = re.findall(pattern, text, re.MULTILINE)
    assert len(commands) == 1
    for launcher, command in commands:
        assert not launcher or (ROOT / launcher).is_file()
        words = command.split()
        path = ROOT / words[1] if words[0] == "--config" else None
        overrides = [word for word in words if "=" in word]
        assert load_config(path, overrides).data.train.path in ("/my/images", "runs/curated/images")


def test_distillation_commands_of_the_docs_are_valid():
    text = "".join((ROOT / name).read_text() for name in ("README.md", "docs/distillation.md")).replace("\\\n", " ")
    commands = re.findall(r"^accelerate launch examples/distill.py (.+)$", text, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        words = command.split()
        config = load_config(ROOT / words[1], [word for word in words if "=" in word])
        assert config.data.train.path == "/my/images" and config.distill.teacher


def test_quickstart_is_distilled_into_two_students(quickstart, tmp_path):
    folder, _ = quickstart
    shortened = ["train.epochs=2", "train.epoch_length=2", "train.batch_size=8", "knn.epochs=2", "train.log_every=1"]
    small = "preset=tiny hidden_size=24 num_attention_heads=3 num_hidden_layers=2 patch_size=8 drop_path_rate=0"
    done = run(
        "-m",
        "dinov2_hf",
        "distill",
        "--config",
        "configs/distill/quickstart.yaml",
        "--model",
        folder,
        *shortened,
        *(f"students.small.{item}" for item in small.split()),
        f"train.output_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for name, width in (("export", 48), ("export-small", 24)):
        model = AutoModel.from_pretrained(tmp_path / name)
        assert model.config.hidden_size == width and f"{tmp_path}/{name}" in done.stdout
        assert (tmp_path / name / "heads.safetensors").is_file()
    assert re.search(r"k-NN accuracy of the student: [\d.]+ % at first", done.stdout)
    assert re.search(r"k-NN accuracy of small: [\d.]+ % at first", done.stdout)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert any("loss/small.ibot" in line for line in lines) and any("small.knn_accuracy" in line for line in lines)
