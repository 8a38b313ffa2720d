"""Launching scripts over several processes on this machine (gloo)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..patience import HANGS

ROOT = Path(__file__).parents[2]

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Dinov2Layer,DINOHead",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@pytest.fixture(scope="session")
def fsdp2():
    """The environment in which accelerate shards with FSDP2."""
    return FSDP2


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Forks training processes, see `server.py`."""
    from .server import Server

    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


def use_one_core() -> None:
    """Called in a process before it starts: tensors are so small that threads would only wait for each other."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])


@pytest.fixture(scope="session")
def launch():
    """Runs a script over `processes`, and gives what it printed."""

    def run(processes: int, *arguments: str, environment: dict[str, str] | None = None) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        base = {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | base | (environment or {}),
            cwd=ROOT,
            timeout=HANGS,
            preexec_fn=use_one_core if processes == 1 else None,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout + done.stderr

    return run
