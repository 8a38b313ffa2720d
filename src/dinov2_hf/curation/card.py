"""The data card of a curated set."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..config import SourceConfig
from ..files import beside
from .stage import Context, Stage

_PACKAGES = ("dinov2_hf", "torch", "transformers", "datasets", "datatrove", "faiss-cpu", "faiss-gpu", "numpy")
_HEAD = """# A curated set of images

Made with `dinov2-hf curate` after section 3 and appendix A of DINOv2 (Oquab et al., 2023).

{images}.

Train on it:

```bash
accelerate launch examples/pretrain.py data.train.path=PATH data.train.streaming=true
```
"""
_COLUMNS = """
Columns: `image`; `source` and `name`, where it comes from; `repeats`, how often it was retrieved; `id`, of the shard
and its place there. The images keep the rights and the conditions of their sources.
"""


def write_card(path: Path, context: Context, stages: list[Stage], counts: dict[str, int]) -> None:
    """Counts at every stage, sources, thresholds and versions.

    Without `configs` for the Hub at its head: with them `datasets` takes two local folders of one name for the same
    set, and gives the images of the first for both.
    """
    images = f"{counts['kept']:,} images in {counts['files']:,} files"
    if counts["written"] != counts["kept"]:
        images += f", {counts['written']:,} rows with repeats"
    parts = [_HEAD.format(images=images), _COLUMNS]
    rows = [[stage.name, describe(stage.counts)] for stage in stages if stage.counts]
    parts.append(_table("Counts", ["stage", "images"], rows))
    config = context.config
    sources = [
        [f"{table}.{name}", public_path(source), source.split]
        for table in ("pool", "seeds", "evaluations")
        for name, source in getattr(config, table).items()
    ]
    parts.append(_table("Sources", ["name", "path", "split"], sources))
    settings = [[f"`{key}`", f"`{value}`"] for key, value in _settings(context)]
    parts.append(_table("Settings", ["key", "value"], settings))
    parts.append(_table("Versions", ["package", "version"], _versions()))
    with beside(path) as temporary:
        temporary.write_text("\n".join(parts))


def describe(counts: dict[str, Any]) -> str:
    """Counts of a stage in a line."""
    told = []
    for name, value in counts.items():
        if name == "dropped":
            told += [f"{own:,} {reason}" for reason, own in value.items()]
        elif name == "width":
            told.append(f"vectors of {value}")
        elif name == "seeds":
            told += [f"{own['images']:,} for {seed}" for seed, own in value.items()]
        else:
            told.append(f"{value:,} {name.replace('_', ' ')}")
    return ", ".join(told)


def public_path(source: SourceConfig) -> str:
    """What a source is called without the folders of this machine."""
    path = str(source.path)
    return Path(path).name if Path(path).is_absolute() or path.startswith(("~", ".")) else path


def _settings(context: Context) -> list[tuple[str, Any]]:
    config = context.config
    sections = ["filter", "hashes", "embed", "search", "dedup", "assemble"]
    sections += ["concepts"] if config.concepts.model else []
    sections += [config.selection] if config.selection != "all" else []
    found = [("select", config.selection), ("seed", config.seed)]
    for section in sections:
        own = getattr(config, section)
        for item in fields(own):
            value = getattr(own, item.name)
            if item.name == "model":
                value = Path(value).name if Path(value).exists() else value
            if item.name not in ("batch_size", "num_workers"):
                found.append((f"{section}.{item.name}", value))
    for name, seed in config.seeds.items():
        found += [(f"seeds.{name}.{item}", getattr(seed, item)) for item in ("method", "num_neighbours", "include")]
    return found


def _versions() -> list[list[str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append([package, version(package)])
        except PackageNotFoundError:
            continue
    return found


def _table(title: str, head: list[str], rows: list[list[Any]]) -> str:
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""])
