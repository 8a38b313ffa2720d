"""Files: each is written whole or not at all, replaces only what the same command wrote, and lies where it is named."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SOFTWARE = "dinov2_hf"
"""The text `Software` in the PNG files that commands draw, by which they know their own."""
SIGNATURE = f"# Written by {SOFTWARE}"
"""The first line of the configurations that commands leave."""

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
STATE_FILE = "run.json"
"""Names in the folder of a run: `runs.RunFolder` reads and writes them. The state lies in each checkpoint."""

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of a disk that a program cannot avoid."""
_FULL = 1 << 20
"""Bytes of free space with which a disk counts as full."""
_LIST = ".txt"
_LOGS = (".log", ".out", ".err")
_PICTURES = ("loss.png", "features.png", "picture.jpg")  # names that a pattern of a source is compared with


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields a path to write a file or a folder to, which replaces `path` when the block ends without an error.

    It has the name of `path` and lies in a temporary folder beside it. Other files that are written there, such as
    `<name>.data`, are moved too, before `path`. Files have the mode that the umask asks for. Writes nothing where the
    block raises.

    Raises:
        OSError: nothing was written, a file would replace a folder, or the disk refuses.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}-", dir=path.parent))
        try:
            yield temporary / path.name
            give_usual_mode(temporary)
            others = [each for each in temporary.iterdir() if each.name != path.name]
            for written in [*sorted(others), temporary / path.name]:
                _move(written, path.with_name(written.name))
            temporary.rmdir()
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what libraries raise where a disk refuses into an `OSError` of one line that names `path` and the cause.

    safetensors and torch raise types of their own, and an error of the system while a file grows does not name it.
    """
    try:
        yield
    except Exception as error:
        if cause := refusal_of_disk(error, path):
            raise OSError(
                f"{path} cannot be written: {cause}; make room on its disk or give a place on another one"
            ) from error
        raise


def refusal_of_disk(error: BaseException, path: Path) -> str:
    """Returns why the disk refused to write `path`, if an exception or what it came from says so; else nothing."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in chain:
        if isinstance(each, OSError) and each.errno in _REFUSALS:
            return os.strerror(each.errno)
        if match := re.search(r"\(os error (\d+)\)", str(each)):  # safetensors
            return os.strerror(int(match[1]))
    for each in chain:  # torch.save hides the cause
        if "PytorchStreamWriter" in str(each) or "inline_container" in str(each):
            folder = next(parent for parent in path.absolute().parents if parent.is_dir())
            return os.strerror(errno.ENOSPC) if shutil.disk_usage(folder).free < _FULL else first_line(each)
    return ""


def give_usual_mode(folder: Path) -> None:
    """Gives all files in `folder`, at any depth, the mode that the umask asks for: safetensors lets only their owner
    read what it writes."""
    trial = os.path.join(folder, ".mode")
    descriptor = os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    os.unlink(trial)
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            found = os.lstat(path).st_mode
            if stat.S_ISREG(found) and stat.S_IMODE(found) != mode:
                os.chmod(path, mode)


def _move(written: Path, path: Path) -> None:
    """Renames a file or folder to `path`; a folder that is there gives way to a folder."""
    if not (written.is_dir() and path.is_dir()):
        os.replace(written, path)
        return
    replaced = written.with_name(f"{written.name}.replaced")
    os.rename(path, replaced)
    try:
        os.rename(written, path)
    except OSError:
        os.rename(replaced, path)
        raise
    shutil.rmtree(replaced)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk, so that they survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot do it for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or else its name."""
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__


def lies_in(folder: Path, name: object) -> bool:
    """Whether a file that something in `folder` names lies in it; not so for absolute paths, `..` and links elsewhere.

    Links of the Hub's cache lead from `snapshots` to `blobs` beside it and count as inside.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return False
    target = Path(os.path.realpath(folder / name))  # of a loop of links itself
    if target.is_relative_to(os.path.realpath(folder)):
        return True
    caches = [parent.parent for parent in folder.absolute().parents if parent.name == "snapshots"]
    return any(target.is_relative_to(os.path.realpath(cache / "blobs")) for cache in caches)


@dataclass(frozen=True)
class Output:
    """A file or folder that a command is going to write."""

    key: str
    """How the user names it, such as `--output` or `train.output_dir`."""
    path: Path
    made: Callable[[Path], bool]
    """Whether what is there was written by the same command, which may then replace it."""
    folder: bool = False


