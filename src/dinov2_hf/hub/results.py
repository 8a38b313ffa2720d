"""Figures of evaluations as metadata of a model card (`model-index`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from ..config import SourceConfig, hub_name, name_of_source
from ..files import beside

_TASKS = {"segmentation": "image-segmentation", "depth": "depth-estimation", "video": "video-classification"}
"""The Hub's word for what was evaluated, where results of 0.5, which do not say so, are not of classification."""


def add_results(export: Path, folders: Sequence[Path]) -> ModelCard:
    """Takes what `dinov2-hf evaluate --output` left in `folders` into the metadata of an export's model card.

    A figure of the same name and set that is there already is replaced.

    Raises:
        FileNotFoundError: the export has no card.
        ValueError: a card that is a link, or a folder without a report.
    """
    path = card_of(export)
    card = ModelCard.load(path)
    found = [entry for folder in folders for entry in read_results(folder)]
    new = {_key(entry) for entry in found}
    kept = [entry for entry in card.data.eval_results or [] if _key(entry) not in new]
    card.data.eval_results = kept + found
    card.data.model_name = card.data.model_name or export.resolve().name
    with beside(path) as temporary:
        card.save(temporary)
    return card


def card_of(export: Path) -> Path:
    """The model card of an export.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a link, as in the cache of the Hub, where others read the same file.
    """
    path = export / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"{export} has no model card README.md; give an export of a run")
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and the file that it leads to is not changed; give a copy of the folder")
    return path


def read_results(folder: Path) -> list[EvalResult]:
    """The figures in a folder that `dinov2-hf evaluate --output` left.

    Raises:
        ValueError: there is none.
    """
    path = folder / "results.json"
    try:
        report = json.loads(path.read_text())
        test = SourceConfig(**{key: report["settings"]["test"][key] for key in ("path", "split", "name")})
        task = report.get("task") or _TASKS.get(report["protocol"], "image-classification")
        return [
            EvalResult(
                task_type=task,
                dataset_type=hub_name(test.path) or "imagefolder",
                dataset_name=result["dataset"] or name_of_source(test),
                dataset_config=test.name,
                dataset_split=test.split,
                metric_type=result["kind"] or result["metric"],
                metric_name=result["title"],
                metric_value=round(result["value"], 4),
            )
            for result in report["results"]
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not what `dinov2-hf evaluate --output` leaves: {error}") from None


def _key(entry: EvalResult) -> tuple:
    return entry.metric_name, entry.dataset_name, entry.dataset_split
