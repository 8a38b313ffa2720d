"""Pushing an export: what arrives, what is sent again, and what happens when the network or the Hub fails."""

import hashlib
import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dinov2_hf.cli import main
from dinov2_hf.hub import push_folder

from ..patience import HANGS

NAMES = ["README.md", "config.json", "heads.safetensors", "model.safetensors", "preprocessor_config.json"]
PUSH = "import sys; from dinov2_hf.cli import main; main(['push', *sys.argv[1:]])"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def commits(hub, repo_id="tester/tiny", branch="main"):
    """Of a branch, without the one that made the repository."""
    return hub.repositories["models", repo_id].branches[branch].history()[:-1]


def puts_of(hub, path):
    """Requests that sent the content of a file, or a part of it."""
    return hub.seen("PUT", sha256(path))


def wait_until(condition):
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_push_makes_a_repository_with_every_file_of_the_export(hub_login, export):
    result = push_folder(export, "tester/tiny", message="first weights")
    files = hub_login.files("tester/tiny")
    assert sorted(files) == sorted(result.sent) == NAMES
    for name in set(NAMES) - {"README.md"}:
        assert files[name] == (export / name).read_bytes()
    (commit,) = commits(hub_login)
    assert (commit.title, commit.oid) == ("first weights", result.commit)
    assert result.url == f"{hub_login.endpoint}/tester/tiny/tree/main"
    assert result.private is False and not result.dry_run


def test_card_names_the_repository_in_place_of_the_placeholder(hub_login, export):
    before = (export / "README.md").read_text()
    push_folder(export, "tiny")  # a name alone is one of the token's user
    card = hub_login.files("tester/tiny")["README.md"].decode()
    assert card == before.replace("PATH_OR_REPO", "tester/tiny") != before
    assert (export / "README.md").read_text() == before


def test_second_push_sends_what_changed_and_nothing_else(hub_login, export):
    first = push_folder(export, "tester/tiny")
    same = push_folder(export, "tester/tiny")
    assert (same.sent, same.commit) == ((), first.commit)
    save_file({"encoder.weight": np.ones(30_000)}, export / "model.safetensors")
    changed = push_folder(export, "tester/tiny")
    assert changed.sent == ("model.safetensors",)
    assert [commit.oid for commit in commits(hub_login)] == [changed.commit, first.commit]
    assert len(hub_login.seen("PUT")) == 3


def test_output_folder_of_a_run_stands_for_its_export(hub_login, export, capsys):
    (export.parent / "config.yaml").write_text(f"train:\n  output_dir: {export.parent}\n")
    main(["push", str(export.parent), "tester/tiny"])
    assert sorted(hub_login.files("tester/tiny")) == NAMES
    out = capsys.readouterr().out
    assert out.startswith("public tester/tiny, revision main, commit ") and "config.yaml" not in out


def test_killed_upload_goes_on_with_what_is_missing(hub_login, hub_process, export):
    """Killed in the middle of the weights, when the heads have arrived: nothing is seen until the rest follows."""
    hub = hub_login
    model, heads = export / "model.safetensors", export / "heads.safetensors"
    fault = hub.fail("PUT", sha256(model), "hold")
    process = hub_process.start(PUSH, export, "tester/tiny")
    assert fault.reached.wait(HANGS)
    wait_until(lambda: [request.status for request in puts_of(hub, heads)] == [200])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    fault.release.set()
    assert hub.files("tester/tiny") == {} and 0 < puts_of(hub, model)[0].received < model.stat().st_size
    push_folder(export, "tester/tiny")
    assert [request.status for request in puts_of(hub, model)] == [None, 200]
    assert len(puts_of(hub, heads)) == 1
    assert hub.files("tester/tiny")["model.safetensors"] == model.read_bytes()
    assert hub.files("tester/tiny")["heads.safetensors"] == heads.read_bytes()


def test_connection_that_is_cut_is_opened_again(hub_login, export):
    hub_login.fail("PUT", sha256(export / "model.safetensors"), "cut")
    push_folder(export, "tester/tiny")
    assert [request.status for request in puts_of(hub_login, export / "model.safetensors")] == [None, 200]
    assert len(puts_of(hub_login, export / "heads.safetensors")) == 1
    assert sorted(hub_login.files("tester/tiny")) == NAMES


@pytest.mark.parametrize("kind", ["status", "lost", "cut"])
@pytest.mark.parametrize("request_of", ["/repos/create", "/commit/", "/tag/", "/branch/"])
def test_passing_failure_of_the_hub_is_survived(hub_login, export, monkeypatch, kind, request_of):
    """Also where the work was done and the answer alone was lost: it is not done twice."""
    monkeypatch.setattr("dinov2_hf.hub.push._WAITS", (0, 0))
    hub_login.fail("POST", request_of, kind, status=503)
    result = push_folder(export, "tester/tiny", revision="try", tag="v1")
    assert len(commits(hub_login, branch="try")) == 1 and len(hub_login.seen("PUT")) == 2
    assert hub_login.repositories["models", "tester/tiny"].tags["v1"].oid == result.commit
    assert len(hub_login.seen("POST", request_of)) == 2 or kind == "lost"


