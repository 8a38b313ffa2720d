"""The routes of the loopback Hub: from a request to status, content and headers."""

from __future__ import annotations

import json
import re
import secrets
from base64 import b64decode
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from .storage import Commit, HubError

if TYPE_CHECKING:
    from .server import Handler


def whoami(ask: Handler):
    if ask.user is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if ask.user.can_write else "read"
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    organizations = [{"name": name, "type": "org"} for name in ask.user.organizations]
    return 200, {"type": "user", "name": ask.user.name, "orgs": organizations, "auth": auth}, {}


def create_repository(ask: Handler):
    given = ask.json()
    if ask.user is None:
        raise HubError(401, "Invalid username or password.")
    kind = given.get("type", "model") + "s"
    repo_id = f"{given.get('organization') or ask.user.name}/{given['name']}"
    if kind not in ("models", "datasets") or not re.fullmatch(r"[\w.-]{1,96}", given["name"]):
        raise HubError(400, "Invalid repo name or type")
    url = f"{ask.hub.endpoint}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"
    if not ask.user.may_write(repo_id):
        raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{repo_id}"')
    if (kind, repo_id) in ask.hub.repositories:
        return 409, {"error": f"You already created this {kind[:-1]} repo", "url": url}, {}
    ask.hub.create(repo_id, kind, private=given.get("visibility") == "private")
    return 200, {"url": url, "name": repo_id, "id": repo_id}, {}


def delete_repository(ask: Handler):
    given = ask.json()
    kind = given.get("type", "model") + "s"
    owner = given.get("organization") or (ask.user.name if ask.user else "")
    repository = ask.repository(kind, f"{owner}/{given['name']}", write=True)
    del ask.hub.repositories[kind, repository.id]
    return 200, None, {}


def validate_yaml(ask: Handler):
    content = ask.json()["content"]
    if not content.startswith("---\n"):
        return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}, {}
    if "\n---\n" not in content[3:]:
        return 400, {"errors": [{"message": "the metadata is not closed by ---"}], "warnings": []}, {}
    return 200, {"errors": [], "warnings": []}, {}


def info(ask: Handler, kind: str, id: str, revision: str | None = None):
    repository = ask.repository(kind, id)
    commit = repository.at(revision or "main")
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    if ask.query.get("blobs", "").lower() == "true":
        for item in siblings:
            entry = repository.entry(commit, item["rfilename"])
            item |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                lfs = entry["lfs"]
                item["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    answer = {"id": repository.id, "sha": commit.oid, "private": repository.private, "tags": [], "siblings": siblings}
    gated = "manual" if repository.gated else False
    return 200, answer | {"gated": gated, "disabled": False, "downloads": 0, "likes": 0}, {}


def tree(ask: Handler, kind: str, id: str, revision: str, path: str | None = None):
    repository = ask.repository(kind, id)
    flags = {name: ask.query.get(name, "").lower() in ("true", "1") for name in ("recursive", "expand")}
    return 200, repository.tree(repository.at(revision), path or "", **flags), {}


def paths_info(ask: Handler, kind: str, id: str, revision: str):
    repository = ask.repository(kind, id)
    commit = repository.at(revision)
    if "json" in ask.headers.get("Content-Type", ""):
        paths = ask.json()["paths"]
    else:
        paths = parse_qs(ask.body.decode()).get("paths", [])
    entries = {entry["path"]: entry for entry in repository.tree(commit, recursive=True)}
    return 200, [entries[path] for path in paths if path in entries], {}


def preupload(ask: Handler, kind: str, id: str, revision: str):
    repository = ask.repository(kind, id, write=True)
    present = repository.at(revision).files
    answers = []
    for file in ask.json()["files"]:
        mode = repository.upload_mode(file["path"], file["size"], b64decode(file["sample"]))
        answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if file["path"] in present:
            answer["oid"] = present[file["path"]].etag
        answers.append(answer)
    return 200, {"files": answers, "commitOid": repository.at(revision).oid}, {}


def lfs_batch(ask: Handler, id: str, prefix: str | None = None):
    repository = ask.repository("datasets" if prefix else "models", id, write=True)
    given = ask.json()
    if given.get("operation") != "upload" or given.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, "only uploads of objects named by sha256 are known here")
    objects = []
    for item in given["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in repository.objects:
            path = f"/storage/{secrets.token_hex(8)}/{item['oid']}"
            ask.hub.uploads[path] = (repository, item["oid"], item["size"])
            answer["actions"] = {"upload": {"href": ask.hub.endpoint + path, "header": {}}}
        objects.append(answer)
    return 200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}


