"""The way to the Hub and back."""

from .publish import Publisher
from .push import PushResult, push_folder
from .results import add_results, card_of, read_results

__all__ = [
    "Publisher",
    "PushResult",
    "add_results",
    "card_of",
    "push_folder",
    "read_results",
]
