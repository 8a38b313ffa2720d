"""Which checkpoints of a run are whole: the one to continue from, those to keep, those that are damaged."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from torch.distributed.checkpoint.filesystem import _StorageInfo

from ..config import RunConfig, load_saved_config
from ..files import CONFIG_FILE, first_line
from . import manifest
from .checkpoint import RunState, find_checkpoints, is_checkpoint, read_state, remove_checkpoint, step_of
from .manifest import Manifest
from .provenance import Provenance
from .reader import CheckpointReader
from .together import on_all, on_main, rank_and_world

logger = logging.getLogger(__name__)


@dataclass
class _Outline:
    """What the small files of a checkpoint say, and the large parts that are to be compared."""

    damage: str | None = None
    config: RunConfig | None = None
    state: RunState | None = None
    origin: Provenance | None = None
    files: Manifest | None = None
    """None in checkpoints of dinov2_hf 0.5."""
    large: list[str] = field(default_factory=list)
    """Names of the large files."""
    places: list[_StorageInfo] = field(default_factory=list)
    """Without a manifest the places of tensors, which have a CRC-32 each."""

    def find_flipped(self, checkpoint: Path, rank: int = 0, world: int = 1) -> str | None:
        """Reads one of `world` shares of the large parts; what is wrong with them."""
        if self.files is not None:
            return manifest.find_flipped(checkpoint, {name: self.files[name] for name in self.large[rank::world]})
        name = CheckpointReader(checkpoint).find_flipped(self.places[rank::world])
        return name and f"{name} differs from what was written"


def damage_of(checkpoint: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where it is whole.

    Args:
        contents: read the tensors too; else only the small files and the sizes of the others.
    """
    outline = _outline(checkpoint)
    return outline.damage or (outline.find_flipped(checkpoint) if contents else None)


def damage_on_all(checkpoint: Path) -> str | None:
    """As `damage_of`; the processes share the reading. Collective, with the same answer on all."""
    outline = on_main(lambda: _outline(checkpoint))
    if outline.damage:
        return outline.damage
    found = on_all(lambda: outline.find_flipped(checkpoint, *rank_and_world()))
    return next(filter(None, found), None)


class OpenCheckpoint:
    """A checkpoint whose small files are whole; its tensors are compared with their checksums by `require_contents`."""

    def __init__(self, path: Path, outline: _Outline) -> None:
        assert outline.config is not None and outline.state is not None  # there, as nothing is damaged
        self.path, self.config, self.state = path, outline.config, outline.state
        self.digest = outline.origin.weights if outline.origin else None
        """Of the weights, as the checkpoint records it; None in one of dinov2_hf 0.5 without provenance."""
        self._outline, self._compared = outline, False

    def require_contents(self) -> None:
        """Refuses damaged tensors; warns where there are no checksums. Reads everything, the first time.

        Raises:
            ValueError: naming the damage and the newest whole checkpoint of the run.
        """
        if self._compared:
            return
        if damage := self._outline.find_flipped(self.path):
            raise ValueError(_refusal(self.path, damage))
        if self._outline.files is None:
            _warn_without_manifest(self.path)
        self._compared = True


def open_checkpoint(checkpoint: Path) -> OpenCheckpoint:
    """Reads the small files of a checkpoint.

    Raises:
        ValueError: naming the damage and the newest whole checkpoint of the run.
    """
    outline = _outline(checkpoint)
    if outline.damage:
        raise ValueError(_refusal(checkpoint, outline.damage))
    return OpenCheckpoint(checkpoint, outline)


def _warn_without_manifest(checkpoint: Path) -> None:
    logger.warning(
        "%s is from dinov2_hf 0.5 and has no checksums of its files; only its tensors were compared with their CRC-32",
        checkpoint,
    )


def choose_checkpoint(folder: Path, resume: str) -> tuple[Path | None, list[Path]]:
    """The checkpoint to continue from, and newer ones that are damaged. Collective, with the same answer on all.

    Args:
        folder: the checkpoints of the run.
        resume: `auto` for the newest that is whole, None where there is not any; else the path of a checkpoint.

    Raises:
        FileNotFoundError: nothing at the path.
        ValueError: the checkpoint at the path is damaged, or all in the folder are.
    """
    if resume != "auto":
        return _checkpoint_at(Path(resume)), []
    damages: dict[Path, str] = {}
    for checkpoint in reversed(on_main(lambda: find_checkpoints(folder))):
        damage = damage_on_all(checkpoint)
        if damage is None:
            _say(checkpoint, damages)
            return checkpoint, list(damages)
        damages[checkpoint] = damage
    if damages:
        told = "; ".join(f"{checkpoint.name}: {damage}" for checkpoint, damage in damages.items())
        raise ValueError(
            f"no checkpoint in {folder} is whole ({told}); restore one, or start again with another train.output_dir"
        )
    return None, []


