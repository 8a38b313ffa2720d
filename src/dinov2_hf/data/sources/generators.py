"""Python generators as sources of images: `data.train.path=generator:NAME`.

    @register_source("discs")
    def discs():
        rng = np.random.default_rng(0)
        for _ in range(10_000):
            yield draw_disc(rng)  # uint8 [h, w, 3]

A function that is registered is called for every pass over the data, and again in every data worker and after a
restart. Each time it must yield the same images in the same order; one that never ends is a single endless pass. It is
streamed: shuffled within blocks of `data.shuffle_buffer`, mixed with other sources by `data.mix`, and continued exactly
by skipping what was read. Two parameters, if the function has them, save time:

- `shard` (with `register_source(…, shards=N)`): the function yields the images of shard 0 to N - 1, and every data
  worker calls it for its own shards only, where there are as many lanes (`data.lanes`) as workers or more;
- `start`: the function begins with image `start` of its shard, so that a restart does not make those before it.

The module that registers must be imported before the run opens its sources. Data workers that are forked have it;
those that are spawned import it, for which the function must stand at the top of its module.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ...config import SourceConfig, TrainingSourceConfig
from ..broken import Broken
from ..names import few, one_line, place_of
from .given import KINDS, encode_image

PREFIX = "generator:"
"""What the path of a registered source begins with."""
_PARAMETERS = ("shard", "start")
_registered: dict[str, GeneratedImages] = {}
Function = TypeVar("Function", bound=Callable[..., Iterable[Any]])


@dataclass(frozen=True)
class GeneratedImages:
    """A function that yields images, under the name that it was registered with."""

    name: str
    function: Callable[..., Iterable[Any]]
    shards: int = 1

    def __post_init__(self) -> None:
        where = f"the source {self.name!r}"
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(
                f"{where} has a name of other characters than letters, digits, '_', '.' and '-'; rename it"
            )
        if inspect.isgenerator(self.function) or not callable(self.function):
            raise TypeError(
                f"{where} is of the type {type(self.function).__name__}, which cannot be called for every pass; "
                "register the function that makes it"
            )
        if self.shards < 1:
            raise ValueError(f"{where} has shards={self.shards}; give 1 or more")
        parameters = inspect.signature(self.function).parameters.values()
        optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [item.name for item in parameters if item.default is item.empty and item.kind not in optional]
        if others := [name for name in needed if name not in _PARAMETERS]:
            raise TypeError(
                f"{where} needs the argument {few(others)}; the function is called with {' and '.join(_PARAMETERS)}, "
                "where it has them: give the others a default"
            )
        if (self.shards > 1) != self.takes("shard"):
            raise TypeError(
                f"{where} has shards={self.shards} and {'a' if self.takes('shard') else 'no'} parameter `shard`; "
                "give both or neither"
            )

    def takes(self, parameter: str) -> bool:
        return parameter in inspect.signature(self.function).parameters

    @property
    def path(self) -> str:
        return PREFIX + self.name


def register_source(name: str, shards: int = 1) -> Callable[[Function], Function]:
    """Makes the decorated function a source, `data.train.path=generator:NAME`.

    It yields images as `given.encode_image` takes them: paths, bytes, arrays, PIL images, None for an image that cannot
    be read (it is counted as broken), or one of these with a name: `(image, "name")`. An error that the function raises
    ends the run.

    Args:
        name: of letters, digits, `_`, `.` and `-`.
        shards: into how many parts it divides its images, see the module.

    Raises:
        TypeError: what is decorated cannot be called for every pass, or needs other arguments.
        ValueError: a name of other characters, or one that another function has.
    """

    def register(function: Function) -> Function:
        images = GeneratedImages(name, function, shards)
        before = _registered.get(name)
        if before is not None and place_of(before.function) != place_of(function):
            raise ValueError(
                f"the source {name!r} is already registered by {place_of(before.function)}; use another name"
            )
        _registered[name] = images
        return function

    return register


def open_generated(config: SourceConfig, key: str) -> GeneratedShards:
    """The registered source at `config.path`, which messages call `key`.

    Raises:
        ValueError: no such name, or a key that is for files.
    """
    name = str(config.path).removeprefix(PREFIX)
    if name not in _registered:
        raise ValueError(
            f"{key}.path={config.path}: no source of this name is registered (there is {few(_registered) or 'none'}); "
            "import the module with its register_source before the run starts"
        )
    defaults = TrainingSourceConfig()
    for item in fields(SourceConfig):
        if item.name != "path" and getattr(config, item.name) != getattr(defaults, item.name):
            raise ValueError(
                f"{key}.{item.name}={getattr(config, item.name)} has no effect on {config.path}; leave it out"
            )
    return GeneratedShards(_registered[name])


def is_generated(path: str | None) -> bool:
    """Whether a path names a registered source."""
    return path is not None and str(path).startswith(PREFIX)


class GeneratedShards:
    """The shards of a registered source, read as those of a stream (`base.ShardedImages`)."""

    embedded = True
    broken: tuple[Broken, ...] = ()

    def __init__(self, images: GeneratedImages) -> None:
        self._images = images
        self._lengths: dict[int, int] = {}

    def __len__(self) -> int:
        return self._images.shards

    def length(self, shard: int) -> int | None:
        """How many images a shard yields, once it was read to its end."""
        return self._lengths.get(shard)

    def values(self, shard: int, start: int = 0) -> Iterator[tuple[int, tuple[bytes, str | None]]]:
        """Number, and bytes and own name, of the images of a shard from image `start` on.

        Raises:
            ValueError: the function raises, or yields something else than images.
        """
        begin = start if self._images.takes("start") else 0
        row = begin
        for item in self._call(shard, begin):
            if row >= start:
                yield row, self._encode(item, shard, row)
            row += 1
        if begin and row == begin:  # the shard may end before
            row = sum(1 for _ in self._call(shard, 0))
        self._lengths[shard] = row

    def encoded(self, value: tuple[bytes, str | None], shard: int, row: int) -> tuple[bytes, str]:
        data, name = value
        return data, f"{name or f'image {row}'} of {self._name(shard)}"

    def take_broken(self) -> tuple[Broken, ...]:
        """None: an error of the function ends the run."""
        return ()

    def listing(self) -> dict[str, Any]:
        """As `Loaded.listing`; the digest is of the text of the function, so that a restart says that it changed."""
        function = self._images.function
        try:
            text = inspect.getsource(function)
        except (OSError, TypeError):  # of a console, or a callable object
            text = place_of(function)
        content = repr((self._images.name, len(self), text))
        return {"count": len(self), "unit": "generators", "digest": hashlib.sha256(content.encode()).hexdigest()[:32]}

    def __getstate__(self) -> dict:
        if "<" in place_of(self._images.function):
            raise ValueError(
                f"{self._images.path} is {place_of(self._images.function)}, which spawned data workers cannot import; "
                "move the function to the top of its module, or use data.start_method=fork"
            )
        return self.__dict__

    def _name(self, shard: int) -> str:
        return f"{self._images.path} (shard {shard})" if len(self) > 1 else self._images.path

    def _call(self, shard: int, start: int) -> Iterator[Any]:
        """What the function yields.

        Raises:
            ValueError: it raises.
        """
        arguments = {"shard": shard, "start": start}
        number = start
        try:
            found = self._images.function(**{name: arguments[name] for name in _PARAMETERS if self._images.takes(name)})
            for item in found:
                yield item
                number += 1
        except Exception as error:
            raise ValueError(
                f"{self._name(shard)} raised {type(error).__name__} at image {number}: {one_line(error)}; yield None "
                "for an image that cannot be read"
            ) from error

    def _encode(self, item: Any, shard: int, row: int) -> tuple[bytes, str | None]:
        try:
            return encode_image(item)
        except TypeError as error:
            raise ValueError(f"{self._name(shard)} yields {error} as image {row}; yield {KINDS}") from None
