"""Functions of the user's that drop an image or change it: a safety filter, the blurring of faces."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from PIL import Image


class Hook(Protocol):
    """What `filter.hooks` names as `module:function`."""

    def __call__(self, image: Image.Image) -> bool | Image.Image:
        """True to keep an upright RGB image, False to drop it, or the image to put in its place (of any size)."""


def load_hook(name: str) -> Hook:
    """The function that `module:function` names; modules of the working directory are found, too.

    Raises:
        ValueError: no such module or function.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        hook = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"filter.hooks has {name!r}, which cannot be imported: {error}") from None
    if not callable(hook):
        raise ValueError(f"filter.hooks has {name!r}, which is {type(hook).__name__}, not a function")
    return hook


def apply_hooks(names: Sequence[str], hooks: Sequence[Hook], image: Image.Image) -> tuple[Image.Image, str | None]:
    """The image after all hooks, and the name of the one that dropped it.

    Raises:
        ValueError: a hook that returned something else.
    """
    for name, hook in zip(names, hooks):
        answer = hook(image)
        if isinstance(answer, Image.Image):
            image = answer
        elif answer is False:
            return image, name
        elif answer is not True:
            raise ValueError(f"filter.hooks: {name} returned {answer!r}; return True, False or an image")
    return image, None
