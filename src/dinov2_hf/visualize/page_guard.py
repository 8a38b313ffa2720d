"""What the page refuses before its code runs: requests for other names, from other pages, of too many bytes."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

UPLOAD_PATH = "/upload/"
"""Start of the paths that take images."""
MOST_OTHER_BYTES = 1 << 20
"""Of a request to any other path."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """An ASGI middleware that refuses requests with one line of text.

    - Status 403: the header `Host` is not a name of the page, so that another site's name that leads to this machine
      does not reach it; or the header `Origin` is that of another page.
    - Status 413: a body of too many bytes, by `Content-Length`, or counted while it comes.

    Args:
        host: the address that the page listens on. One of this machine only has the names `localhost`, `127.0.0.1` and
            `::1`; any other also the machine's name and every IP address, which no other site can claim.
        allowed: further names, of which other origins are taken too, as of a proxy before the page.
        most_bytes: of an upload.
    """

    def __init__(self, app: App, host: str, allowed: Sequence[str], most_bytes: int) -> None:
        self.app, self._most_bytes = app, most_bytes
        self._allowed = {name.lower() for name in allowed}
        self._names = {host.lower(), *_LOOPBACK, *self._allowed}
        self._any_address = host.lower() not in _LOOPBACK
        if self._any_address:
            self._names.add(socket.gethostname().lower())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        refusal = self._refusal(_header(scope, b"host"), _header(scope, b"origin"))
        if scope["type"] == "websocket":
            if refusal:
                return await send({"type": "websocket.close", "code": 1008, "reason": refusal})  # status 403
            return await self.app(scope, receive, send)
        if refusal:
            return await _answer(send, 403, refusal)
        most = self._most_bytes if scope["path"].startswith(UPLOAD_PATH) else MOST_OTHER_BYTES
        await self._limited(most, scope, receive, send)

    def _refusal(self, host: str, origin: str) -> str:
        """What is wrong with the headers; empty where nothing is."""
        name = _name_of(f"//{host}")
        if name not in self._names and not (self._any_address and _is_address(name)):
            return f"This page is not served as {host!r}; where that is one of its names, start it with --allow NAME."
        if not origin or _name_of(origin) in self._allowed:
            return ""
        if origin.partition("://")[2].lower() != host.lower():
            return f"This page takes nothing from {origin!r}; where that is trusted, start it with --allow NAME."
        return ""

    async def _limited(self, most: int, scope: Message, receive: Receive, send: Send) -> None:
        """Answers with status 413 as soon as the body is known to have more than `most` bytes."""
        refusal = f"More than {most:,} bytes; send less at a time."
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > most:
            return await _answer(send, 413, refusal)
        count, started = 0, False

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > most:
                raise _TooManyBytes
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _TooManyBytes:
            if not started:
                await _answer(send, 413, refusal)


class _TooManyBytes(Exception):
    pass


def _header(scope: Message, name: bytes) -> str:
    """The value of a header; of several, all of them, which is the name of nothing."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)


def _name_of(address: str) -> str:
    """The name or the IP address in an address such as `//localhost:8080`; empty where there is none."""
    try:
        parts = urlsplit(address)
        return "" if parts.username or parts.path.strip("/") else (parts.hostname or "")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, text: str) -> None:
    body = f"{text}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),  # the rest of the body is not read
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
