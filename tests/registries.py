"""Parts that a test registers, and modules that it imports, are forgotten after it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinov2_hf.backbones import base
from dinov2_hf.config import FAMILIES, RUNS, TERMS
from dinov2_hf.data.sources import generators
from dinov2_hf.evaluation import registry
from dinov2_hf.objectives import OBJECTIVES
from dinov2_hf.objectives.further import FURTHER_TERMS
from dinov2_hf.weights import FORMATS

TABLES = [OBJECTIVES, FURTHER_TERMS, RUNS, TERMS, FAMILIES, FORMATS]
TABLES += [base._FAMILIES, registry._registered, generators._registered]


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Makes the modules in a folder importable in the block; then forgets them and what they registered."""
    before = [dict(table) for table in TABLES]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").parent == folder:
                del sys.modules[name]
        for table, entries in zip(TABLES, before):
            table.clear()
            table.update(entries)
