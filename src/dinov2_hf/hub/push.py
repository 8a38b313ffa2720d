"""The way of an exported folder to the Hub: what is missing there is sent, in one commit, and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from ..config import find_tokens, masked
from .contents import REPLACED, Contents, read_contents

Answer = TypeVar("Answer")

PLACEHOLDER = "PATH_OR_REPO"
"""Stands in a card for the name of the model, until it has one on the Hub."""

_WAITS = (1, 2, 4)
"""Seconds before a request that the Hub could not answer is sent again."""


@dataclass(frozen=True)
class PushResult:
    """What a push did, or would do."""

    repo_id: str
    url: str
    revision: str
    files: dict[str, int]
    """Bytes of every file of the export."""
    left_out: list[str]
    """Names of what is not on the list of what may go."""
    adapted: list[str]
    """What is sent otherwise than it lies in the folder."""
    dry_run: bool
    sent: tuple[str, ...] = ()
    """Files that were not there yet, or not as they are here."""
    removed: tuple[str, ...] = ()
    """Weights of an earlier push that the export has no more."""
    commit: str | None = None
    """The newest commit of the revision; None in a dry run."""
    tag: str | None = None
    private: bool | None = None
    """Whether the repository is private; None in a dry run."""

    def describe(self) -> str:
        """The result in words, a line a file."""
        lines = []
        for name, size in self.files.items():
            state = "" if self.dry_run else "" if name in self.sent else "  (there already)"
            lines.append(f"  {_readable(size):>9}  {name}{state}")
        lines += [f"    removed  {name}" for name in self.removed]
        lines += [f"   left out  {name}" for name in self.left_out]
        lines += [f"    adapted  {change}" for change in self.adapted]
        where = f"{self.repo_id}, revision {self.revision}" + (f", tag {self.tag}" if self.tag else "")
        if self.dry_run:
            head = f"would go to {where}; nothing has been sent"
        else:
            head = f"{'private' if self.private else 'public'} {where}, commit {(self.commit or '')[:8]}: {self.url}"
        return "\n".join([head, *lines])


def push_folder(
    folder: str | PathLike,
    repo_id: str,
    *,
    revision: str = "main",
    tag: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> PushResult:
    """Brings a revision on the Hub to what an exported folder holds.

    The repository and the branch are made if they do not exist. Files that are there are not sent again, nor are
    weights of a push that broke off: the same call once more sends the rest. Nothing can be seen on the Hub before the
    last file has arrived, as all of them come with one commit.

    It may run in a thread beside a run: it changes nothing in the folder, shows no bars with `progress=False`, and what
    can go wrong on the way is one of the errors below. The folder must not change meanwhile, and two pushes to one
    revision must not run at the same time: use a `ThreadPoolExecutor(max_workers=1)`.

    Args:
        folder: an export, or the output folder of a run that has one in `export/`.
        repo_id: `namespace/name`; a name alone is one of the token's user.
        revision: the branch.
        tag: name for the commit, such as `v1`; refused where it names something else already.
        private: of a repository that is made: True, False, or as the account has it by default.
        message: of the commit.
        token: default: that of `HF_TOKEN` or of `hf auth login`.
        endpoint: address of the Hub; default: that of `HF_ENDPOINT`.
        dry_run: check everything that can be checked here and list what would go, without any network.
        progress: show a bar a file.

    Raises:
        FileNotFoundError: there is no model in the folder.
        ValueError: the folder holds what must not leave, a name is not one, there is no token, the tag is taken, or the
            repository is public and was to be private.
        PermissionError: the token is not valid, or may not do this.
        ConnectionError: the Hub cannot be reached or does not answer properly.
        OSError: a file cannot be read.
    """
    _check_names(repo_id, revision, tag, message)
    contents = read_contents(Path(folder))
    api = HfApi(endpoint=endpoint)
    if dry_run:
        return _plan(api, contents, repo_id, revision, tag)
    api.token = token or get_token()
    if not api.token:
        raise ValueError("there is no access token; run `hf auth login`, or set HF_TOKEN to one with write access")
    with _bars(progress), _errors_in_one_line(api, repo_id):
        ask = _Patient()
        if "/" not in repo_id:
            repo_id = f"{ask(api.whoami)['name']}/{repo_id}"
        plan = _plan(api, contents, repo_id, revision, tag)
        return _push(ask, api, contents, plan, private, message or "Upload with dinov2_hf")


def _plan(api: HfApi, contents: Contents, repo_id: str, revision: str, tag: str | None) -> PushResult:
    """What would go, after the repository's name has been written into the card."""
    source = contents.files.get("README.md")
    if isinstance(source, Path) and PLACEHOLDER in (text := source.read_text(encoding="utf-8")):
        contents.files["README.md"] = text.replace(PLACEHOLDER, repo_id).encode()
        contents.adapted.append(f"README.md: {repo_id} in place of {PLACEHOLDER}")
    return PushResult(
        repo_id=repo_id,
        url=f"{api.endpoint}/{repo_id}",
        revision=revision,
        files={name: contents.size(name) for name in contents.files},
        left_out=contents.left_out,
        adapted=contents.adapted,
        dry_run=True,
        tag=tag,
    )


