"""Fixtures around the loopback Hub; tests/conftest.py imports them for every folder of tests."""

from __future__ import annotations

import os
import subprocess
import sys

import huggingface_hub
import pytest

from ..patience import HANGS
from .server import LoopbackHub


@pytest.fixture
def hub():
    """A Hub on loopback, empty; the test fails where it was asked for a route that it does not have."""
    with LoopbackHub() as server:
        yield server
    assert not server.unknown, server.unknown
    assert not server.errors, server.errors


@pytest.fixture
def hub_process(hub, tmp_path_factory):
    """Runs a Python script in a process for which `hub` is the Hub: `hub_process(script, *arguments, **environment)`.

    The environment is set before huggingface_hub is imported; an empty value unsets a variable, such as `HF_TOKEN`.
    """
    home = tmp_path_factory.mktemp("hf_home")

    def run(script: str, *arguments: object, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
        done = start(script, *arguments, **environment)
        stdout, stderr = done.communicate(timeout=HANGS)
        assert not check or done.returncode == 0, stderr[-4000:]
        return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)

    def start(script: str, *arguments: object, **environment: str) -> subprocess.Popen:
        values = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
        values |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        values |= environment
        return subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in values.items() if value},
        )

    run.start = start
    return run


@pytest.fixture
def hub_login(hub, tmp_path, monkeypatch):
    """Makes `hub` the Hub of this process for what is called from now on, and logs its user in.

    For what makes a new `HfApi`; functions such as `huggingface_hub.create_repo` keep the address that they were
    imported with, and want `hub_process`.
    """
    constants = huggingface_hub.constants
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setattr(constants, name, True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf_home" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_home" / "hub"))
    huggingface_hub.close_session()
    yield hub
    huggingface_hub.close_session()
