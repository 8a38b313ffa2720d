"""Which requests reach the page: those for its names, from itself, of few enough bytes."""

import asyncio

import pytest

from dinov2_hf.visualize.page_guard import MOST_OTHER_BYTES, Guard

MOST = 3 * MOST_OTHER_BYTES


class Page:
    """An application that reads the whole body and counts its bytes."""

    def __init__(self):
        self.read, self.reached = 0, False

    async def __call__(self, scope, receive, send):
        self.reached = True
        more = scope["type"] == "http"
        while more:
            message = await receive()
            self.read += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})


def ask(
    host="127.0.0.1:8080", origin="", *, served="127.0.0.1", allowed=(), path="/", chunks=(b"",), length=None, **more
):
    """The status that a request gets, or `closed` for a socket; the text of a refusal; and the page behind it."""
    headers = [(b"host", host.encode("latin-1"))]
    headers += [(b"origin", origin.encode())] if origin else []
    headers += [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "path": path, "headers": headers} | more
    waiting, sent, page = list(chunks), [], Page()

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(page, served, allowed, MOST)(scope, receive, send))
    status = "closed" if sent[0]["type"] == "websocket.close" else sent[0]["status"]
    text = sent[1]["body"].decode() if len(sent) > 1 else sent[0].get("reason", "")
    assert text.count("\n") <= 1 and (page.reached or status != 200)
    return status, text, page


@pytest.mark.parametrize("kind, refused", [("http", 403), ("websocket", "closed")])
@pytest.mark.parametrize(
    "served, host, taken",
    [
        ("127.0.0.1", "127.0.0.1:8080", True),
        ("127.0.0.1", "localhost:9999", True),  # through a tunnel from another port
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]:8080", True),
        ("127.0.0.1", "evil.example:8080", False),  # a name of another site that leads to this machine
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "evil.example@localhost", False),
        ("127.0.0.1", "localhost/evil.example", False),
        ("127.0.0.1", "10.0.0.5:8080", False),
        ("127.0.0.1", "[::1", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "10.0.0.5:8080", True),
        ("0.0.0.0", "[fe80::1]:8080", True),
        ("0.0.0.0", "localhost:8080", True),
        ("0.0.0.0", "evil.example:8080", False),
        ("lab.example", "lab.example:8080", True),
        ("lab.example", "evil.example:8080", False),
    ],
)
def test_only_names_of_the_page_are_served(served, host, taken, kind, refused):
    status, text, _ = ask(host, served=served, type=kind)
    assert (status == 200) == taken
    if not taken:
        assert status == refused and repr(host) in text and "--allow" in text


@pytest.mark.parametrize("kind, refused", [("http", 403), ("websocket", "closed")])
@pytest.mark.parametrize(
    "host, origin, taken",
    [
        ("localhost:8080", "http://localhost:8080", True),
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("localhost:8080", "http://localhost:3000", False),  # another page on this machine
        ("localhost:8080", "https://evil.example", False),
        ("localhost:8080", "https://localhost:8080.evil.example", False),
        ("localhost:8080", "null", False),
    ],
)
def test_only_the_page_itself_may_ask(host, origin, taken, kind, refused):
    status, text, _ = ask(host, origin, type=kind)
    assert status == (200 if taken else refused)
    assert taken or repr(origin) in text


def test_further_names_are_those_of_proxies():
    allowed = ["Vis.example"]
    assert ask("vis.example", "https://vis.example", allowed=allowed)[0] == 200
    assert ask("127.0.0.1:8080", "https://vis.example", allowed=allowed)[0] == 200  # a proxy that changes the host
    assert ask("evil.example", "https://vis.example", allowed=allowed)[0] == 403
    assert ask("vis.example", "https://evil.example", allowed=allowed)[0] == 403


def test_a_body_that_says_that_it_is_too_long_is_not_read():
    status, text, page = ask(path="/upload/x", length=MOST + 1, chunks=[bytes(10)])
    assert status == 413 and f"More than {MOST:,} bytes" in text and not page.reached
    assert ask(path="/upload/x", length=MOST, chunks=[bytes(10)])[0] == 200


@pytest.mark.parametrize(
    "path, most", [("/upload/x", MOST), ("/", MOST_OTHER_BYTES), ("/_nicegui_ws/x", MOST_OTHER_BYTES)]
)
def test_a_body_of_unknown_length_is_read_up_to_the_limit(path, most):
    chunk = bytes(most // 4)
    status, text, page = ask(path=path, chunks=[chunk] * 100)
    assert status == 413 and f"More than {most:,} bytes" in text and page.read == most
    status, _, page = ask(path=path, chunks=[chunk] * 4)
    assert status == 200 and page.read == most