def test_lasting_failure_of_the_hub_ends_in_one_line(hub_login, export, monkeypatch):
    monkeypatch.setattr("dinov2_hf.hub.push._WAITS", (0, 0))
    hub_login.fail("POST", "/commit/", status=502, times=99)
    with pytest.raises(ConnectionError, match=r"^127.0.0.1 answers 502 \(something went wrong\); push again later"):
        push_folder(export, "tester/tiny")
    assert len(hub_login.seen("POST", "/commit/")) == 3
    hub_login.heal()
    push_folder(export, "tester/tiny")
    assert len(hub_login.seen("PUT")) == 2  # what has arrived is not sent twice


def test_tag_names_the_commit_and_does_not_move(hub_login, export):
    first = push_folder(export, "tester/tiny", tag="v1")
    again = push_folder(export, "tester/tiny", tag="v1")
    assert first.commit == again.commit and again.sent == ()
    save_file({"encoder.weight": np.ones(10)}, export / "model.safetensors")
    with pytest.raises(ValueError, match=f"the tag v1 of tester/tiny names commit {first.commit[:8]} already"):
        push_folder(export, "tester/tiny", tag="v1")
    assert len(commits(hub_login)) == 1 and len(hub_login.seen("PUT")) == 2
    second = push_folder(export, "tester/tiny", tag="v2")
    tags = {name: commit.oid for name, commit in hub_login.repositories["models", "tester/tiny"].tags.items()}
    assert tags == {"v1": first.commit, "v2": second.commit}
    assert len(hub_login.files("tester/tiny", "v1")["model.safetensors"]) > 10_000


def test_branch_is_made_and_main_stays(hub_login, export):
    push_folder(export, "tester/tiny", revision="step/1000")
    assert hub_login.files("tester/tiny") == {} and sorted(hub_login.files("tester/tiny", "step/1000")) == NAMES


def test_weights_of_an_earlier_push_do_not_stay_beside_others(hub_login, export):
    """transformers takes `model.safetensors` where it is, whatever shards lie beside it."""
    repository = hub_login.create("tester/tiny")
    notes = {"key": "file", "value": {"path": "notes.md", "content": "bm90ZXM=", "encoding": "base64"}}
    repository.commit("main", [{"key": "header", "value": {"summary": "notes"}}, notes])
    push_folder(export, "tester/tiny")
    (export / "model.safetensors").unlink()
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for shard in shards:
        save_file({f"{shard}.weight": np.zeros(3)}, export / shard)
    (export / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", shards))}))
    result = push_folder(export, "tester/tiny")
    assert result.removed == ("model.safetensors",)
    expected = {*NAMES, *shards, "model.safetensors.index.json", "notes.md"} - {"model.safetensors"}
    assert set(hub_login.files("tester/tiny")) == expected


@pytest.mark.parametrize("option", ["--private", "--public"])
def test_repository_is_private_or_public_as_asked(hub_login, export, capsys, option):
    main(["push", str(export), "tester/tiny", option])
    assert hub_login.repositories["models", "tester/tiny"].private == (option == "--private")
    assert capsys.readouterr().out.startswith(f"{option[2:]} tester/tiny")


def test_private_push_to_a_public_repository_is_refused_before_anything_is_sent(hub_login, export):
    hub_login.create("tester/tiny")
    with pytest.raises(ValueError, match="tester/tiny is public and the push was to be private"):
        push_folder(export, "tester/tiny", private=True)
    assert hub_login.files("tester/tiny") == {} and not hub_login.seen("PUT")


def test_dry_run_lists_and_asks_nobody(hub_login, export, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (export / "notes.txt").write_text("for me")
    main(["push", str(export), "tester/tiny", "--tag", "v1", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "would go to tester/tiny, revision main, tag v1; nothing has been sent"
    assert sorted(line.split()[-1] for line in lines[1:6]) == NAMES
    size = (export / "model.safetensors").stat().st_size
    assert f"{size / 1000:.1f} kB  model.safetensors" in "\n".join(lines)
    assert lines[6].split() == ["left", "out", "notes.txt"]
    assert hub_login.requests == []


def test_push_runs_beside_a_run_without_a_word(hub_login, export, capfd):
    """As the training loop does it: in a thread, one after the other, errors for the loop to log."""
    with ThreadPoolExecutor(max_workers=1) as background:
        first = background.submit(push_folder, export, "tester/tiny", progress=False)
        second = background.submit(push_folder, export, "other/tiny", progress=False)
    assert first.result().commit == commits(hub_login)[0].oid
    assert isinstance(second.exception(), PermissionError)
    assert capfd.readouterr() == ("", "")


def test_commands_of_the_docs_are_valid(hub_login, export, capsys):
    text = (Path(__file__).parents[2] / "docs" / "hub.md").read_text()
    commands = re.findall(r"^dinov2-hf (push .+)$", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        main([word.replace("runs/vits14", str(export.parent)) for word in command.split()] + ["--dry-run"])
        assert "would go to my-name/vits14-satellite" in capsys.readouterr().out
    for path in re.findall(r"`(model_cards/[\w.]+)`", text):
        assert (Path(__file__).parents[2] / path).is_file()
