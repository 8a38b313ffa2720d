"""Pushing from a run: in the background, and never the end of it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import get_token

from ..config import HubConfig
from .push import PushResult, push_folder

logger = logging.getLogger(__name__)


class Publisher:
    """Pushes exports of a run one after the other, in a thread.

    What goes wrong on the way is logged with what to do, and the run goes on. A push that is due while the one before
    has not ended is left out: the next has newer weights.

    Args:
        config: `repo_id` is set.
        folder: takes the exports while they are on their way.

    Raises:
        ValueError: there is no access token.
    """

    def __init__(self, config: HubConfig, folder: Path) -> None:
        if not get_token():
            raise ValueError(
                f"hub.repo_id={config.repo_id} but there is no access token; run `hf auth login`, or set HF_TOKEN to "
                "one with write access"
            )
        self._config, self._folder = config, folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._last: Future | None = None

    def push(self, step: int, exports: Mapping[str, Callable[[Path], Path]]) -> None:
        """Exports every student into a folder of its own and sends it, without waiting.

        Args:
            step: updates made.
            exports: for each student (`""` for the first) what writes its export into a folder.
        """
        if self._last is not None and not self._last.done():
            logger.info("update %d is not pushed: the push before is still on its way", step)
            return
        folders = {}
        for student, export in exports.items():
            folder = self._folder / (student or "first")
            shutil.rmtree(folder, ignore_errors=True)
            folders[student] = export(folder)
        self._last = self._thread.submit(self._send, folders, f"After {step} updates")

    def finish(self, folders: dict[str, Path]) -> None:
        """Waits for what is on its way, and sends the final exports."""
        self._thread.submit(self._send, folders, "The end of the run").result()
        self._thread.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, folders: dict[str, Path], message: str) -> None:
        assert self._config.repo_id is not None
        for student, folder in folders.items():
            repo_id = f"{self._config.repo_id}-{student}" if student else self._config.repo_id
            try:
                result: PushResult = push_folder(
                    folder, repo_id, private=self._config.private, message=message, progress=False
                )
                logger.info("pushed to %s: %s", result.url, message)
            except (ValueError, OSError) as error:
                logger.warning(
                    "nothing was pushed to %s: %s; the run goes on; `dinov2-hf push %s %s` sends its export later",
                    repo_id,
                    error,
                    self._folder.parent,
                    repo_id,
                )