def check_outputs(
    outputs: Iterable[Output],
    images: Iterable[tuple[str, str]] = (),
    models: Iterable[tuple[str, str]] = (),
    files: Iterable[tuple[str, str | os.PathLike[str]]] = (),
) -> None:
    """Refuses to write into a source, over an input, or over something that this package did not make.

    Every command calls it before any work. Paths are compared as the file system has them: links, `..`, hard links and
    other spellings of a name lead to the same file.

    Args:
        outputs: what the command is going to write.
        images: key and path of every source of images: a file, a folder, a pattern, a text list of these. Names of sets
            on the Hub are nothing here.
        models: key and path of every model that is read. A new file may be written into a model's folder.
        files: key and path of every other file that is read.

    Raises:
        ValueError: naming the output, what it would change, and what to do.
    """
    reached = [(f"{key}={path}", _images_at(path)) for key, path in images]
    reached += [(f"{key}={path}", _Inputs(files=[path])) for key, path in models if os.path.exists(path)]
    read = [(f"{key}={path}", os.path.expanduser(path)) for key, path in files]
    for output in outputs:
        named, kind = f"{output.key}={output.path}", "folder" if output.folder else "file"
        if output.path.parts[:1] == ("~",):
            raise ValueError(f"{named} has a ~ that the shell did not replace; write the path of the home folder")
        for source, inputs in reached:
            if problem := _conflict(output, inputs):
                raise ValueError(f"{named} {problem} {source}; give another {kind} for {output.key}")
        for source, path in read:
            if _is_same(os.fspath(output.path), path):
                raise ValueError(f"{named} is the file of {source}; give another {kind} for {output.key}")
        _refuse_foreign(output)


@dataclass
class _Inputs:
    """Where a source has its files."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """Folders of which everything at any depth is read."""
    patterns: list[tuple[str, str]] = field(default_factory=list)
    """Folders, or patterns of folders, of which the files of a pattern are read."""


def _images_at(source: str) -> _Inputs:
    found, path = _Inputs(), os.path.expanduser(source)
    if os.path.isdir(path):
        _add_folder(path, found)
    elif os.path.isfile(path):
        found.files.append(path)
        if path.lower().endswith(_LIST):
            _add_listed(path, found)
    elif glob.has_magic(path):
        parts = Path(path).parts
        if "**" in parts:
            before = [glob.has_magic(part) for part in parts].index(True)
            found.folders.append(os.path.join(*parts[:before]) if before else ".")
        else:
            folder, name = os.path.split(path)
            folders = glob.glob(folder) if glob.has_magic(folder) else []
            found.patterns += [(each, name) for each in [*folders, folder or "."]]
    return found


def _add_folder(folder: str, found: _Inputs) -> None:
    """Adds a folder and what links in it lead to, each once."""
    seen, waiting = set(), [folder]
    found.folders.append(folder)
    while waiting:
        current = waiting.pop()
        if (real := os.path.realpath(current)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting.append(entry.path)
                        if entry.is_symlink():
                            found.folders.append(entry.path)
                    elif entry.is_symlink():
                        found.files.append(os.path.join(current, os.readlink(entry.path)))
        except OSError:  # a folder that cannot be read is named where its images are read
            continue


def _add_listed(path: str, found: _Inputs) -> None:
    """Adds the files that a text file names, relative to its folder or to the working folder."""
    folder = os.path.dirname(path)
    for line in Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        named = {os.path.join(folder, line.strip()), line.strip()} - {""}
        found.files += [each for each in named if os.path.lexists(each)]


def _conflict(output: Output, inputs: _Inputs) -> str:
    """What is wrong with writing `output`, to be followed by the name of the source; empty where nothing is."""
    path = os.fspath(output.path)
    for folder in inputs.folders:
        if _is_same(path, folder):
            return "is the folder of"
        if _is_within(path, folder):
            return "lies in the folder of"
    for folder, name in inputs.patterns:
        written = [os.path.join(path, picture) for picture in _PICTURES] if output.folder else [path]
        for each in written:
            if fnmatch.fnmatch(os.path.basename(each), name) and _is_at(os.path.dirname(each), folder):
                return "would be read by the pattern of"
    if _is_one_of(path, inputs.files):
        return "is the folder of" if output.folder else "is the file of"  # the folder of a model
    if not output.folder:
        return ""
    folders = {os.path.dirname(each) for each in inputs.files} | {folder for folder, _ in inputs.patterns}
    return "is a folder around" if any(_is_within(each, path) for each in [*folders, *inputs.folders]) else ""


def _refuse_foreign(output: Output) -> None:
    named, path = f"{output.key}={output.path}", output.path
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long, a folder that this user cannot enter, a loop of links
        raise ValueError(f"{named} cannot be written: {error.strerror}; give another path") from None
    if output.made is made_nothing:
        if os.path.lexists(path):
            raise ValueError(f"{named} exists already; give another name or remove it")
    elif not output.folder:
        if path.is_dir():
            raise ValueError(f"{named} is a folder; give a file")
        if os.path.lexists(path) and not output.made(path):
            raise ValueError(
                f"{named} exists already, and this command did not write it; give another name or remove it"
            )
    elif path.is_dir():
        if not output.made(path) and (others := sorted(_others_in(path, output.made))):
            more = f" and {len(others) - 1} more" if others[1:] else ""
            raise ValueError(
                f"{named} holds {others[0]!r}{more}, which this command did not write; give a new folder, an empty "
                "one, or one that this command wrote"
            )
    elif os.path.lexists(path):
        raise ValueError(f"{named} is a file; give a folder")
    parent = next(each for each in path.absolute().parents if os.path.lexists(each))
    if not parent.is_dir():
        raise ValueError(f"{named} cannot be written, because {parent} is a file; give another path")
    _refuse_unwritable(named, path.absolute(), path.absolute() if output.folder and path.is_dir() else parent)


def _refuse_unwritable(named: str, path: Path, folder: Path) -> None:
    """Refuses an output for which nothing can be written into `folder`, the nearest one that is there, by a trial.

    The names on the way to `path` that are not there yet are tried too.
    """
    try:
        trial = tempfile.mkdtemp(prefix=f".{SOFTWARE}-", dir=folder)
        try:
            for part in path.relative_to(folder).parts:
                if part != os.pardir:
                    os.mkdir(os.path.join(trial, part))
                    os.rmdir(os.path.join(trial, part))
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"{named} cannot be written into {folder}: {error.strerror}; give another path") from None


def _others_in(folder: Path, made: Callable[[Path], bool]) -> Iterator[str]:
    """Names of what a command did not make in `folder`; hidden files and the logs of job schedulers do not count."""
    for path in folder.iterdir():
        aside = path.name.startswith(".") or path.suffix in _LOGS or path.name == "logs"
        if not aside and not (path.is_dir() and (made(path) or any(path.glob("*/key.json")))):
            yield path.name


def _is_same(first: str, second: str) -> bool:
    """Whether two paths lead to one file or folder, which need not be there."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return os.path.realpath(first) == os.path.realpath(second)


