"""A name on the Hub is a source like a folder, with heads and preprocessor where it has them."""

import json

import torch
from safetensors.torch import load_file

from dinov2_hf.weights import export_source

SCRIPT = """
import sys
from huggingface_hub import HfApi
from dinov2_hf.cli import main

folder, output, *patterns = sys.argv[1:]
api = HfApi()
api.create_repo("tester/model")
api.upload_folder(repo_id="tester/model", folder_path=folder, ignore_patterns=patterns)
main(["inspect", "tester/model"])
main(["export", "tester/model", output])
"""


def test_model_on_the_hub_is_inspected_and_exported_with_all_that_is_beside_it(run, hub_process, tmp_path):
    export_source(str(run.folder), tmp_path / "first")
    done = hub_process(SCRIPT, tmp_path / "first", tmp_path / "second")
    assert "model on the Hub that transformers loads" in done.stdout and "K = 24 prototypes" in done.stdout
    for name in ("model.safetensors", "heads.safetensors"):
        before, after = (load_file(tmp_path / folder / name) for folder in ("first", "second"))
        assert before.keys() == after.keys()
        assert [key for key in before if not torch.equal(before[key], after[key])] == []
    for name in ("config.json", "preprocessor_config.json"):
        before, after = (json.loads((tmp_path / folder / name).read_text()) for folder in ("first", "second"))
        assert before == after
    assert "converted by `dinov2_hf` from `tester/model`" in (tmp_path / "second" / "README.md").read_text()


def test_model_on_the_hub_may_be_published_without_heads_and_preprocessor(run, hub_process, tmp_path):
    export_source(str(run.folder), tmp_path / "first")
    done = hub_process(SCRIPT, tmp_path / "first", tmp_path / "second", "heads.safetensors", "preprocessor_config.json")
    assert "does not tell how images are prepared" in done.stdout
    assert not (tmp_path / "second" / "heads.safetensors").exists()
    assert json.loads((tmp_path / "second" / "preprocessor_config.json").read_text())["image_mean"][0] == 0.485
