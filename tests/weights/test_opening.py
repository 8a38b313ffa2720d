"""What is read of a run when its features are asked for: each thing once, and nothing that features do not need."""

from collections import Counter

import pytest
import torch

from dinov2_hf.config import load_config
from dinov2_hf.data import evaluation_transform
from dinov2_hf.features import open_backbone
from dinov2_hf.runs import integrity, manifest
from dinov2_hf.weights import open_weights

WATCHED = {
    "config": ("dinov2_hf.runs.integrity.load_saved_config", integrity.load_saved_config),
    "checksums": ("dinov2_hf.runs.manifest.sha256_of", manifest.sha256_of),
}


@pytest.fixture
def counts(monkeypatch):
    """How often the config was parsed, and each file read for its checksum; fails where metrics or facts are read."""
    counts = Counter()

    def counted(name, function):
        def call(path):
            counts[name, path.name] += 1
            return function(path)

        return call

    for name, (place, function) in WATCHED.items():
        monkeypatch.setattr(place, counted(name, function))
    for place in ("dinov2_hf.runs.folder.read_metrics", "dinov2_hf.runs.facts.RunFacts.of_run"):
        monkeypatch.setattr(place, None)
    return counts


def test_features_of_a_run_parse_its_config_and_compare_each_file_once_and_read_no_metrics(run, counts):
    backbone = open_backbone(str(run.folder))
    backbone.features(torch.zeros(1, 3, 32, 32), 1)
    assert backbone.fingerprint()
    assert counts["config", "config.yaml"] == 1
    assert set(counts.values()) == {1} and ("checksums", "__0_0.distcp") in counts


def test_metadata_of_a_run_is_read_at_once_and_its_tensors_when_they_are_asked_for(run, counts):
    weights = open_weights(str(run.folder))
    assert weights.step == 6 and weights.config.hidden_size == 32
    assert ("checksums", "__0_0.distcp") not in counts
    weights.heads(), weights.build(), weights.network("student"), weights.centering
    assert counts["checksums", "__0_0.distcp"] == 1


def test_fingerprint_of_a_checkpoint_is_of_what_is_opened(run):
    newest, older = (run.checkpoints / f"step-0000000{step}" for step in (6, 4))
    found = {
        open_weights(str(path), network=network).fingerprint()
        for path in (newest, older)
        for network in ("teacher", "student")
    }
    assert len(found) == 4 and open_weights(str(run.folder)).fingerprint() in found
    assert open_backbone(str(newest)).fingerprint() != open_backbone(str(newest), dtype=torch.bfloat16).fingerprint()


def test_preprocessor_of_a_run_does_not_depend_on_its_evaluations():
    plain = ["data.train.path=x", "crops.global_size=112", "model.patch_size=14"]
    knn = ["knn.reference.path=x", "knn.query.path=y", "knn.crop_size=224"]
    transforms = [evaluation_transform(load_config(None, keys)) for keys in (plain, plain + knn)]
    assert transforms[0] == transforms[1] and (transforms[0].resize_size, transforms[0].crop_size) == (128, 112)
