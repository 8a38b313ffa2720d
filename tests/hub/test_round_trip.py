"""A run, its push, and what others do with it: with stock transformers, and with the trainer."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from dinov2_hf import Dinov2Model
from dinov2_hf.data import EvalTransform
from dinov2_hf.runs import RunFacts
from dinov2_hf.train import Callback, Trainer, build_accelerator
from dinov2_hf.weights import export_folder

PUSH = "import sys; from dinov2_hf.cli import main; main(['push', *sys.argv[1:]])"

STOCK = """
import sys
sys.modules["dinov2_hf"] = None
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, pipeline
repo_id, image, target = sys.argv[1:]
model = AutoModel.from_pretrained(repo_id, revision="v1").eval()
assert type(model).__module__.startswith("transformers.")
pixels = AutoImageProcessor.from_pretrained(repo_id)(Image.open(image), return_tensors="pt").pixel_values
with torch.no_grad():
    tokens = model(pixels).last_hidden_state
extracted = torch.tensor(pipeline("image-feature-extraction", model=repo_id)(image))
save_file({"tokens": tokens, "pipeline": extracted}, target)
"""

CONTINUE = """
import sys
from safetensors.torch import save_file
from dinov2_hf.config import load_config
from dinov2_hf.train import Trainer, build_accelerator
config = load_config(None, sys.argv[2:])
trainer = Trainer.from_config(config, build_accelerator(config.train))
assert trainer.state.head_warmup_steps == 0
save_file({name: tensor.clone() for name, tensor in trainer.objective.teacher.state_dict().items()}, sys.argv[1])
"""


@pytest.fixture
def run_folder(tiny_config, tiny_overrides, image_folder, monkeypatch):
    """The output folder of a run of two updates, with its export."""
    monkeypatch.setattr("dinov2_hf.train.accelerator._available_cores", lambda: 1)
    config = tiny_config("train.epochs=1", f"knn.reference.path={image_folder}", f"knn.query.path={image_folder}")
    trainer = Trainer.from_config(
        config, build_accelerator(config.train), [Callback(1, lambda _: {"knn_accuracy": 51.25})]
    )
    teacher = trainer.run()[""]
    folder = Path(config.train.output_dir)
    transform = EvalTransform(32, 32, config.colors.mean, config.colors.std)
    export_folder(
        folder / "export",
        teacher.pop("backbone").eval(),
        teacher,
        transform,
        config,
        RunFacts.of_run(trainer.run_folder, config),
    )
    return folder


def test_pushed_run_is_loaded_by_stock_transformers_and_continued_by_the_trainer(
    hub, hub_process, run_folder, image_folder, tiny_overrides, tmp_path
):
    done = hub_process(PUSH, run_folder, "tester/tiny", "--private", "--tag", "v1")
    assert done.stdout.startswith("private tester/tiny, revision main, tag v1, commit ")
    files = hub.files("tester/tiny", "v1")
    names = ["README.md", "config.json", "heads.safetensors", "model.safetensors", "preprocessor_config.json"]
    assert sorted(files) == names
    assert not any(str(path).encode() in data for path in (run_folder, image_folder) for data in files.values())
    assert not any(b"exp_avg" in data for data in files.values())

    card = ModelCard(files["README.md"].decode())
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_name) == (51.25, image_folder.name)
    assert 'AutoModel.from_pretrained("tester/tiny")' in card.text and "| Updates | 2 |" in card.text

    image = tmp_path / "image.png"
    Image.effect_noise((50, 40), 80).convert("RGB").save(image)
    hub_process(STOCK, "tester/tiny", image, tmp_path / "features.safetensors")
    found = load_file(tmp_path / "features.safetensors")
    (tmp_path / "config.json").write_bytes(files["config.json"])
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    transform = EvalTransform(
        32, 32, *map(json.loads(files["preprocessor_config.json"]).get, ("image_mean", "image_std"))
    )
    pixels = transform.normalize(torch.from_numpy(transform.pixels(image.read_bytes()))[None])
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(tmp_path).eval()(pixels).last_hidden_state
    torch.testing.assert_close(found["tokens"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["pipeline"], expected, atol=1e-5, rtol=0)

    overrides = [*tiny_overrides, "init.path=tester/tiny", f"train.output_dir={tmp_path / 'continued'}"]
    hub_process(CONTINUE, tmp_path / "teacher.safetensors", *overrides)
    teacher = load_file(tmp_path / "teacher.safetensors")
    for name, tensor in load_file(run_folder / "export" / "heads.safetensors").items():
        assert torch.equal(teacher[name], tensor), name
    for name, tensor in load_file(run_folder / "export" / "model.safetensors").items():
        assert torch.equal(teacher[f"backbone.{name}"], tensor), name
