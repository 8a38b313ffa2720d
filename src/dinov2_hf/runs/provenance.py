"""What a checkpoint records of where it comes from: a digest of the weights, the code, the environment."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import numpy
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from .together import on_all, rank_and_world

NAME = "provenance.json"

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Provenance:
    """Where the weights of a checkpoint come from."""

    weights: str
    """SHA-256 of all parameters and buffers of student and average, whole: see `digest_of`."""
    code: dict[str, str]
    """Version of dinov2_hf and, in a checkout, its commit."""
    environment: dict[str, str | int]
    """Versions, device, processes and threads."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], accelerator: Accelerator) -> Provenance:
        """Of the model's state on this machine. Collective."""
        return cls(digest_of(tensors), dict(code_version()), environment_of(accelerator))

    def write(self, folder: Path) -> Path:
        """Writes `provenance.json`."""
        path = folder / NAME
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, folder: Path) -> Provenance:
        """Reads `provenance.json`.

        Raises:
            FileNotFoundError: there is none, as in checkpoints of dinov2_hf 0.5.
            ValueError: it holds something else.
        """
        try:
            found = cls(**json.loads((folder / NAME).read_text()))
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"{NAME} is not the provenance of a checkpoint") from None
        parts = [found.code, found.environment]
        if not isinstance(found.weights, str) or not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"{NAME} is not the provenance of a checkpoint")
        return found

    def differences(self, other: Provenance) -> list[str]:
        """What differs in code and environment, as `name: ours, other's`."""
        before = self.code | self.environment
        now = other.code | other.environment
        return [
            f"{name}: {before.get(name, 'not recorded')} then, {now.get(name, 'none')} now"
            for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name)
        ]


def environment_changes(checkpoint: Path, accelerator: Accelerator) -> list[str]:
    """What differs here from the environment that wrote a checkpoint; nothing where it does not say."""
    try:
        then = Provenance.read(checkpoint)
    except FileNotFoundError:
        return []
    return replace(then, code={}).differences(Provenance("", {}, environment_of(accelerator)))


def listing_changes(before: Mapping[str, Mapping[str, Any]] | None, now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What changed in the sources of images between two `TrainingSource.listing`s, a line each."""
    return [
        f"the files of {name} changed: {describe_listing(before.get(name))} when the checkpoint was written, "
        f"{describe_listing(now.get(name))} now"
        for name in dict.fromkeys([*(before or {}), *now])
        if before is not None and before.get(name) != now.get(name)
    ]


def describe_listing(source: Mapping[str, Any] | None) -> str:
    """What a source of images is made of, in a few words."""
    if source is None:
        return "none"
    return f"{source.get('count')} {source.get('unit')} (digest {str(source.get('digest'))[:8]})"


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, in the order of their names.

    Collective: the processes hold the same tensors and hash a share each. Sharded tensors are gathered one at a time,
    so that the digest is the same on any number of processes.
    """
    parts = on_all(lambda: digests_of(tensors, *rank_and_world()))
    return combined({name: digest for part in parts for name, digest in part.items()})


def digests_of(tensors: Mapping[str, Tensor], rank: int = 0, world: int = 1) -> dict[str, str]:
    """SHA-256 of one of `world` shares of the tensors, each by itself. Collective where they are sharded."""
    found = {}
    for number, name in enumerate(sorted(tensors)):
        tensor = tensors[name].detach()
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        if number % world == rank:
            found[name] = _digest_of_tensor(tensor)
    return found


def combined(digests: Mapping[str, str]) -> str:
    """The digest of all tensors out of those of each."""
    return hashlib.sha256("\n".join(f"{name} {digests[name]}" for name in sorted(digests)).encode()).hexdigest()


def _digest_of_tensor(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@functools.cache
def code_version() -> dict[str, str]:
    """The version of dinov2_hf and, where it runs from a git checkout, the commit."""
    root, found = _PACKAGE.parents[1], {"dinov2_hf": importlib.import_module(_PACKAGE.name).__version__}
    if (root / ".git").exists() and _PACKAGE.parent.name == "src":
        try:
            git = ["git", "-C", str(root), "--no-optional-locks"]
            run = functools.partial(subprocess.run, capture_output=True, text=True, check=True, timeout=20)
            commit = run([*git, "rev-parse", "HEAD"]).stdout.strip()
            changed = run([*git, "status", "--porcelain", "--untracked-files=no", "src"]).stdout.strip()
            found["commit"] = commit + (" with changes" if changed else "")
        except (OSError, subprocess.SubprocessError):  # no git here, or not our checkout
            pass
    return found


def environment_of(accelerator: Accelerator) -> dict[str, str | int]:
    """What can change the last bits of a result: versions, device, kernels, processes and threads."""
    found: dict[str, str | int] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "numpy": numpy.__version__,
        "os": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "processes": accelerator.num_processes,
        "parallel": str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type)),
        "threads": torch.get_num_threads(),
    }
    if accelerator.device.type == "cuda":
        found |= {
            "device": torch.cuda.get_device_name(accelerator.device),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
