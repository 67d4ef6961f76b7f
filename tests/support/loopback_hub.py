"""A small Hugging Face Hub on loopback, for tests that use the real `huggingface_hub` client.

    with LoopbackHub() as hub:
        hub.publish("alice/model", {"config.json": b"{}", "model.safetensors": weights})
        api = HfApi(endpoint=hub.endpoint, token="hf_alice")

All of it is in memory: repositories are commits, commits are maps from path to blob, large files are an LFS store by
sha256 that a second port serves as the "CDN". The CDN refuses a request that carries a token, and its links expire
when told to. Every request is in `hub.log`; `hub.fault(...)` makes the next ones fail. Models only. With `xet=True`
the CDN's port is a Xet store as well, see `loopback_xet`; without, a client that uploads needs HF_HUB_DISABLE_XET=1.
"""

import base64
import fnmatch
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tests.support.loopback_xet import CAS_TOKEN, Cas, token

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.h5", "*.msgpack", "*.onnx", "*.pt", "*.gguf", "*.png", "*.model")
LFS_ABOVE = 10 << 20
DATE = "2026-01-02T03:04:05.000Z"


@dataclass(frozen=True)
class Blob:
    """A file's content, and whether the repository holds a pointer in its stead."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def oid(self) -> str:
        """The git blob id of what the repository holds."""
        stored = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    message: str
    user: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    id: str
    private: bool = False
    gated: str | bool = False
    allowed: set[str] = field(default_factory=set)  # whom a gated repository lets in
    disabled: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    discussions: list[dict[str, Any]] = field(default_factory=list)

    def resolve(self, revision: str) -> Commit:
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if revision in self.commits:
            return self.commits[revision]
        raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, files: Mapping[str, Blob], parent: str | None, user: str, title: str, message: str = "") -> Commit:
        tree = sorted((path, blob.oid) for path, blob in files.items())
        sha = hashlib.sha1(json.dumps([tree, parent, user, title, message]).encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, message, user, dict(files))
        return self.commits[sha]

    def history(self, commit: Commit) -> list[Commit]:
        found = [commit]
        while found[-1].parent:
            found.append(self.commits[found[-1].parent])
        return found


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def belongs_to(self, namespace: str) -> bool:
        return namespace in (self.name, *self.orgs)


ANONYMOUS = User("", role="none")


@dataclass
class Fault:
    """What befalls the next `times` matching requests, after `skip` of them went well."""

    path: str
    method: str | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "injected"
    as_text: bool = False  # the message is the whole answer, as of something that isn't the Hub
    drop_after: int | None = None  # bytes of the answer that still arrive
    lose_reply: bool = False  # carried out, but the answer never arrives
    take_only: int | None = None  # bytes of the request's body that are read before the connection is cut
    delay: float = 0.0
    times: int = 1
    skip: int = 0

    def strikes(self, request: "Request") -> bool:
        if self.times <= 0 or not re.search(self.path, request.path) or self.method not in (None, request.method):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Request:
    """One line of the log, and what a route is given."""

    method: str
    path: str
    headers: Message
    body: bytes
    cdn: bool
    user: User = ANONYMOUS
    status: int | None = None
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")

    @property
    def has_token(self) -> bool:
        return "Authorization" in self.headers

    @property
    def query(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> "Reply":
        return cls(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def ranged(self, wanted: str | None) -> "Reply":
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if not match:
            return self
        size, begin = len(self.body), int(match[1])
        end = min(int(match[2] or size - 1), size - 1)
        if begin > end:
            raise RefusalError(416, "Range Not Satisfiable")
        headers = {**self.headers, "Content-Range": f"bytes {begin}-{end}/{size}"}
        return Reply(self.body[begin : end + 1], 206, headers)


class RefusalError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        codes = {"X-Error-Code": code} if code else {}
        self.reply = Reply.of({"error": message}, status, **codes, **{"X-Error-Message": message}, **headers)


Route = Callable[..., Reply]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def route(methods: str, pattern: str) -> Callable[[Route], Route]:
    """Serve `pattern`, where {id} is namespace/name, {rev} one escaped path segment and {rest} anything."""
    names = {"{id}": r"(?P<id>[^/]+/[^/]+?)", "{rev}": r"(?P<rev>[^/]+)", "{rest}": r"(?P<rest>.+)"}
    for name, regex in names.items():
        pattern = pattern.replace(name, regex)

    def register(function: Route) -> Route:
        ROUTES.append((methods, re.compile(pattern), function))
        return function

    return register


class LoopbackHub:
    """The state of the Hub, and the two servers that show it.

    Attributes:
        users: Token to user. `hf_alice` owns alice/ and writes to team/, `hf_bob` owns bob/, `hf_reader` only reads.
        log: Every request, oldest first.
    """

    def __init__(self, *, xet: bool = False) -> None:
        self.cas = Cas() if xet else None
        self.users = {
            "hf_alice": User("alice", orgs=("team",)),
            "hf_bob": User("bob"),
            "hf_reader": User("carol", role="read"),
        }
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.links = 0  # generation of the signed links; older ones have expired
        self.knows_ranges = True
        self._servers = [_server(self, cdn=False), _server(self, cdn=True)]
        ports = [server.server_address[1] for server in self._servers]
        # Another host, not just another port: what follows redirects within a host mustn't follow this one.
        self.endpoint, self.cdn = f"http://127.0.0.1:{ports[0]}", f"http://localhost:{ports[1]}"

    def __enter__(self) -> "LoopbackHub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on every connection is refused."""
        for server in self._servers:
            server.stop()
        self._servers = []

    def publish(
        self, repo_id: str, files: Mapping[str, bytes], *, branch: str = "main", title: str = "publish", **fields: Any
    ) -> str:
        """Commit these files beside those that are there, without a request. Returns the commit's sha."""
        repo = self.repos.setdefault(repo_id, Repo(repo_id))
        for name, value in fields.items():
            setattr(repo, name, value)
        parent = repo.refs.get(f"refs/heads/{branch}") or repo.refs.get("refs/heads/main")
        old = repo.commits[parent].files if parent else {}
        new = {path: self.blob(path, data) for path, data in files.items()}
        commit = repo.commit({**old, **new}, parent, repo_id.split("/")[0], title)
        repo.refs[f"refs/heads/{branch}"] = commit.sha
        return commit.sha

    def blob(self, path: str, data: bytes) -> Blob:
        blob = Blob(data, is_lfs(path, len(data)))
        if blob.lfs:
            self.objects[blob.sha256] = data
        return blob

    def fault(self, path: str, **what: Any) -> Fault:
        """Make requests whose path matches a regular expression fail; see `Fault`."""
        self.faults.append(Fault(path, **what))
        return self.faults[-1]

    def stored(self, sha256: str) -> bytes | None:
        """A large file that was uploaded, one way or the other; None if it wasn't."""
        return self.objects.get(sha256) or (self.cas.read(sha256) if self.cas else None)

    def xet_hash(self, blob: Blob) -> str | None:
        return self.cas.hashes.get(blob.sha256) if self.cas and blob.lfs else None

    def expire_links(self) -> None:
        self.links += 1

    def environment(self, token: str | None = None) -> dict[str, str]:
        """What a subprocess needs to see this Hub, and no other."""
        tokens = {"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        xet = "0" if self.cas else "1"
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": xet, "HF_HUB_DISABLE_TELEMETRY": "1", **tokens}

    def seen(self, repo_id: str, user: User, *, write: bool = False, content: bool = False) -> Repo:
        """The repository, if this user may do this to it; else what hf.co would answer."""
        repo = self.repos.get(repo_id)
        member = user.belongs_to(repo_id.split("/")[0])
        denied = 403 if user.name else 401
        if repo is None or (repo.private and not member):
            if user.name:
                raise RefusalError(404, "Repository not found", "RepoNotFound")
            raise RefusalError(401, "Invalid username or password.", "RepoNotFound")
        if repo.disabled:
            raise RefusalError(403, "Access to this resource is disabled.")
        if content and repo.gated and not member and user.name not in repo.allowed:
            how = "You are not in the authorized list." if user.name else "Please log in."
            raise RefusalError(denied, f"Access to model {repo_id} is restricted. {how}", "GatedRepo")
        if write and not (member and user.role == "write"):
            raise RefusalError(denied, "Forbidden: you don't have the rights to write to this repository")
        return repo

    def answer(self, request: Request) -> Reply:
        path = urlsplit(request.path).path
        for methods, pattern, function in ROUTES:
            if request.method in methods.split() and (match := pattern.fullmatch(path)):
                if not request.cdn:
                    request.user = self.user_of(request)
                return function(self, request, **{key: unquote(value) for key, value in match.groupdict("").items()})
        raise RefusalError(404, f"No such page: {path}")

    def user_of(self, request: Request) -> User:
        if not request.has_token:
            return ANONYMOUS
        token = request.headers["Authorization"].removeprefix("Bearer ")
        if token not in self.users:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return self.users[token]


def is_lfs(path: str, size: int) -> bool:
    return size > LFS_ABOVE or any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in LFS_PATTERNS)