def _checkpoint_at(path: Path) -> Path:
    if not on_main(lambda: is_checkpoint(path)):
        raise FileNotFoundError(f"{path} is not a checkpoint; give a folder such as checkpoints/step-00000100")
    if damage := damage_on_all(path):
        raise ValueError(on_main(lambda: _refusal(path, damage)))
    _say(path, {})
    return path


def _say(checkpoint: Path, damages: dict[Path, str]) -> None:
    if rank_and_world()[0] > 0:
        return
    for damaged, damage in damages.items():
        logger.warning(
            "the checkpoint %s is damaged: %s; the run continues from %s and renames the damaged one to %s",
            *(damaged, damage, checkpoint.name, _aside(damaged).name),
        )
    if not (checkpoint / manifest.NAME).exists():
        _warn_without_manifest(checkpoint)


def set_aside(damaged: list[Path]) -> None:
    """Renames damaged checkpoints, so that they neither count nor stand in the way."""
    for checkpoint in damaged:
        checkpoint.rename(_aside(checkpoint))


def prune_checkpoints(folder: Path, keep: int, keep_every: int, checkpoint_steps: int) -> None:
    """Removes old checkpoints, of one each `checkpoint_steps`: not the newest `keep`, nor every `keep_every`-th.

    Those that lack files or parts of them do not count.
    """
    found = find_checkpoints(folder)
    whole = [checkpoint for checkpoint in found if not _looks_damaged(checkpoint)][-keep:]
    for old in found[: found.index(whole[0])] if whole else []:
        if old.is_dir() and (not keep_every or step_of(old) % (keep_every * checkpoint_steps)):
            remove_checkpoint(old)


def _looks_damaged(checkpoint: Path) -> bool:
    """Whether files are missing or too short, or small ones differ."""
    try:
        return bool(manifest.find_difference(checkpoint, manifest.read_manifest(checkpoint)))
    except FileNotFoundError:  # of dinov2_hf 0.5, or without its manifest
        return damage_of(checkpoint, contents=False) is not None
    except (OSError, ValueError):
        return True


def _aside(checkpoint: Path) -> Path:
    """A free name for a damaged checkpoint."""
    plain = checkpoint.with_name(checkpoint.name.replace("step-", "damaged-"))
    names = [plain, *(plain.with_name(f"{plain.name}-{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _refusal(checkpoint: Path, damage: str) -> str:
    others = [other for other in find_checkpoints(checkpoint.parent) if other.name != checkpoint.name]
    good = next((other for other in reversed(others) if damage_of(other) is None), None)
    remedy = f"the newest whole one is {good}" if good else "there is no whole one beside it"
    return f"the checkpoint {checkpoint} is damaged: {damage}; {remedy}"


def _outline(checkpoint: Path) -> _Outline:
    """Reads the small files of a checkpoint."""
    try:
        return _read_outline(checkpoint)
    except OSError as error:
        return _Outline(f"{Path(error.filename or checkpoint).name} cannot be read: {error.strerror or error}")
    except ValueError as error:
        return _Outline(first_line(error))


def _read_outline(checkpoint: Path) -> _Outline:
    if not checkpoint.is_dir():
        raise ValueError("it is not a folder")
    if not any(checkpoint.iterdir()):
        raise ValueError("the folder is empty")
    files = None
    if (checkpoint / manifest.NAME).exists():
        files = manifest.read_manifest(checkpoint)
        if difference := manifest.find_difference(checkpoint, files):
            raise ValueError(difference)
    state, version = read_state(checkpoint)
    if version > 1 and files is None:
        raise ValueError(f"{manifest.NAME} is missing")
    config = _read_config(checkpoint)
    read = CheckpointReader(checkpoint).read_metadata()
    if files is None:
        return _Outline(None, config, state, None, places=list(read.storage_data.values()))
    named = {place.relative_path for place in read.storage_data.values()}
    if unlisted := sorted(named - files.keys()):
        raise ValueError(f"{unlisted[0]} is not in {manifest.NAME}")
    origin = Provenance.read(checkpoint)
    large = [name for name in files if manifest.is_large(name)]
    return _Outline(None, config, state, origin, files, sorted(large, key=lambda name: files[name].size))


def _read_config(checkpoint: Path) -> RunConfig:
    """Reads the configuration, or refuses one that cannot be read."""
    if not (checkpoint / CONFIG_FILE).is_file():
        raise ValueError(f"{CONFIG_FILE} is missing")
    try:
        return load_saved_config(checkpoint / CONFIG_FILE)
    except Exception as error:  # what a damaged YAML file raises can be anything
        raise ValueError(f"{CONFIG_FILE} cannot be read: {first_line(error)}") from None
