"""An export as small as they come."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

CARD = """---
library_name: transformers
---

# A model

Load it with `AutoModel.from_pretrained("PATH_OR_REPO")`, see https://example.org/docs/how/to; trained with
`data.train.path=/my/images`.
"""


@pytest.fixture
def export(tmp_path):
    """The files that every export has, with a few numbers in place of weights."""
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("model", "heads"):
        tensors = {"encoder.weight": rng.random(30_000), "optimism.exp_average": rng.random(10)}
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 32}, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 28}) + "\n")
    (folder / "README.md").write_text(CARD)
    return folder
