"""The bytes at a path, in an archive or at a URL."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request

from datasets.utils.file_utils import xopen

from .paths import read_stored

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_TIMEOUT, _MAX_DOWNLOAD_SECONDS = 15.0, 60.0
_TRIES = 2
_HEADERS = {"User-Agent": "dinov2_hf"}  # some servers refuse the name that urllib gives itself


def is_url(path: str) -> bool:
    """Whether `path` begins with a protocol."""
    return _URL.match(path) is not None


class Missing(bytes):
    """Stands for the bytes of an image that there are none of; `open_image` raises the reason."""

    reason: str

    def __new__(cls, reason: str) -> Missing:
        missing = super().__new__(cls)
        missing.reason = reason
        return missing

    def __reduce__(self) -> tuple:
        return Missing, (self.reason,)


def read_bytes(path: str) -> bytes:
    """The bytes at a path, a stored name (`paths.py`), a path in an archive (`zip://member::archive`) or a URL.

    `Missing` where there are none.
    """
    if path.startswith(("http://", "https://")):
        return _download(path)
    try:
        if path.startswith("\0"):
            return read_stored(path) or Missing("an empty file")
        with xopen(path, "rb") if is_url(path) else open(path, "rb") as file:
            return file.read() or Missing("an empty file")
    except OSError as error:
        return Missing(_reason(error))
    except Exception as error:  # each kind of archive and each file system has errors of its own
        return Missing(f"cannot be read: {error}")


def _download(url: str) -> bytes:
    """The bytes at `url`. After a failure that may pass there is a second try; a try may take a minute."""
    reason = ""
    for _ in range(_TRIES):
        end, parts = time.monotonic() + _MAX_DOWNLOAD_SECONDS, []
        try:
            request = urllib.request.Request(url, headers=_HEADERS)
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                while part := response.read1(1 << 20):
                    parts.append(part)
                    if time.monotonic() > end:  # the timeout is for one part
                        return Missing(f"not received within {_MAX_DOWNLOAD_SECONDS:g} s")
                data, length = b"".join(parts), int(response.headers.get("Content-Length") or 0)
                if len(data) >= length:
                    return data or Missing("the server sent no bytes")
                reason = f"the server sent {len(data):,} of {length:,} bytes"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}".rstrip()
            if error.code < 500:
                break
        except OSError as error:
            reason = _reason(error.reason if isinstance(error, urllib.error.URLError) else error)
        except (ValueError, http.client.HTTPException) as error:
            reason = f"cannot be fetched: {error or type(error).__name__}"
    return Missing(reason)


def _reason(error: BaseException | str) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT:g} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return f"cannot be read: {error}"