# ---------------------------------------------------------------------------------------------------- reading


@route("GET", "/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request) -> Reply:
    user = known(request)
    orgs = [{"name": org, "roleInOrg": "write"} for org in user.orgs]
    token = {"accessToken": {"displayName": "t", "role": user.role}}
    return Reply.of({"type": "user", "name": user.name, "orgs": orgs, "auth": token})


@route("GET", "/api/models")
def list_models(hub: LoopbackHub, request: Request) -> Reply:
    author, search = request.query.get("author", ""), request.query.get("search", "").lower()
    visible = [r for r in hub.repos.values() if not r.private or request.user.belongs_to(r.id.split("/")[0])]
    hits = [r for r in visible if r.id.startswith(author and f"{author}/") and search in r.id.lower()]
    return Reply.of([{"id": repo.id, "private": repo.private, "tags": []} for repo in hits])


@route("GET", "/api/models/{id}(?:/revision/{rev})?")
def info(hub: LoopbackHub, request: Request, id: str, rev: str) -> Reply:
    repo = hub.seen(id, request.user)
    commit = repo.resolve(rev or "main")
    card = card_data(commit)
    siblings = [sibling(path, blob, sized="blobs" in request.query) for path, blob in sorted(commit.files.items())]
    return Reply.of({
        "id": id, "sha": commit.sha, "private": repo.private, "gated": repo.gated, "disabled": repo.disabled,
        "tags": card.get("tags") or [], "pipeline_tag": card.get("pipeline_tag"), "cardData": card,
        "library_name": card.get("library_name"), "siblings": siblings, "createdAt": DATE, "lastModified": DATE,
        "usedStorage": sum(len(blob.data) for blob in commit.files.values()),
    })  # fmt: skip


@route("GET", "/api/models/{id}/auth-check(?P<rest>/write)?")
def auth_check(hub: LoopbackHub, request: Request, id: str, rest: str) -> Reply:
    hub.seen(id, request.user, write=bool(rest), content=True)
    return Reply.of({})


@route("GET", "/api/models/{id}/tree/{rev}(?:/{rest})?")
def tree(hub: LoopbackHub, request: Request, id: str, rev: str, rest: str) -> Reply:
    commit = hub.seen(id, request.user).resolve(rev)
    prefix = f"{rest}/" if rest else ""
    inside = {path: blob for path, blob in commit.files.items() if path.startswith(prefix)}
    folders = {path[: at.start()] for path in inside for at in re.finditer("/", path) if at.start() >= len(prefix)}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders
    ]
    entries += [entry(hub, path, blob) for path, blob in inside.items()]
    if request.query.get("recursive", "").lower() != "true":
        entries = [e for e in entries if "/" not in e["path"][len(prefix) :]]
    entries.sort(key=lambda e: e["path"])
    start, limit = int(request.query.get("cursor", 0)), int(request.query.get("limit", 1000))
    page = Reply.of(entries[start : start + limit])
    if start + limit < len(entries):
        page.headers["Link"] = next_page(hub, request, start + limit)
    return page


