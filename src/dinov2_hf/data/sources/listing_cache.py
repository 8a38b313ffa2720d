"""Listings that are kept: made by one process, read by the others and by the next start while nothing has changed."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable
from filelock import FileLock

from ...files import beside
from .listing import State

_VERSION = 1
_KEPT_SECONDS = 60 * 24 * 3600  # an older file may still be mapped by a run that began before the folder changed
_ROWS_OF_BATCH = 1 << 16

Made = tuple[pa.Table, dict[str, Any], State]


def kept_listing(reading: list, make: Callable[[], Made]) -> tuple[Dataset, dict[str, Any]]:
    """A table of files and the facts about it, from the cache where the state it depends on still holds.

    They lie in `dinov2_hf_listings` in the cache of `datasets`. One process makes a listing while the others wait for
    it. Where the cache cannot be written, each process makes its own.

    Args:
        reading: what identifies the listing, JSON.
        make: makes the table, facts that are JSON, and the state.
    """
    asked = time.time_ns()
    key = hashlib.sha256(json.dumps([_VERSION, reading]).encode()).hexdigest()[:32]
    base = Path(datasets.config.HF_DATASETS_CACHE) / "dinov2_hf_listings" / key
    found = _read(base, asked)
    if found is not None:
        return found
    lock: Any
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{base}.lock")
        lock.acquire()
    except (OSError, NotImplementedError):  # no place to write, or a file system without locks
        lock = None
    try:
        found = _read(base, asked) if lock is not None else None
        if found is not None:
            return found
        table, facts, state = make()
        try:
            if lock is not None and state.complete:
                return _write(base, table, facts, state), facts
        except OSError:
            pass
        return Dataset(InMemoryTable(table)), facts
    finally:
        if lock is not None:
            lock.release()


def _read(base: Path, asked: int) -> tuple[Dataset, dict[str, Any]] | None:
    """What is kept at `base`, if it was listed after `asked` or nothing has changed since."""
    try:
        kept = json.loads(Path(f"{base}.json").read_bytes())
        state = State(**kept["state"])
        # a list that began after it was asked for is as new as one made now
        if state.started < asked and not (state.is_settled and state.holds()):
            return None
        return Dataset.from_file(str(base.parent / kept["table"])), kept["facts"]
    except (OSError, ValueError, KeyError, TypeError):  # ValueError: JSON, and arrow that is cut off
        return None


def _write(base: Path, table: pa.Table, facts: dict[str, Any], state: State) -> Dataset:
    path = base.with_name(f"{base.name}-{state.started:x}-{os.getpid()}.arrow")
    with beside(path) as temporary, pa.OSFile(str(temporary), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=_ROWS_OF_BATCH)
    with beside(Path(f"{base}.json")) as temporary:
        temporary.write_text(json.dumps({"table": path.name, "facts": facts, "state": asdict(state)}))
    oldest = time.time() - _KEPT_SECONDS
    for other in base.parent.glob(f"{base.name}-*.arrow"):
        if other.stat().st_mtime < oldest:
            other.unlink(missing_ok=True)
    return Dataset.from_file(str(path))
