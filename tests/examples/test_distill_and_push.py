"""From images to the Hub: a teacher, a student half its width, its push, and what strangers load."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov2_hf import Dinov2Model

ROOT = Path(__file__).parents[2]

EXAMPLE = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, "src")
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# runs where `dinov2_hf` cannot be imported and nothing is cached
STRANGER = """
import importlib.abc, json, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dinov2_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, pipeline
repo, image, output = sys.argv[1:]
model = AutoModel.from_pretrained(repo).eval()
assert type(model).__module__.startswith("transformers.")
pixels = torch.linspace(-2, 2, 3 * 32 * 40).reshape(1, 3, 32, 40)
with torch.no_grad():
    features = model(pixels).last_hidden_state
piped = torch.tensor(pipeline("image-feature-extraction", model=repo)(Image.open(image)))
save_file({"features": features, "piped": piped, "pixels": pixels}, output)
"""


@pytest.fixture
def run_example(hub_process, monkeypatch, tiny_overrides):
    monkeypatch.chdir(ROOT)

    def run_example(name, *overrides, **environment):
        arguments = [f"examples/{name}.py", *tiny_overrides, "model.drop_path_rate=0", *overrides]
        return hub_process(EXAMPLE, *arguments, ACCELERATE_USE_CPU="1", **environment)

    return run_example


def test_distilled_student_is_pushed_and_gives_strangers_its_features(
    run_example, hub, hub_process, image_folder, tmp_path
):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    run_example("pretrain", "model.hidden_size=64", f"train.output_dir={teacher}")
    pushed = run_example(
        "distill",
        f"distill.teacher={teacher}",
        f"train.output_dir={student}",
        "hub.repo_id=tester/student",
        "hub.push_every=1",
        "hub.private=true",
    )
    assert hub.token not in pushed.stdout + pushed.stderr
    assert "The end of the run" in pushed.stderr

    image = next(image_folder.rglob("*.jpg"))
    hub_process(STRANGER, "tester/student", image, tmp_path / "features.safetensors")
    found = load_file(tmp_path / "features.safetensors")
    backbone = Dinov2Model.from_pretrained(student / "export").eval()
    assert backbone.config.hidden_size == 32
    with torch.no_grad():
        expected = backbone(found["pixels"]).last_hidden_state
    torch.testing.assert_close(found["features"], expected, atol=1e-5, rtol=1e-5)
    assert found["piped"].shape[-1] == 32 and torch.isfinite(found["piped"]).all()

    names = set(hub.files("tester/student"))
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "heads.safetensors", "README.md"} <= names
    assert not any("optim" in name or name.endswith((".pth", ".bin", ".pkl")) for name in names)
    commits = [request for request in hub.seen("POST", r"/commit/")]
    assert len(commits) >= 2  # on the way, and at the end
    card = (student / "export" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert json.loads((student / "export" / "config.json").read_text())["hidden_size"] == 32


def test_run_goes_on_without_the_hub(run_example, tmp_path):
    """Nobody answers at the Hub's address: said with what to do, and the run ends as ever."""
    done = run_example(
        "pretrain",
        f"train.output_dir={tmp_path / 'run'}",
        "hub.repo_id=someone/model",
        "hub.push_every=1",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert "nothing was pushed to someone/model" in done.stderr and "dinov2-hf push" in done.stderr
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


def test_run_that_is_to_push_without_a_token_does_not_start(hub_process, monkeypatch, tiny_overrides):
    monkeypatch.chdir(ROOT)
    arguments = ["examples/pretrain.py", *tiny_overrides, "hub.repo_id=someone/model"]
    done = hub_process(EXAMPLE, *arguments, check=False, HF_TOKEN="", ACCELERATE_USE_CPU="1")
    assert done.returncode == 2
    assert "there is no access token" in done.stderr and "Traceback" not in done.stderr