@route("POST", "/api/models/{id}/paths-info/{rev}")
def paths_info(hub: LoopbackHub, request: Request, id: str, rev: str) -> Reply:
    files = hub.seen(id, request.user).resolve(rev).files
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return Reply.of([entry(hub, path, files[path]) for path in wanted if path in files])


@route("GET", "/api/models/{id}/refs")
def refs(hub: LoopbackHub, request: Request, id: str) -> Reply:
    repo = hub.seen(id, request.user)

    def under(prefix: str) -> list[dict[str, str]]:
        found = sorted((ref, sha) for ref, sha in repo.refs.items() if ref.startswith(prefix))
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha} for ref, sha in found]

    pulls = {"pullRequests": under("refs/pr/")} if "include_prs" in request.query else {}
    return Reply.of({"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": [], **pulls})


@route("GET", "/api/models/{id}/commits/{rev}")
def commits(hub: LoopbackHub, request: Request, id: str, rev: str) -> Reply:
    repo = hub.seen(id, request.user)
    return Reply.of([
        {"id": c.sha, "title": c.title, "message": c.message, "authors": [{"user": c.user}], "date": DATE}
        for c in repo.history(repo.resolve(rev))
    ])  # fmt: skip


@route("GET HEAD", "/{id}/resolve/{rev}/{rest}")
def resolve(hub: LoopbackHub, request: Request, id: str, rev: str, rest: str) -> Reply:
    commit = hub.seen(id, request.user, content=True).resolve(rev)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if rest not in commit.files:
        raise RefusalError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.sha})
    blob = commit.files[rest]
    if not blob.lfs:
        return Reply(blob.data, 200, {**headers, "ETag": f'"{blob.oid}"'}).ranged(request.range)
    link = f"{hub.cdn}/lfs/{blob.sha256}?signature={hub.links}"
    linked = {"X-Linked-Size": str(len(blob.data)), "X-Linked-Etag": f'"{blob.sha256}"', "Location": link}
    if xet := hub.xet_hash(blob):
        route = f"{hub.endpoint}/api/models/{id}/xet-read-token/{commit.sha}"
        linked |= {"X-Xet-Hash": xet, "Link": f'<{route}>; rel="xet-auth"'}
    return Reply(b"", 302, {**headers, **linked})


