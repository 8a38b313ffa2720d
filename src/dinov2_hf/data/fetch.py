"""The bytes at a path, in an archive or at a URL."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request

from datasets.utils.file_utils import xopen

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_TIMEOUT, _MAX_DOWNLOAD_SECONDS = 15.0, 60.0
_TRIES = 2
_HEADERS = {"User-Agent": "dinov2_hf"}  # some servers refuse the name that urllib gives itself


def is_url(path: str) -> bool:
    """Whether `path` begins with a protocol."""
    return _URL.match(path) is not None


def read_bytes(path: str) -> bytes:
    """The bytes at a path, a path in an archive or a URL; none where there are none."""
    if path.startswith(("http://", "https://")):
        return _download(path)
    try:
        with xopen(path, "rb") as file:  # reads inside archives, too
            return file.read()
    except (OSError, ValueError):
        return b""


def _download(url: str) -> bytes:
    """The bytes at `url`, tried once more if a try fails, and none if that fails too or takes longer than a minute."""
    for _ in range(_TRIES):
        end, parts = time.monotonic() + _MAX_DOWNLOAD_SECONDS, []
        try:
            request = urllib.request.Request(url, headers=_HEADERS)
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                while part := response.read1(1 << 20):
                    parts.append(part)
                    if time.monotonic() > end:  # the timeout is for one part
                        return b""
                data = b"".join(parts)
                if len(data) >= int(response.headers.get("Content-Length") or 0):
                    return data
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return b""
        except (OSError, ValueError, http.client.HTTPException):
            continue
    return b""
