"""The loopback Hub against huggingface_hub itself: what the other tests of the Hub stand on."""

import hashlib
import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from safetensors.numpy import save_file

START = """
import json, sys
from pathlib import Path
import huggingface_hub as hf
from huggingface_hub import HfApi
from huggingface_hub import errors

def error_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error).__name__
"""


@pytest.fixture
def folder(tmp_path):
    """Two small files and two that go through LFS, one of them in a folder."""
    folder = tmp_path / "folder"
    (folder / "part").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "part" / "notes.txt").write_text("first")
    for seed, name in enumerate(("model.safetensors", "part/more.safetensors")):
        save_file({"x": np.random.default_rng(seed).random(20_000)}, folder / name)
    return folder


def ask(hub, method, path, body=None, token=True, **headers):
    """Status, headers and body of one request."""
    if token:
        headers["Authorization"] = f"Bearer {hub.token}"
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(hub.endpoint + path, data, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_goes_up_and_comes_back_and_a_second_upload_sends_what_changed(hub, hub_process, folder, tmp_path):
    script = f"""{START}
folder, target = sys.argv[1:]
print(hf.create_repo("tester/thing").repo_id, hf.create_repo("thing", exist_ok=True).repo_id)
first = hf.upload_folder(repo_id="tester/thing", folder_path=folder)
Path(folder, "part/notes.txt").write_text("second")
second = hf.upload_folder(repo_id="tester/thing", folder_path=folder)
third = hf.upload_folder(repo_id="tester/thing", folder_path=folder)
assert second.oid == third.oid != first.oid
old = hf.snapshot_download("tester/thing", revision=first.oid, local_dir=target + "/old")
new = hf.snapshot_download("tester/thing", local_dir=target + "/new")
"""
    first = contents(folder)
    done = hub_process(script, folder, tmp_path)
    assert done.stdout.split() == ["tester/thing"] * 2
    for name, expected in (("old", first), ("new", contents(folder))):
        found = contents(tmp_path / name)
        assert {path: found[path] for path in expected} == expected
    assert hub.files("tester/thing") == contents(folder)
    assert len(hub.seen("PUT")) == 2 and len(hub.seen("POST", "/commit/")) == 2
    newest, before, _ = hub.repositories["models", "tester/thing"].branches["main"].history()
    assert {path for path in newest.files if newest.files[path] != before.files[path]} == {"part/notes.txt"}


def test_references_and_deletion(hub, hub_process, folder):
    script = f"""{START}
api, folder = HfApi(), sys.argv[1]
api.create_repo("tester/thing")
first = api.upload_folder(repo_id="tester/thing", folder_path=folder, allow_patterns="*.json").oid
api.create_tag("tester/thing", tag="v1")
api.create_branch("tester/thing", branch="try/one")
second = api.upload_folder(repo_id="tester/thing", folder_path=folder, revision="try/one").oid
refs = api.list_repo_refs("tester/thing")
assert {{ref.name: ref.target_commit for ref in refs.branches}} == {{"main": first, "try/one": second}}
assert {{ref.name: ref.target_commit for ref in refs.tags}} == {{"v1": first}}
assert [item.commit_id for item in api.list_repo_commits("tester/thing", revision="try/one")][:2] == [second, first]
assert "model.safetensors" in api.list_repo_files("tester/thing", revision="try/one")
assert "model.safetensors" not in api.list_repo_files("tester/thing", revision="v1")
tree = {{item.path: item for item in api.list_repo_tree("tester/thing", revision="try/one", recursive=True)}}
assert tree["model.safetensors"].lfs.size == tree["model.safetensors"].size and tree["config.json"].lfs is None
api.delete_file("part/notes.txt", "tester/thing", revision="try/one")
assert not api.file_exists("tester/thing", "part/notes.txt", revision="try/one")
assert error_of(api.create_tag, "tester/thing", tag="v1") == "HfHubHTTPError"
api.delete_tag("tester/thing", tag="v1")
api.delete_branch("tester/thing", branch="try/one")
assert not api.revision_exists("tester/thing", "v1") and not api.revision_exists("tester/thing", "try/one")
api.delete_repo("tester/thing")
assert not api.repo_exists("tester/thing")
"""
    hub_process(script, folder)


def test_every_error_has_its_class(hub, hub_process):
    hub.create("tester/thing")
    hub.create("tester/secret", private=True)
    hub.create("tester/gated").gated = True
    hub.create("other/thing")
    script = f"""{START}
api, content = HfApi(), dict(path_or_fileobj=b"x", path_in_repo="x")
found = dict(
    repository=error_of(api.model_info, "tester/nothing"),
    file_of_nothing=error_of(hf.hf_hub_download, "tester/nothing", "config.json"),
    revision=error_of(hf.hf_hub_download, "tester/thing", "config.json", revision="v9"),
    revision_of_upload=error_of(api.upload_file, **content, repo_id="tester/thing", revision="v9"),
    entry=error_of(hf.hf_hub_download, "tester/thing", "config.json"),
    folder=error_of(list, api.list_repo_tree("tester/thing", "nowhere")),
    gated=error_of(hf.hf_hub_download, "tester/gated", "config.json"),
    wrong_token=error_of(HfApi(token="hf_wrong").whoami),
    wrong_token_for_repository=error_of(HfApi(token="hf_wrong").model_info, "tester/thing"),
    private=error_of(HfApi(token=False).model_info, "tester/secret"),
    nothing_without_token=error_of(HfApi(token=False).model_info, "tester/nothing"),
    public=error_of(HfApi(token=False).model_info, "tester/thing"),
    reader=error_of(HfApi(token=sys.argv[1]).create_repo, "tester/new"),
    reader_sees=error_of(HfApi(token=sys.argv[1]).model_info, "tester/secret"),
    stranger=error_of(api.upload_file, **content, repo_id="other/thing"),
    exists=error_of(api.create_repo, "tester/thing"),
)
print(json.dumps(found))
"""
    found = json.loads(hub_process(script, hub.read_token).stdout)
    missing = dict.fromkeys(("repository", "file_of_nothing", "private", "nothing_without_token"))
    assert found == {
        **dict.fromkeys(missing, "RepositoryNotFoundError"),
        **dict.fromkeys(("revision", "revision_of_upload"), "RevisionNotFoundError"),
        **dict.fromkeys(("entry", "folder"), "RemoteEntryNotFoundError"),
        "gated": "GatedRepoError",
        **dict.fromkeys(("wrong_token", "wrong_token_for_repository"), "HfHubHTTPError"),
        **dict.fromkeys(("reader", "stranger", "exists"), "HfHubHTTPError"),
        **dict.fromkeys(("public", "reader_sees")),
    }


def test_stock_transformers_loads_a_repository(hub, hub_process, tmp_path):
    """`AutoModel`, image processor and pipeline, in a process that cannot import dinov2_hf."""
    script = f"""{START}
sys.modules["dinov2_hf"] = None
import numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, BitImageProcessor, Dinov2Config, Dinov2Model, pipeline
torch.manual_seed(0)
shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
model = Dinov2Model(Dinov2Config(**shape)).eval()
model.push_to_hub("tester/tiny", revision="try")
size = dict(size={{"shortest_edge": 28}}, crop_size={{"height": 28, "width": 28}})
BitImageProcessor(**size).push_to_hub("tester/tiny", revision="try")
again = AutoModel.from_pretrained("tester/tiny", revision="try")
image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
pixels = AutoImageProcessor.from_pretrained("tester/tiny", revision="try")(image, return_tensors="pt").pixel_values
with torch.no_grad():
    expected = model(pixels).last_hidden_state
    assert torch.equal(again(pixels).last_hidden_state, expected)
extractor = pipeline("image-feature-extraction", model="tester/tiny", revision="try")
torch.testing.assert_close(torch.tensor(extractor(image)), expected)
"""
    hub.create("tester/tiny")
    hub.repositories["models", "tester/tiny"].branches["try"] = hub.repositories["models", "tester/tiny"].at("main")
    hub_process(script)


@pytest.mark.parametrize("streaming", [True, False])
def test_datasets_reads_a_set_of_parquet(hub, hub_process, streaming):
    script = f"""{START}
import datasets
made = datasets.Dataset.from_dict({{"label": list(range(50)), "text": [str(i) * 50 for i in range(50)]}})
made.push_to_hub("tester/numbers", num_shards=2)
found = datasets.load_dataset("tester/numbers", split="train", streaming={streaming})
rows = list(found)  # a stream that is left half-read may abort the interpreter at its end
assert [row["label"] for row in rows] == list(range(50)) and rows[0]["text"] == "0" * 50
"""
    hub_process(script)
    assert sum(name.endswith(".parquet") for name in hub.files("tester/numbers", kind="datasets")) == 2


def test_download_that_is_cut_continues_where_it_was_cut(hub, hub_process, tmp_path):
    repository = hub.create("tester/thing")
    data = np.random.default_rng(0).bytes(24 << 20)  # half of it is more than the 10 MiB that are written at a time
    repository.objects[hashlib.sha256(data).hexdigest()] = data
    pointer = {"path": "model.safetensors", "algo": "sha256", "oid": hashlib.sha256(data).hexdigest()}
    header = {"key": "header", "value": {"summary": "a model"}}
    repository.commit("main", [header, {"key": "lfsFile", "value": pointer}])
    hub.fail("GET", "model.safetensors", "cut")
    done = hub_process(
        f'{START}print(hf.hf_hub_download("tester/thing", "model.safetensors", local_dir=sys.argv[1]))', tmp_path
    )
    assert (tmp_path / "model.safetensors").read_bytes() == data, done.stderr
    assert [request.status for request in hub.seen("GET", "model.safetensors")] == [200, 206]


def test_ranges_are_those_of_http(hub):
    repository = hub.create("tester/thing")
    content = {"path": "letters.txt", "content": "YWJjZGVmZ2hpag==", "encoding": "base64"}
    header = {"key": "header", "value": {"summary": "letters"}}
    repository.commit("main", [header, {"key": "file", "value": content}])
    path = "/tester/thing/resolve/main/letters.txt"
    for asked, answer, named in (
        ("0-2", b"abc", "0-2"),
        ("7-", b"hij", "7-9"),
        ("-2", b"ij", "8-9"),
        ("8-99", b"ij", "8-9"),
    ):
        status, headers, body = ask(hub, "GET", path, Range=f"bytes={asked}")
        assert (status, body, headers["Content-Range"]) == (206, answer, f"bytes {named}/10")
    for asked in ("10-", "5-3", "-"):
        status, headers, _ = ask(hub, "GET", path, Range=f"bytes={asked}")
        assert (status, headers["Content-Range"]) == (416, "bytes */10")
    status, headers, body = ask(hub, "HEAD", path)
    assert (status, body, headers["Content-Length"]) == (200, b"", "10")
    assert headers["ETag"] == f'"{hashlib.sha1(b"blob 10" + bytes(1) + b"abcdefghij").hexdigest()}"'
    assert headers["X-Repo-Commit"] == repository.at("main").oid


def test_objects_are_what_was_announced_and_commits_name_what_is_stored(hub):
    hub.create("tester/thing")
    announced = {"oid": hashlib.sha256(b"right").hexdigest(), "size": 5}
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [announced]}
    header = json.dumps({"key": "header", "value": {"summary": "object"}})
    pointer = {"path": "model.safetensors", "algo": "sha256", **announced}
    commit = f"{header}\n{json.dumps({'key': 'lfsFile', 'value': pointer})}\n".encode()

    def send_commit():
        headers = {"Content-Type": "application/x-ndjson"}
        return ask(hub, "POST", "/api/models/tester/thing/commit/main", commit, **headers)[0]

    assert send_commit() == 400
    answer = json.loads(ask(hub, "POST", "/tester/thing.git/info/lfs/objects/batch", batch)[2])
    target = answer["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    assert ask(hub, "PUT", target, b"wrong", token=False)[0] == 400
    assert ask(hub, "PUT", target, b"right", token=True)[0] == 400
    assert ask(hub, "PUT", target + "0", b"right", token=False)[0] == 403
    assert send_commit() == 400
    assert ask(hub, "PUT", target, b"right", token=False)[0] == 200
    assert send_commit() == 200
    assert hub.files("tester/thing") == {"model.safetensors": b"right"}
    answer = json.loads(ask(hub, "POST", "/tester/thing.git/info/lfs/objects/batch", batch)[2])
    assert "actions" not in answer["objects"][0]


def test_unknown_routes_are_answered_with_404_and_remembered(hub):
    status, _, body = ask(hub, "GET", "/api/spaces/tester/thing")
    assert status == 404 and "error" in json.loads(body)
    assert hub.unknown == ["GET /api/spaces/tester/thing"]
    hub.unknown.clear()