@route("GET", "/lfs/(?P<rest>[0-9a-f]{64})")
def download(hub: LoopbackHub, request: Request, rest: str) -> Reply:
    if request.has_token:
        raise RefusalError(400, "a token reached the CDN")
    if request.query.get("signature") != str(hub.links):
        raise RefusalError(403, "Request has expired")
    return Reply(hub.stored(rest) or b"", 200, {"ETag": f'"{rest}"', "Accept-Ranges": "bytes"}).ranged(
        request.range if hub.knows_ranges else None
    )


def entry(hub: LoopbackHub, path: str, blob: Blob) -> dict[str, Any]:
    pointer = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    lfs: dict[str, Any] = {"lfs": pointer} if blob.lfs else {}
    xet = {"xetHash": found} if (found := hub.xet_hash(blob)) else {}
    return {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.data), **lfs, **xet}


def sibling(path: str, blob: Blob, *, sized: bool) -> dict[str, Any]:
    if not sized:
        return {"rfilename": path}
    pointer = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    lfs = {"lfs": pointer} if blob.lfs else {}
    return {"rfilename": path, "blobId": blob.oid, "size": len(blob.data), **lfs}


def card_data(commit: Commit) -> dict[str, Any]:
    text = commit.files["README.md"].data.decode() if "README.md" in commit.files else ""
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return (YAML(typ="safe", pure=True).load(match[1]) or {}) if match else {}


def next_page(hub: LoopbackHub, request: Request, cursor: int) -> str:
    query = urlencode({**request.query, "cursor": cursor})
    return f'<{hub.endpoint}{urlsplit(request.path).path}?{query}>; rel="next"'


def known(request: Request) -> User:
    if not request.user.name:
        raise RefusalError(401, "Invalid username or password.")
    return request.user


# ---------------------------------------------------------------------------------------------------- writing


@route("POST", "/api/repos/create")
def create_repo(hub: LoopbackHub, request: Request) -> Reply:
    user, asked = known(request), request.json()
    namespace = asked.get("organization") or user.name
    repo_id = f"{namespace}/{asked['name']}"
    if user.role != "write" or not user.belongs_to(namespace):
        raise RefusalError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repos:
        return Reply.of({"error": "You already created this model repo", "url": url}, 409)
    private = asked.get("private") is True or asked.get("visibility") == "private"
    hub.publish(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, title="initial commit", private=private)
    return Reply.of({"url": url, "name": repo_id, "id": repo_id})


@route("DELETE", "/api/repos/delete")
def delete_repo(hub: LoopbackHub, request: Request) -> Reply:
    asked = request.json()
    repo_id = f"{asked.get('organization') or request.user.name}/{asked['name']}"
    hub.seen(repo_id, request.user, write=True)
    del hub.repos[repo_id]
    return Reply.of({})