def _is_one_of(path: str, others: list[str]) -> bool:
    """Whether something is at `path` that is also at one of `others`."""
    if not os.path.exists(path):
        return False
    found = os.stat(path)
    for each in others:
        try:
            if os.path.samestat(found, os.stat(each)):
                return True
        except OSError:  # a link to nothing
            continue
    return False


def _is_within(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it at any depth."""
    real = Path(os.path.realpath(path))
    if not os.path.exists(folder):
        return Path(os.path.realpath(folder)) in (real, *real.parents)
    return any(os.path.exists(each) and os.path.samefile(each, folder) for each in (real, *real.parents))


def _is_at(folder: str, wanted: str) -> bool:
    """Whether `folder` is `wanted`, or is named by it where it is a pattern."""
    if not glob.has_magic(wanted):
        return _is_same(folder, wanted)
    return any(Path(spell(folder)).match(os.path.abspath(wanted)) for spell in (os.path.abspath, os.path.realpath))


# --- what commands know as their own ---------------------------------------------------------------------------------


def made_nothing(path: Path) -> bool:
    """For outputs that must not be there."""
    return False


def made_anything(path: Path) -> bool:
    """For folders in which nothing is replaced, such as that of cached features."""
    return True


def made_picture(path: Path) -> bool:
    """Whether a file is a PNG file that a command drew."""
    return _starts_with(path, b"\x89PNG") and f"tEXtSoftware\0{SOFTWARE}".encode() in _head(path)


def made_animation(path: Path) -> bool:
    """Whether a file is an animated GIF or WebP file that a command drew."""
    if _starts_with(path, b"GIF8"):
        return SOFTWARE.encode() in _head(path)
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, 4096), os.SEEK_END)
        return _starts_with(path, b"RIFF") and SOFTWARE.encode() in file.read()


def made_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    if (folder / STATE_FILE).exists():  # one of its checkpoints
        return False
    config = folder / CONFIG_FILE
    if _starts_with(config, SIGNATURE.encode()) or any(folder.glob(f"{CHECKPOINTS}/step-*/{STATE_FILE}")):
        return True
    return config.is_file() and (folder / METRICS_FILE).is_file()  # of 0.5 and before


def made_curation(folder: Path) -> bool:
    """Whether a folder is that of a curation."""
    config = folder / "curation.yaml"
    return _starts_with(config, SIGNATURE.encode()) or (config.is_file() and (folder / "stages").is_dir())


def made_evaluation(folder: Path) -> bool:
    """Whether a folder has results of an evaluation, or what one leaves before its end."""
    results = folder / "results.json"
    if results.is_file():
        return b'"versions": {' in (text := results.read_bytes()) and f'"{SOFTWARE}": "'.encode() in text
    return any((folder / name).exists() for name in ("finetune.pt", "heads.csv", "corruptions.csv", "propagation"))


def made_classifier(folder: Path) -> bool:
    """Whether a folder has a fine-tuned classifier of this package."""
    config = folder / "config.json"
    return config.is_file() and b"ForImageClassification" in config.read_bytes()


def _starts_with(path: Path, start: bytes) -> bool:
    return path.is_file() and _head(path).startswith(start)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)