def _push(
    ask: _Patient, api: HfApi, contents: Contents, plan: PushResult, private: bool | None, message: str
) -> PushResult:
    repo_id, revision, tag = plan.repo_id, plan.revision, plan.tag
    try:
        info = ask(api.model_info, repo_id)
    except RepositoryNotFoundError:
        ask(api.create_repo, repo_id, private=private, exist_ok=True)
        info = ask(api.model_info, repo_id)
    if private and not info.private:
        raise ValueError(
            f"{repo_id} is public and the push was to be private; make it private in its settings, or give another name"
        )
    refs = ask(api.list_repo_refs, repo_id)
    if revision not in [branch.name for branch in refs.branches]:
        ask(api.create_branch, repo_id, branch=revision, exist_ok=True)
    taken = next((found.target_commit for found in refs.tags if found.name == tag), None)

    def bring() -> PushResult:
        """Looks at what is there each time: of an attempt that seemed to fail, the commit may have been made."""
        there = {entry.path: entry for entry in api.list_repo_tree(repo_id, revision=revision, recursive=True)}
        sent = [
            name for name, source in contents.files.items() if not _same(source, cast(RepoFile | None, there.get(name)))
        ]
        removed = [name for name in there if REPLACED.fullmatch(name) and name not in contents.files]
        head = api.model_info(repo_id, revision=revision).sha
        if taken and (sent or removed or head != taken):
            raise ValueError(f"the tag {tag} of {repo_id} names commit {taken[:8]} already; give another tag")
        if sent or removed:
            operations: list[Any] = [CommitOperationAdd(name, _as_given(contents.files[name])) for name in sent]
            operations += [CommitOperationDelete(name) for name in removed]
            head = api.create_commit(repo_id, operations, commit_message=message, revision=revision).oid
        return replace(
            plan,
            url=f"{api.endpoint}/{repo_id}/tree/{tag or revision}",
            dry_run=False,
            sent=tuple(sent),
            removed=tuple(removed),
            commit=head,
            private=bool(info.private),
        )

    result = ask(bring)
    if tag and not taken:  # exist_ok: an attempt that seemed to fail may have made it
        ask(api.create_tag, repo_id, tag=tag, revision=result.commit, exist_ok=True)
    return result


class _Patient:
    """Calls again what failed for a reason that may pass; not where the Hub has never been reached."""

    def __init__(self) -> None:
        self._reached = False

    def __call__(self, function: Callable[..., Answer], *args: Any, **kwargs: Any) -> Answer:
        for wait in (*_WAITS, None):
            try:
                answer = function(*args, **kwargs)
                self._reached = True
                return answer
            except HfHubHTTPError as error:
                self._reached = True
                if wait is None or error.response.status_code < 500:
                    raise
            except HTTPError:  # of the connection
                if wait is None or not self._reached:
                    raise
            time.sleep(wait)
        raise AssertionError