@route("PUT", "/api/models/{id}/settings")
def settings(hub: LoopbackHub, request: Request, id: str) -> Reply:
    repo, asked = hub.seen(id, request.user, write=True), request.json()
    repo.private = asked.get("visibility", "private" if asked.get("private", repo.private) else "public") == "private"
    repo.gated = asked.get("gated", repo.gated)
    return Reply.of({"private": repo.private, "gated": repo.gated})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: LoopbackHub, request: Request) -> Reply:
    match = re.match(r"\s*---\n(.*?)\n---", request.json()["content"], re.DOTALL)
    try:
        data = YAML(typ="safe", pure=True).load(match[1]) if match else {}
    except YAMLError as error:
        return Reply.of({"errors": [{"message": f"YAML parse error: {error}"}]}, 400)
    wrong = data.get("base_model_relation", "merge") not in ("adapter", "merge", "quantized", "finetune")
    errors = [{"message": '"base_model_relation" is none of the four'}] if wrong else []
    return Reply.of({"errors": errors, "warnings": []}, 400 if errors else 200)


@route("POST DELETE", "/api/models/{id}/branch/{rest}")
def branch(hub: LoopbackHub, request: Request, id: str, rest: str) -> Reply:
    repo, ref = hub.seen(id, request.user, write=True), f"refs/heads/{rest}"
    if request.method == "DELETE":
        return drop_ref(repo, ref)
    return new_ref(repo, ref, request.json().get("startingPoint") or "main")


@route("POST", "/api/models/{id}/tag/{rev}")
def tag(hub: LoopbackHub, request: Request, id: str, rev: str) -> Reply:
    return new_ref(hub.seen(id, request.user, write=True), f"refs/tags/{request.json()['tag']}", rev)


@route("DELETE", "/api/models/{id}/tag/{rest}")
def delete_tag(hub: LoopbackHub, request: Request, id: str, rest: str) -> Reply:
    return drop_ref(hub.seen(id, request.user, write=True), f"refs/tags/{rest}")


def new_ref(repo: Repo, ref: str, start: str) -> Reply:
    if ref in repo.refs:
        raise RefusalError(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.resolve(start).sha
    return Reply.of({})


def drop_ref(repo: Repo, ref: str) -> Reply:
    if repo.refs.pop(ref, None) is None:
        raise RefusalError(404, f"No such reference: {ref}", "RevisionNotFound")
    return Reply.of({})


@route("POST", "/api/models/{id}/preupload/{rev}")
def preupload(hub: LoopbackHub, request: Request, id: str, rev: str) -> Reply:
    files = hub.seen(id, request.user, write="create_pr" not in request.query).resolve(rev).files
    answers = []
    for asked in request.json()["files"]:
        path, old = asked["path"], files.get(asked["path"])
        mode = "lfs" if is_lfs(path, asked["size"]) else "regular"
        same = {"oid": old.sha256 if old.lfs else old.oid} if old else {}
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **same})
    return Reply.of({"files": answers})


