"""Sets on the Hub, and paths that are mistaken for one."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from datasets import DatasetBuilder, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError, FileNotFoundDatasetsError

from ..fetch import is_url
from ..formats import NEEDS_PACKAGE, READABLE, TABLES
from ..names import one_line
from ..paths import shown

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SUFFIXES = {*TABLES, *READABLE, *NEEDS_PACKAGE, ".txt", ".zip"}


def build_from_hub(path: str, name: str | None) -> DatasetBuilder:
    """The builder of the set called `path` on the Hub, in its configuration `name`.

    A path that is meant to lie here is not looked for on the Hub: one that is not of the form `name` or `user/name`,
    that ends like a file of data, or whose folder exists.

    Raises:
        ValueError: no such path, no such set, or no connection.
    """
    if is_url(path):
        raise ValueError(
            f"{path} is a URL; give a set on the Hub as user/name, or a table of the URLs of images as a file"
        )
    folder = os.path.dirname(path)
    is_here = folder and os.path.isdir(folder)
    if not _NAME.fullmatch(path) or Path(path).suffix.lower() in _SUFFIXES or is_here:
        names = os.listdir(folder or ".") if is_here or not folder else []
        close = [os.path.join(folder, other) for other in difflib.get_close_matches(os.path.basename(path), names, 1)]
        raise ValueError(
            f"{shown(path)} does not exist; give a folder of images, parquet files or a set on the Hub (user/name)"
            + (f"; did you mean {shown(close[0])}?" if close else "")
        )
    try:
        return load_dataset_builder(path, name)
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise ValueError(
                f"{path} is not a path here, and the set of that name on the Hub is gated; ask for access at "
                f"https://huggingface.co/datasets/{path} and log in with `hf auth login`"
            ) from error
        raise ValueError(
            f"{path} is neither a folder or file here nor a set on the Hub that can be read; check the name, or log in "
            "with `hf auth login` if the set is private"
        ) from error
    except FileNotFoundDatasetsError:  # a set without data that can be read
        raise
    except RuntimeError as error:
        raise ValueError(f"{path} on the Hub cannot be read: {one_line(error)}") from error
    except OSError as error:  # of connections, answers of the server, and the cache
        raise ValueError(
            f"{path} is not a path here, and it cannot be looked for on the Hub: {one_line(error)}; check the "
            "connection (and HF_ENDPOINT, HF_HUB_OFFLINE), or give a path that is here"
        ) from error
