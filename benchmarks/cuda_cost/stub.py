"""Loads the stub that makes a CPU build of torch accept fake CUDA tensors, building it on first use."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("stub.cpp")


class StubUnavailable(RuntimeError):
    """Fake CUDA tensors cannot be had here; the message is one line that says why and what to do."""


def load() -> None:
    """Loads the stub into this process. Call it before torch is imported: torch looks for devices once.

    A CUDA build of torch with a GPU in sight needs no stub, and gets none.

    Raises:
        StubUnavailable: no g++ to build it with, or a CUDA build of torch without a GPU.
    """
    if "torch" in sys.modules:
        raise AssertionError("torch is imported already; load the stub first")
    torch = Path(importlib.util.find_spec("torch").origin).parent
    if (torch / "lib" / "libtorch_cuda.so").exists():
        import torch as cuda_build

        if not cuda_build.cuda.is_available():
            raise StubUnavailable("this torch is built for CUDA but sees no GPU; use a CPU build of torch, or a GPU")
        return
    stub = _cached(torch)
    if not stub.exists():
        _build(torch, stub)
    for library in (*sorted(torch.with_name("torch.libs").glob("*")), torch / "lib" / "libtorch_cpu.so", stub):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _cached(torch: Path) -> Path:
    """Where the stub of this source and this torch lies."""
    state = f"{torch} {importlib.metadata.version('torch')} {_SOURCE.read_text()}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinov2_hf"
    return folder / f"cuda_stub_{hashlib.sha256(state.encode()).hexdigest()[:16]}.so"


def _build(torch: Path, stub: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise StubUnavailable("fake CUDA tensors need a small stub that g++ builds; install g++")
    print("building the CUDA stub, once", file=sys.stderr)
    stub.parent.mkdir(parents=True, exist_ok=True)
    include, libraries = torch / "include", torch / "lib"
    with tempfile.TemporaryDirectory(dir=stub.parent) as folder:
        built = Path(folder) / stub.name
        command = [compiler, "-std=c++20", "-shared", "-fPIC", f"-I{include}"]
        command += [f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}", str(_SOURCE), "-o", str(built)]
        command += [f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"]
        subprocess.run(command, check=True)
        os.replace(built, stub)  # another process may build it at the same time
