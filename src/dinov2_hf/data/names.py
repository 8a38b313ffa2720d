"""Names of images; lists of names and errors of others in messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from .fetch import is_url
from .formats import NEEDS_PACKAGE, READABLE

_MOST = 10


def few(names: Iterable[object], most: int = _MOST) -> str:
    """`names` separated by commas: the first `most` of them, and how many more there are."""
    texts = [str(name) for name in names]
    more = len(texts) - most
    return ", ".join(texts) if more <= 0 else f"{', '.join(texts[:most])} and {more:,} more"


def name_images(values: Iterable[object]) -> bool:
    """Whether all texts among `values` end like the names of images, and there are any."""
    paths = [urlsplit(value).path if is_url(value) else value for value in values if isinstance(value, str)]
    suffixes = {PurePosixPath(path).suffix.lower() for path in paths if path}
    return bool(suffixes) and suffixes <= {*READABLE, *NEEDS_PACKAGE}


def place_of(function: Callable) -> str:
    """Module and qualified name of a function, or of the type of another callable."""
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def one_line(error: BaseException, longest: int = 300) -> str:
    """What an error says, on one line of up to `longest` characters; its type where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]}…"
