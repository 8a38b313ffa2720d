"""A small Hub on loopback: what huggingface_hub asks of the real one, and as strict as it.

`LoopbackHub` is a context manager; the fixtures `hub` and `hub_login` (fixtures.py) hand it to tests. Its state can be
looked at and changed directly while it serves.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from ..patience import HANGS
from .routes import ROUTES
from .storage import HubError, Repository


@dataclass
class User:
    name: str
    can_write: bool = True
    organizations: tuple[str, ...] = ("lab",)

    def may_write(self, repo_id: str) -> bool:
        return self.can_write and repo_id.split("/")[0] in (self.name, *self.organizations)


@dataclass
class Request:
    """A request that the server has seen."""

    method: str
    path: str
    token: str | None
    received: int = 0
    """Bytes of the body that have arrived."""
    status: int | None = None
    """None where no answer was given."""


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests that match."""

    method: str
    pattern: str
    kind: str
    """status: an error instead of the work; lost: the work is done, an error answers; slow: all is as it should be,
    after `seconds`; cut: half of the body (of a GET: of the answer) and the connection is closed; hold: half of the
    body, then nothing until `release`."""
    times: int = 1
    status: int = 500
    message: str = "something went wrong"
    """Of the answer's body; `{authorization}` repeats what the client sent."""
    seconds: float = 0
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class LoopbackHub:
    """Serves until the end of its `with` block.

    Attributes:
        endpoint: for `HF_ENDPOINT`.
        token, read_token: of the user `tester`, who may write to `tester/…` and `lab/…`, or may only read.
        repositories: by `(kind, id)`, such as `("models", "tester/vits14")`.
        requests: seen so far, in order.
        unknown: requests for which there is no route, `METHOD path`.
        errors: exceptions inside the server.
    """

    def __init__(self) -> None:
        self.token, self.read_token = (f"hf_{secrets.token_hex(17)}" for _ in range(2))
        self.users = {self.token: User("tester"), self.read_token: User("tester", can_write=False)}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self.errors: list[BaseException] = []
        self.uploads: dict[str, tuple[Repository, str, int]] = {}
        """LFS objects that may be sent, by the path they are sent to: repository, sha256, bytes."""
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.handle_error = self._keep_error
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for fault in self._faults:
            fault.release.set()
        self._server.shutdown()
        self._server.server_close()

    def _keep_error(self, *_) -> None:
        """Keeps what failed outside a request; clients may be killed."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.errors.append(error)

    def create(self, repo_id: str, kind: str = "models", private: bool = False) -> Repository:
        repository = self.repositories[kind, repo_id] = Repository(kind, repo_id, private)
        return repository

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """The files of a revision, without `.gitattributes`."""
        files = self.repositories[kind, repo_id].at(revision).files
        return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}

    def seen(self, method: str, pattern: str = "") -> list[Request]:
        """The requests of `method` whose path matches."""
        return [item for item in self.requests if item.method == method and re.search(pattern, item.path)]

    def fail(self, method: str, pattern: str, kind: str = "status", **options) -> Fault:
        """Makes the next request that matches go wrong, see `Fault`."""
        self._faults.append(fault := Fault(method, pattern, kind, **options))
        return fault

    def heal(self) -> None:
        """Lets nothing go wrong any more."""
        with self.lock:
            self._faults.clear()

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self._faults:
                if fault.times and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def log_message(self, *_) -> None:
        pass

    # ---- one request

    def _serve(self) -> None:
        hub = self.hub
        url = urlsplit(self.path)
        authorization = self.headers.get("Authorization", "")
        self.request_token = authorization.removeprefix("Bearer ") or None
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.seen = Request(self.command, url.path, self.request_token)
        hub.requests.append(self.seen)
        self.fault = hub.fault_of(self.command, url.path)
        try:
            self.body = self._read_body()
            if self.fault and self.fault.seconds:
                time.sleep(self.fault.seconds)
            if self.fault and self.fault.kind == "status":
                message, repeated = self.fault.message, self.fault.message.format(authorization=authorization)
                raise HubError(self.fault.status, repeated, **{"X-Error-Message": message})
            self._route(url.path)
            if self.fault and self.fault.kind == "lost":
                raise HubError(self.fault.status, self.fault.message)
            self._answer(*self.answer)
        except HubError as error:
            headers = {"X-Error-Message": error.message.splitlines()[0], **error.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            self._answer(error.status, {"error": error.message}, headers)
        except (ConnectionError, _Cut):
            self._hang_up()
        except Exception as error:
            hub.errors.append(error)
            self._answer(500, {"error": repr(error)})

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while length := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            self.seen.received = len(body)
            return body
        length = int(self.headers.get("Content-Length") or 0)
        halfway = self.fault is not None and self.fault.kind in ("cut", "hold") and self.command != "GET"
        body = self.rfile.read(length // 2 if halfway else length)
        self.seen.received = len(body)
        if halfway:
            self.fault.reached.set()
            if self.fault.kind == "hold":
                self.fault.release.wait(HANGS)
            raise _Cut
        if len(body) < length:
            raise ConnectionError("the client went away")
        return body

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, content=None, headers: dict[str, str] | None = None) -> None:
        headers = dict(headers or {})
        if not isinstance(content, bytes):
            content = b"" if content is None else json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        headers.setdefault("Content-Length", str(len(content)))
        self.seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.kind == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            raise _Cut
        self.wfile.write(content)

    def _route(self, path: str) -> None:
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in (self.command, "GET" if self.command == "HEAD" else None):
                groups = {name: unquote(value) if value else value for name, value in match.groupdict().items()}
                with self.hub.lock:
                    self.answer = function(self, **groups)
                return
        self.hub.unknown.append(f"{self.command} {path}")
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    # ---- who asks, and for what

    @property
    def user(self) -> User | None:
        """Who sent the request; None without a token."""
        if self.request_token is None:
            return None
        if self.request_token not in self.hub.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.users[self.request_token]

    def repository(self, kind: str, id: str, write: bool = False) -> Repository:
        user, found = self.user, self.hub.repositories.get((kind, id))
        member = user is not None and id.split("/")[0] in (user.name, *user.organizations)
        if found is None or (found.private and not member):
            if user is None:  # who asks could be one who may see it
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise HubError(401, "Invalid username or password.")
        if write and not user.may_write(id):
            raise HubError(403, "You don't have the required permissions to perform this action")
        return found

    def json(self) -> dict:
        try:
            return json.loads(self.body)
        except ValueError:
            raise HubError(400, "the body is not JSON") from None


class _Cut(Exception):
    """The connection is to be closed without an answer."""