def _check_names(repo_id: str, revision: str, tag: str | None, message: str | None) -> None:
    """Refuses names before anything is read; what may be a token by mistake is not repeated."""
    if find_tokens(f"{repo_id} {revision} {tag} {message}"):
        raise ValueError("an access token was given as a name; give namespace/name, and the token in HF_TOKEN")
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(
            f"repo_id={repo_id!r} is not namespace/name, each of letters, digits, '_', '-' and '.', with '-' and '.' "
            "neither at an end nor twice in a row, and without '.git'; write it such as my-name/vits14-satellite"
        ) from None
    for kind, value in (("revision", revision), ("tag", tag)):
        if value is not None and (not re.fullmatch(r"\w([\w./-]*\w)?", value) or re.search(r"\.\.|//|\.lock", value)):
            raise ValueError(f"{kind}={value!r} is not a name for git; use letters, digits, '.', '-', '_' and '/'")
    if re.fullmatch(r"[0-9a-f]{40}", revision) or revision.startswith("refs/"):
        raise ValueError(f"revision={revision!r} is a commit or a reference; a push goes to a branch, such as main")


def _same(source: Path | bytes, there: RepoFile | None) -> bool:
    """Whether the Hub has the file with this content."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if there is None or there.size != size:
        return False
    if there.lfs:
        return _digest(source, hashlib.sha256()) == there.lfs.sha256
    return _digest(source, hashlib.sha1(b"blob %d\0" % size)) == there.blob_id


def _digest(source: Path | bytes, digest) -> str:
    if isinstance(source, bytes):
        digest.update(source)
        return digest.hexdigest()
    with source.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def _as_given(source: Path | bytes) -> str | bytes:
    return source if isinstance(source, bytes) else str(source)


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Hides the progress bars of huggingface_hub, all over the process, unless they are to be shown."""
    hide = not shown and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


@contextlib.contextmanager
def _errors_in_one_line(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into one line with a remedy, without the token, whoever repeats it."""
    try:
        yield
    except Exception as caught:
        error = _explain(caught, urlsplit(api.endpoint).hostname or api.endpoint, repo_id)
        if error is None:
            raise
        line = " ".join(masked(str(error).replace(cast(str, api.token), "hf_***")).split())
        raise type(error)(line) from None


def _explain(error: BaseException, host: str, repo_id: str) -> Exception | None:
    """A built-in error that says what to do; None where it is a mistake of ours."""
    again = "push again later, what has arrived is not sent twice"
    if isinstance(error, RuntimeError):  # "Error while uploading …", because of another; or of the storage behind
        cause = _explain(error.__cause__, host, repo_id) if error.__cause__ else None
        return cause or ConnectionError(f"the upload to {host} broke off ({error.__cause__ or error}); {again}")
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, error.server_message or error.response.reason_phrase
        if status == 401:  # a token was sent
            return PermissionError(
                f"{host} does not accept the access token ({said}); run `hf auth login`, or set HF_TOKEN to a valid one"
            )
        if status == 403:
            return PermissionError(
                f"the access token may not write to {repo_id} ({said}); use one with write access, or a namespace of "
                "its user"
            )
        if status == 404:
            return PermissionError(f"{host} has no {repo_id} that the access token may see ({said})")
        if status >= 500 or status in (408, 429):
            return ConnectionError(f"{host} answers {status} ({said}); {again}")
        return ValueError(f"{host} refuses the push of {repo_id} ({status}, {said})")
    if isinstance(error, HTTPError | ConnectionError):
        return ConnectionError(
            f"{host} cannot be reached ({error}); mend the network, HF_ENDPOINT or HF_HUB_OFFLINE, and {again}"
        )
    if isinstance(error, OSError):  # of a file here
        return OSError(str(error))
    return ValueError(str(error)) if isinstance(error, ValueError) else None


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