def lfs_put(ask: Handler, **_):
    if ask.request_token is not None:
        raise HubError(400, "Only one auth mechanism allowed")
    if ask.seen.path not in ask.hub.uploads:
        raise HubError(403, "Request has expired")
    repository, oid, size = ask.hub.uploads[ask.seen.path]
    if len(ask.body) != size or sha256(ask.body).hexdigest() != oid:
        raise HubError(400, "The content does not have the announced sha256 and size")
    repository.objects[oid] = ask.body
    return 200, None, {"ETag": f'"{oid}"'}


def commit(ask: Handler, kind: str, id: str, revision: str):
    repository = ask.repository(kind, id, write=True)
    if "ndjson" not in ask.headers.get("Content-Type", ""):
        raise HubError(400, "a commit is application/x-ndjson")
    made = repository.commit(revision, [json.loads(line) for line in ask.body.splitlines() if line.strip()])
    url = f"{ask.hub.endpoint}/{'datasets/' if kind == 'datasets' else ''}{id}/commit/{made.oid}"
    return 200, {"success": True, "commitOid": made.oid, "commitUrl": url}, {}


def resolve(ask: Handler, id: str, revision: str, path: str, prefix: str | None = None):
    repository = ask.repository("datasets" if prefix else "models", id)
    if repository.gated:
        raise HubError(403 if ask.user else 401, "Access to this repository is restricted", "GatedRepo")
    at: Commit = repository.at(revision)
    headers = {"X-Repo-Commit": at.oid, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if path not in at.files:
        raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": at.oid})
    blob = at.files[path]
    headers |= {"ETag": f'"{blob.etag}"'}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    if "Range" not in ask.headers:
        return 200, blob.data, headers
    start, stop = _range_of(ask.headers["Range"], len(blob.data))
    return 206, blob.data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(blob.data)}"}


def _range_of(header: str, size: int) -> tuple[int, int]:
    """Begin and end (exclusive) of `bytes=begin-last`, `bytes=begin-` or `bytes=-length`."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not match or not any(match.groups()):
        raise HubError(416, "Range Not Satisfiable", **{"Content-Range": f"bytes */{size}"})
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HubError(416, "Range Not Satisfiable", **{"Content-Range": f"bytes */{size}"})
    return start, stop


def refs(ask: Handler, kind: str, id: str):
    repository = ask.repository(kind, id)
    lists = {}
    for word, folder, named in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags)):
        lists[word] = [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": at.oid} for name, at in named.items()
        ]
    return 200, lists | {"converts": []}, {}


def commits(ask: Handler, kind: str, id: str, revision: str):
    history = ask.repository(kind, id).at(revision).history()
    common = {"message": "", "authors": [{"user": "tester"}], "date": "2026-01-01T00:00:00.000Z"}
    return 200, [{"id": item.oid, "title": item.title, **common} for item in history], {}


def add_reference(ask: Handler, kind: str, id: str, word: str, name: str):
    """A tag is given in the body and its revision in the address; a branch the other way round."""
    repository, given = ask.repository(kind, id, write=True), ask.json()
    if word == "tag":
        named, new, revision = repository.tags, given["tag"], name
    else:
        named, new, revision = repository.branches, name, given.get("startingPoint", "main")
    if new in named:
        raise HubError(409, f"Reference {new} already exists")
    named[new] = repository.at(revision)
    return 200, None, {}


def delete_reference(ask: Handler, kind: str, id: str, word: str, name: str):
    repository = ask.repository(kind, id, write=True)
    named = repository.tags if word == "tag" else repository.branches
    if name not in named or (word == "branch" and name == "main"):
        raise HubError(404 if name != "main" else 403, f"Reference {name} cannot be deleted", "RevisionNotFound")
    del named[name]
    return 200, None, {}


_REVISION = r"(?P<revision>[^/]+)"
_REFERENCE = r"(?P<word>tag|branch)/(?P<name>[^/]+)"
_ID = r"(?P<id>[\w.-]+(?:/[\w.-]+)?)"
_API = rf"/api/(?P<kind>models|datasets)/{_ID}"
_PLAIN = rf"/(?P<prefix>datasets/)?{_ID}"
ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create_repository),
    ("DELETE", "/api/repos/delete", delete_repository),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("GET", f"{_API}/revision/{_REVISION}", info),
    ("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?", tree),
    ("GET", f"{_API}/refs", refs),
    ("GET", f"{_API}/commits/{_REVISION}", commits),
    ("GET", _API, info),
    ("POST", f"{_API}/paths-info/{_REVISION}", paths_info),
    ("POST", f"{_API}/preupload/{_REVISION}", preupload),
    ("POST", rf"{_PLAIN}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/storage/(?P<key>\w+)/(?P<oid>\w+)", lfs_put),
    ("POST", f"{_API}/commit/{_REVISION}", commit),
    ("POST", f"{_API}/{_REFERENCE}", add_reference),
    ("DELETE", f"{_API}/{_REFERENCE}", delete_reference),
    ("GET", rf"{_PLAIN}/resolve/{_REVISION}/(?P<path>.+)", resolve),
]