@route("POST", "/{id}.git/info/lfs/objects/batch")
def lfs_batch(hub: LoopbackHub, request: Request, id: str) -> Reply:
    known(request)
    objects = []
    for asked in request.json()["objects"]:
        oid = asked["oid"]
        upload = {"href": f"{hub.cdn}/lfs/{oid}?signature={hub.links}"}
        verify = {"href": f"{hub.endpoint}/lfs/verify"}
        actions = {} if oid in hub.objects else {"actions": {"upload": upload, "verify": verify}}
        objects.append({"oid": oid, "size": asked["size"], **actions})
    return Reply.of({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/(?P<rest>[0-9a-f]{64})")
def upload(hub: LoopbackHub, request: Request, rest: str) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != rest:
        raise RefusalError(400, "the bytes don't have this sha256")
    hub.objects[rest] = request.body
    return Reply(headers={"ETag": f'"{rest}"'})


@route("POST", "/lfs/verify")
def verify(hub: LoopbackHub, request: Request) -> Reply:
    asked = request.json()
    if len(hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise RefusalError(404, "object not found")
    return Reply.of({})


@route("GET", "/api/models/{id}/xet-(?P<rest>read|write)-token/{rev}")
def xet_token(hub: LoopbackHub, request: Request, id: str, rest: str, rev: str) -> Reply:
    if hub.cas is None:
        raise RefusalError(404, "Sorry, we can't find the page you are looking for.")
    writes = rest == "write"
    hub.seen(id, request.user, write=writes and "create_pr" not in request.query, content=not writes)
    told = token(hub.cdn)
    headers = {"Cas-Url": told["casUrl"], "Access-Token": told["accessToken"], "Token-Expiration": str(told["exp"])}
    return Reply.of(told, **{f"X-Xet-{name}": value for name, value in headers.items()})


def cas_of(hub: LoopbackHub, request: Request) -> Cas:
    if hub.cas is None or request.headers["Authorization"] != f"Bearer {CAS_TOKEN}":
        raise RefusalError(401, "no token of the store")
    return hub.cas


@route("POST", "/v1/xorbs/default/(?P<rest>[0-9a-f]{64})")
def upload_xorb(hub: LoopbackHub, request: Request, rest: str) -> Reply:
    return Reply.of({"was_inserted": cas_of(hub, request).add_xorb(rest, request.body)})


@route("POST", "/v1/shards")
def upload_shard(hub: LoopbackHub, request: Request) -> Reply:
    cas_of(hub, request).add_shard(request.body)
    return Reply.of({"result": 1})


@route("GET", "/v1/reconstructions/(?P<rest>[0-9a-f]{64})")
def reconstruction(hub: LoopbackHub, request: Request, rest: str) -> Reply:
    begin, end = map(int, (request.range or f"bytes=0-{1 << 60}").removeprefix("bytes=").split("-"))
    try:
        return Reply.of(cas_of(hub, request).reconstruction(rest, f"{hub.cdn}/xorbs", begin, end + 1))
    except IndexError:
        raise RefusalError(416, "Range Not Satisfiable") from None


@route("GET", "/xorbs/(?P<rest>[0-9a-f]{64})")
def download_xorb(hub: LoopbackHub, request: Request, rest: str) -> Reply:
    if request.has_token or hub.cas is None:
        raise RefusalError(400, "a token reached the CDN")
    return Reply(hub.cas.xorbs[rest].data).ranged(request.range)


@route("POST", "/api/models/{id}/commit/{rev}")
def commit(hub: LoopbackHub, request: Request, id: str, rev: str) -> Reply:
    as_pull = "create_pr" in request.query
    repo = hub.seen(id, request.user, write=not as_pull and not rev.startswith("refs/pr/"))
    user = known(request)
    header, *operations = (json.loads(line) for line in request.body.splitlines() if line.strip())
    said = header["value"]
    with hub.lock:
        tip = repo.resolve(rev)
        if said.get("parentCommit") not in (None, tip.sha) and not as_pull:
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(tip.files)
        for operation in operations:
            apply(hub, files, operation["key"], operation["value"])
        made = repo.commit(files, tip.sha, user.name, said["summary"], said.get("description") or "")
        answer = {"success": True, "commitOid": made.sha, "commitUrl": f"{hub.endpoint}/{id}/commit/{made.sha}"}
        if as_pull:
            number = open_discussion(repo, user, said["summary"], said.get("description") or "", tip.sha)
            repo.refs[f"refs/pr/{number}"] = made.sha
            answer["pullRequestUrl"] = f"{hub.endpoint}/{id}/discussions/{number}"
        else:
            repo.refs[next(r for r in (rev, f"refs/heads/{rev}") if r in repo.refs)] = made.sha
    return Reply.of(answer)


LOST = "Your push was rejected because an LFS pointer pointed to a file that does not exist"


def apply(hub: LoopbackHub, files: dict[str, Blob], kind: str, value: Mapping[str, Any]) -> None:
    """Do one operation of a commit to a map of files."""
    path = value["path"]
    if kind == "file":
        files[path] = Blob(base64.b64decode(value["content"]), lfs=False)
    elif kind == "lfsFile":
        data = hub.stored(value["oid"])
        if data is None:
            raise RefusalError(400, f"{LOST}: {path}")
        files[path] = Blob(data, lfs=True)
    else:
        folder = path.rstrip("/") + "/" if kind == "deletedFolder" else None
        gone = [old for old in files if old == path or (folder and old.startswith(folder))]
        if not gone:
            raise RefusalError(404, f"No such entry: {path}", "EntryNotFound")
        for old in gone:
            del files[old]


@route("POST", "/api/models/{id}/discussions")
def new_discussion(hub: LoopbackHub, request: Request, id: str) -> Reply:
    repo, asked = hub.seen(id, request.user), request.json()
    main = repo.resolve("main")
    number = open_discussion(repo, known(request), asked["title"], asked["description"], main.sha)
    repo.discussions[number - 1]["status"] = "draft"
    repo.refs[f"refs/pr/{number}"] = main.sha
    return Reply.of({"num": number, "url": f"{hub.endpoint}/{id}/discussions/{number}", "pullRequest": True})


@route("GET", "/api/models/{id}/discussions")
def list_discussions(hub: LoopbackHub, request: Request, id: str) -> Reply:
    found = hub.seen(id, request.user).discussions
    status = {"open": ("open", "draft"), "closed": ("closed", "merged")}.get(request.query.get("status", ""))
    shown = [one for one in found if status is None or one["status"] in status]
    return Reply.of(
        {"discussions": shown if request.query.get("p", "0") == "0" else [], "count": len(shown), "start": 0}
    )


@route("GET", r"/api/models/{id}/discussions/(?P<rest>\d+)")
def discussion(hub: LoopbackHub, request: Request, id: str, rest: str) -> Reply:
    return Reply.of(hub.seen(id, request.user).discussions[int(rest) - 1])


@route("POST", r"/api/models/{id}/discussions/(?P<rest>\d+)/merge")
def merge_pull(hub: LoopbackHub, request: Request, id: str, rest: str) -> Reply:
    repo = hub.seen(id, request.user, write=True)
    repo.discussions[int(rest) - 1]["status"] = "merged"
    repo.refs["refs/heads/main"] = repo.refs[f"refs/pr/{rest}"]
    return Reply.of({})


def open_discussion(repo: Repo, user: User, title: str, text: str, base: str) -> int:
    """Every discussion is a pull request here. Merging one sets main to its head: a fast-forward."""
    number = len(repo.discussions) + 1
    first = {"id": f"{number:024x}", "type": "comment", "createdAt": DATE, "author": {"name": user.name}}
    said = {"edited": False, "hidden": False, "latest": {"raw": text}}
    repo.discussions.append({
        "num": number, "title": title, "status": "open", "isPullRequest": True, "createdAt": DATE,
        "author": {"name": user.name}, "repo": {"name": repo.id, "type": "model"}, "filesWithConflicts": [],
        "events": [{**first, "data": said}], "changes": {"base": "refs/heads/main", "mergeCommitId": None}, "diff": "",
    })  # fmt: skip
    return number


# ----------------------------------------------------------------------------------------------------- server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        """Hang up on those who are connected, too."""
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


_USED_PORTS: set[int] = set()


def _server(hub: LoopbackHub, *, cdn: bool) -> _Server:
    """On a port that no Hub of this process had before: the Xet client remembers by address what it has uploaded, and
    keeps connections for a while."""
    handler = type("Handler", (_Handler,), {"hub": hub, "cdn": cdn})
    while (server := _Server(("127.0.0.1", 0), handler)).server_address[1] in _USED_PORTS:
        server.server_close()
    _USED_PORTS.add(server.server_address[1])
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[LoopbackHub]
    cdn: ClassVar[bool]

    def log_message(self, *_: object) -> None:
        """The hub keeps its own log."""

    def serve(self) -> None:
        request = Request(self.command, self.path, self.headers, b"", self.cdn)
        with self.hub.lock:
            self.hub.log.append(request)
            fault = next((fault for fault in self.hub.faults if fault.strikes(request)), None) or Fault("")
        if fault.take_only is not None:
            self.rfile.read(min(fault.take_only, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            return
        request.body = self._body()
        time.sleep(fault.delay)
        try:
            reply = self._reply(request, fault)
            if not fault.lose_reply:
                self._send(request, reply, fault.drop_after)
        except OSError:  # the client has left
            self.close_connection = True
        self.close_connection |= fault.lose_reply

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - http.server's names

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _reply(self, request: Request, fault: Fault) -> Reply:
        try:
            if fault.as_text:
                return Reply(fault.message.encode(), fault.status or 200, {"Content-Type": "text/html"})
            if fault.status is not None:
                raise RefusalError(fault.status, fault.message, **fault.headers)
            return self.hub.answer(request)
        except RefusalError as refusal:
            return refusal.reply

    def _send(self, request: Request, reply: Reply, drop_after: int | None) -> None:
        request.status = reply.status
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        body = b"" if self.command == "HEAD" else reply.body[:drop_after]
        self.wfile.write(body)
        request.sent = len(body)
        if drop_after is not None:  # what was sent must arrive before the early end
            self.close_connection = True
