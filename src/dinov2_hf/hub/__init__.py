"""What leaves the project: exported folders, their model cards, and the way to the Hub."""

from .cards import model_card
from .export import export_folder, preprocessor_config
from .facts import RunFacts
from .publish import Publisher
from .push import PushResult, push_folder
from .results import add_results, card_of, read_results

__all__ = [
    "Publisher",
    "PushResult",
    "RunFacts",
    "add_results",
    "card_of",
    "export_folder",
    "model_card",
    "preprocessor_config",
    "push_folder",
    "read_results",
]
