"""A tiny run on a few generated photographs."""

import resource
from contextlib import contextmanager

import datasets
import pytest
import torch

from dinov2_hf.config import load_config

from .hub.fixtures import hub, hub_login, hub_process  # noqa: F401 - fixtures for every folder
from .reader import small_run, small_set  # noqa: F401 - fixtures for every folder
from .tiny import TINY, TINY_OBJECTIVES, write_photographs
from .tiny_backbone import tiny, tiny_vit  # noqa: F401 - fixtures for every folder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def dataset_settings(tmp_path_factory):
    """Keeps prepared sets and listings in a temporary folder, and does not tell the Hub that local files were read."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("HF_DATASETS_CACHE", str(cache))  # for processes that tests start
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        yield


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """24 photographs of 40 x 48 pixels in a folder for each of two classes."""
    return write_photographs(tmp_path_factory.mktemp("images"))


def tiny_run(images, folder, *overrides):
    """Dotted overrides of a run of six updates that takes a second or two, and further ones.

    An objective of pretraining among these has keys of its own.
    """
    chosen = [item.removeprefix("objective=") for item in overrides if item.startswith("objective=")]
    keys = TINY_OBJECTIVES.get(chosen[-1] if chosen else "dinov2", TINY)
    return [*keys, f"data.train.path={images}", f"train.output_dir={folder}", *overrides]


@pytest.fixture
def tiny_overrides(image_folder, tmp_path):
    """Those of `tiny_run`."""
    return tiny_run(image_folder, tmp_path / "run")


@pytest.fixture(scope="session")
def tiny_config_in(image_folder):
    """The configuration of the tiny run in a folder, with further overrides; for fixtures of many tests."""
    return lambda folder, *overrides: load_config(None, tiny_run(image_folder, folder, *overrides))


@pytest.fixture
def tiny_config(tiny_config_in, tmp_path):
    """Builds the tiny run's configuration with further overrides."""
    return lambda *overrides: tiny_config_in(tmp_path / "run", *overrides)


@pytest.fixture
def small_disk():
    """Within the block that it makes no file grows above so many bytes: the system refuses as a full disk does."""

    @contextmanager
    def limited(size=1000):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
