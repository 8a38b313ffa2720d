"""What a person reads when a push cannot be made; the token is never part of it."""

import logging
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from dinov2_hf.cli import main
from dinov2_hf.hub import push_folder


def fails(capsys, *arguments):
    """What a push that ends with status 2 says; the line after the usage is all there is."""
    with pytest.raises(SystemExit) as caught:
        main(["push", *map(str, arguments)])
    assert caught.value.code == 2
    said = capsys.readouterr()
    *_, line = said.err.splitlines()
    assert line.startswith("dinov2-hf: error: ") and "Traceback" not in said.err
    return line


@pytest.mark.parametrize(
    ("repo_id", "options", "message"),
    [
        ("a/b/c", [], "repo_id='a/b/c' is not namespace/name"),
        ("tester/my model", [], "repo_id='tester/my model' is not namespace/name"),
        ("tester/a--b", [], "write it such as my-name/vits14-satellite"),
        ("tester/tiny", ["--tag", "v 1"], "tag='v 1' is not a name for git"),
        ("tester/tiny", ["--revision", "a..b"], "revision='a..b' is not a name for git"),
        ("tester/tiny", ["--revision", "0" * 40], "is a commit or a reference; a push goes to a branch"),
        ("tester/tiny", ["--private", "--public"], "not allowed with argument"),
        ("other/tiny", [], "the access token may not write to other/tiny"),
    ],
)
def test_names_and_permissions(hub_login, export, capsys, repo_id, options, message):
    with pytest.raises(SystemExit) as caught:
        main(["push", str(export), repo_id, *options])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not hub_login.repositories


def test_token_that_is_missing_wrong_or_for_reading_alone(hub_login, export, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub_login.read_token)
    hub_login.create("tester/there")
    for repo_id in ("tester/new", "tester/there"):
        assert f"may not write to {repo_id}" in fails(capsys, export, repo_id)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert "127.0.0.1 does not accept the access token (Invalid credentials" in fails(capsys, export, "tester/tiny")
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no access token; run `hf auth login`" in fails(capsys, export, "tester/tiny")


def test_hub_that_cannot_be_reached(hub_login, export, capsys, monkeypatch):
    endpoint = "http://127.0.0.1:9"
    with pytest.raises(ConnectionError, match="^127.0.0.1 cannot be reached .*; mend the network, HF_ENDPOINT"):
        push_folder(export, "tester/tiny", endpoint=endpoint)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    assert "127.0.0.1 cannot be reached" in fails(capsys, export, "tester/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in fails(capsys, export, "tester/tiny")
    assert hub_login.requests == []


def test_object_that_the_storage_refuses(hub_login, export, capsys):
    hub_login.fail("PUT", "", status=403, message="expired", times=2)
    assert "the access token may not write to tester/tiny (expired)" in fails(capsys, export, "tester/tiny")
    hub_login.fail("PUT", "", status=400, message="another sha256", times=2)
    assert "127.0.0.1 refuses the push of tester/tiny (400, another sha256)" in fails(capsys, export, "tester/tiny")
    assert hub_login.files("tester/tiny") == {}


def test_file_that_goes_while_it_is_pushed(hub_login, export):
    """The storage answers late, the heads are gone by then: an `OSError` as any other, which no run dies of."""
    hub_login.create("tester/tiny")
    hub_login.fail("GET", "/tree/main", "slow", seconds=0.5)
    with ThreadPoolExecutor(max_workers=1) as background:
        future = background.submit(push_folder, export, "tester/tiny", progress=False)
        while not hub_login.seen("GET", "/tree/main"):
            time.sleep(0.01)
        (export / "heads.safetensors").unlink()
    assert isinstance(future.exception(), OSError) and "heads.safetensors" in str(future.exception())


def test_metadata_that_the_hub_refuses(hub_login, export, capsys):
    (export / "README.md").write_text("---\nlicense: mit\n")
    assert "the metadata is not closed by ---" in fails(capsys, export, "tester/tiny")


def test_token_is_in_no_output_log_or_exception(hub_login, export, capfd, caplog, monkeypatch):
    """Through success, failures, a Hub that repeats what it was sent, and a token given in the wrong place."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("huggingface_hub").setLevel(logging.DEBUG)
    monkeypatch.setattr("dinov2_hf.hub.push._WAITS", (0,))
    hub, told = hub_login, []

    def attempt(*arguments, **options):
        try:
            told.append(push_folder(export, *arguments, **options).describe())
        except Exception as error:
            told.extend([str(error), repr(error), *traceback.format_exception(error)])
            told.extend(repr(argument) for argument in error.args)
            if not options:
                with pytest.raises(SystemExit):
                    main(["push", str(export), *arguments])

    attempt("tester/tiny")
    attempt("other/tiny")
    attempt(hub.token)
    attempt(f"tester/{hub.token}")
    attempt("tester/tiny", token=hub.read_token, tag="v1")
    for status in (400, 401, 403, 404, 500):
        (export / "config.json").write_text(f"[{status}]")
        hub.fail("POST", "/commit/", status=status, times=4, message="you sent: {authorization}")
        attempt("tester/tiny")
        hub.heal()
    (export / "README.md").write_text(f"my token is {hub.token}")
    attempt("tester/tiny")
    with pytest.raises(SystemExit):
        main(["push", str(export), "tester/tiny", "--token", hub.token])
    printed = capfd.readouterr()
    everything = "\n".join([*told, printed.out, printed.err, caplog.text])
    assert "you sent: Bearer hf_***" in everything  # or the Hub was not heard
    assert hub.token not in everything and hub.read_token not in everything
    assert all(hub.token.encode() not in data for data in hub.files("tester/tiny").values())
