"""Names of sets on the Hub that cannot be read, and paths that are not looked for there."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest

from dinov2_hf.config import SourceConfig
from dinov2_hf.data.sources.load import load

ANSWERS = {
    "absent": (404, {"X-Error-Code": "RepoNotFound"}),
    "private": (401, {"X-Error-Code": "RepoNotFound"}),
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "refused": (403, {}),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        status, headers = ANSWERS[next(name for name in ANSWERS if name in self.path)]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The requests that a Hub on loopback has got; the working folder is empty."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    yield server.asked
    server.shutdown()
    server.server_close()


def refusal(path, streaming=False):
    with pytest.raises(ValueError) as caught:
        load(SourceConfig(path=str(path)), streaming)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "path, reason",
    [
        ("user/absent", "neither a folder or file here nor a set on the Hub that can be read; check the name"),
        ("absent", "neither a folder or file here nor a set on the Hub"),
        ("user/private", "or log in with `hf auth login`"),
        ("user/gated", "gated; ask for access at https://huggingface.co/datasets/user/gated"),
        ("user/refused", "it cannot be looked for on the Hub"),
    ],
)
def test_set_on_the_hub_that_cannot_be_read_is_refused_with_the_remedy(path, reason, asked):
    message = refusal(path)
    assert message.startswith(path) and reason in message and "here" in message
    assert asked


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_hub_that_cannot_be_reached_is_named_with_the_path_that_is_not_here(streaming, asked, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = refusal("user/name", streaming)
    assert "user/name is not a path here, and it cannot be looked for on the Hub" in message
    assert "HF_HUB_OFFLINE" in message
    assert not asked


@pytest.mark.parametrize(
    "path",
    [
        "images/absent",  # whose folder is here
        "images/trian",
        "./absent",
        "../absent",
        "/absent/absent",
        "a/b/absent",
        "user/absent/",
        "absent.parquet",
        "user/absent.JPG",
        "user/absent.csv",
        "absent.txt",
        "~/absent",
        "user\\absent",
        "my images",
        "-absent",
    ],
)
def test_path_that_is_meant_to_lie_here_is_never_asked_of_the_hub(path, asked, tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    message = refusal(path)
    assert "does not exist; give a folder of images" in message
    assert ("did you mean images/train?" in message) == (path == "images/trian")
    assert not asked


@pytest.mark.parametrize("path", ["https://example.org/a.tar", "hf://datasets/user/name", "s3://bucket/a.parquet"])
def test_url_is_no_source(path, asked):
    assert f"{path} is a URL" in refusal(path)
    assert not asked
