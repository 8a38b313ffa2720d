"""What leaves the project: exported folders, their model cards, and the way to the Hub."""

from .export import export_folder, preprocessor_config
from .push import PushResult, push_folder

__all__ = ["PushResult", "export_folder", "preprocessor_config", "push_folder"]
