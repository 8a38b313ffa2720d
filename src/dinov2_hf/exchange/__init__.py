"""Models in and out: what any path holds, and the same in another format."""

from .backbone import open_backbone
from .export import Exported, export_source
from .inspect import inspect_path
from .source import OpenSource, open_source

__all__ = ["Exported", "OpenSource", "export_source", "inspect_path", "open_backbone", "open_source"]
