"""The Hub's writing side: large files first, then one commit, despite failures on the way.

The commit names its parent, so the Hub rejects it if the head has moved. Before every attempt the repository is read
again: files already in it are neither sent nor committed again, so a lost reply, a killed run and a second run all
end in the same state.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoFile
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_tsv.errors import HubError, some
from hf_tsv.hub._client import PREFLIGHT_WAITS, Hub
from hf_tsv.hub._errors import (
    FAILURES,
    LOG_IN,
    XET_TOKEN,
    explain_push,
    is_transient,
    reason_of,
    requested_wait,
    retried,
)
from hf_tsv.hub._repository import CARD

COMMIT_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt
HEAD_MOVED = 412  # status of a commit whose parent is no longer the head
PUSHING = (*FAILURES, ValueError)  # the client wraps errors of an upload in a RuntimeError or a ValueError

Content = Path | bytes


@dataclass(frozen=True)
class Target:
    """A repository before anything is written to it.

    Attributes:
        repo_id: The repository's id.
        exists: True if the repository exists.
        private: True if only its owners can see the repository; None if it doesn't exist yet.
    """

    repo_id: str
    exists: bool
    private: bool | None = None


@dataclass(frozen=True)
class Pushed:
    """The outcome of a push.

    Attributes:
        repo_id: The repository's id.
        url: Address of the commit, or of the pull request.
        changed: Files added, replaced or deleted; none when the repository was up to date.
    """

    repo_id: str
    url: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commit:
    """The state of a repository after a commit.

    Attributes:
        files: The content, or the local file with it, by path in the repository.
        card: Function that makes the new `README.md` from the current one (None if there is none); it may be called
            several times.
        is_stale: Function that returns True for a path in the repository, not in `files`, that is to be deleted.
        title: First line of the commit message.
        text: The rest of the commit message.
    """

    files: Mapping[str, Content]
    card: Callable[[str | None], str]
    is_stale: Callable[[str], bool]
    title: str
    text: str = ""


@dataclass(frozen=True)
class _State:
    """A revision as last read: its commit, and its files with the ids of their content."""

    sha: str
    files: Mapping[str, RepoFile] = field(repr=False)

    def holds(self, add: CommitOperationAdd) -> bool:
        """True if the file that an operation would add is already in the repository, with the same content."""
        file = self.files.get(add.path_in_repo)
        if file is None or file.size != add.upload_info.size:
            return False
        if file.lfs:
            return bool(file.lfs.sha256 == add.upload_info.sha256.hex())
        # On the Hub, small files have no SHA-256, but git's id of their content.
        with add.as_file() as content:
            data = content.read()
        git_id = sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        return bool(file.blob_id == git_id)


class Repository:
    """A repository that a person pushes to. `send` may be called from another thread than the other methods.

    Every failure is a `HubError` with what has been written, and the way out.

    Args:
        hub: The Hub as the person sees it.
        repo_id: The repository's id, `user/name`; the repository need not exist.
        create_pr: True to open a pull request instead of committing to the main branch.
    """

    def __init__(self, hub: Hub, repo_id: str, *, create_pr: bool = False) -> None:
        self.repo_id = repo_id
        self._api, self._hub, self._create_pr = hub.api, hub, create_pr
        self._adds: dict[str, CommitOperationAdd] = {}
        self._exists = False

    def check(self) -> Target:
        """Check that the person may write to the repository, or create it. Writes nothing.

        Raises:
            HubError: the person or the token may not, or the name isn't valid.
        """
        with self._explaining():
            validate_repo_id(self.repo_id)
            owner, slash, name = self.repo_id.partition("/")
            if not self._hub.connection.has_token:
                raise HubError(f"{self.repo_id}: writing needs a token, and none was found. Please {LOG_IN}.")
            who = retried(lambda: self._api.whoami(cache=True), PREFLIGHT_WAITS)
            # A fine-grained token has no such role: its rights are checked with the repository below.
            role = who.get("auth", {}).get("accessToken", {}).get("role")
            if role == "read":
                raise HubError(
                    f"{self.repo_id}: your token is read-only. Create one that may write in the settings of"
                    f" {who['name']!r} on the Hub, then {LOG_IN}."
                )
            names = [who["name"], *(org["name"] for org in who.get("orgs", ()))]  # the person first, then organisations
            if not slash:
                raise HubError(f"{self.repo_id}: has no owner. Write user/name, such as {names[0]}/{self.repo_id}.")
            try:
                info = retried(lambda: self._api.model_info(self.repo_id), PREFLIGHT_WAITS)
            except RepositoryNotFoundError:
                if owner in names:
                    return Target(self.repo_id, exists=False)
                possible = [f"{known}/{name}" for known in names]
                raise HubError(
                    f"{self.repo_id}: no such repository, or it is private, and {names[0]!r} can't create one under"
                    f" {owner!r}. Choose {some(possible)}."
                ) from None
            # Anyone who sees a repository may propose a pull request, but not commit.
            if not self._create_pr:
                retried(lambda: self._api.auth_check(self.repo_id, write=True), PREFLIGHT_WAITS)
        return Target(self.repo_id, exists=True, private=bool(info.private))

    def create(self, *, private: bool | None) -> None:
        """Create the repository, unless it exists, as private, public, or by its owner's settings (None).

        Raises:
            HubError: the repository should be private, but somebody has created a public one meanwhile.
        """
        if self._exists:
            return
        with self._explaining():
            retried(lambda: self._api.create_repo(self.repo_id, private=private, exist_ok=True))
            if private and not retried(lambda: self._api.model_info(self.repo_id)).private:
                raise HubError(
                    f"{self.repo_id}: has been created meanwhile, and is public. Nothing was uploaded."
                    " Choose another name"
                )
        self._exists = True

    def send(self, path: str, file: Path) -> None:
        """Upload a large file before the commit, unless the Hub has it. The file must not change until the commit."""
        with self._explaining():
            add = self._add(path, file)
            if not retried(self._read).holds(add):
                self._upload([add])

    def commit(self, commit: Commit) -> Pushed:
        """Bring the repository to a state by one commit or pull request, or by none if it is up to date.

        Commits by others in the meantime don't matter unless they change the same files; the card is merged.

        Raises:
            HubError: the Hub refuses, every attempt fails, or others changed the same files in the meantime.
        """
        before: _State | None = None
        for wait in (*COMMIT_WAITS, None):
            with self._explaining():
                state = retried(self._read)
                adds, gone = self._changes(commit, state)
                if not adds and not gone:
                    return Pushed(self.repo_id, f"{self._api.endpoint}/{self.repo_id}/commit/{state.sha}")
                if self._create_pr:
                    url = retried(lambda: self._open_pull(commit))
                    if url:
                        return Pushed(self.repo_id, url)
                if before:  # not the first attempt: the head may contain work of others
                    self._check_untouched(before, state, [*commit.files, *gone])
                try:
                    return self._commit(commit, state.sha, adds, gone)
                except PUSHING as error:
                    reason = reason_of(error)
                    if wait is None or not (_head_moved(reason) or is_transient(reason)):
                        raise
                    before = state
                    # After a moved head, there is no reason to wait: the head only has to be read again.
                    if not _head_moved(reason):
                        time.sleep(max(wait, requested_wait(reason)))
        raise AssertionError("the last attempt returns or raises")

    def _check_untouched(self, before: _State, now: _State, paths: Iterable[str]) -> None:
        """Check that others haven't changed these files since the previous attempt; refuse to overwrite them."""
        touched: set[str] = set()
        for path in paths:
            changed = _content_id(before.files.get(path)) != _content_id(now.files.get(path))
            if changed and path != CARD:  # the new card contains what others wrote
                touched.add(path)
        if touched:
            raise HubError(
                f"{self.repo_id}: commit {now.sha[:7]} changed {some(sorted(touched))} during this push."
                " Nothing was committed. Check it and push again, or pass --create-pr to propose this instead."
            )

    def _read(self, revision: str | None = None) -> _State:
        """Read the commit and the files of a revision, by default the main branch."""
        # The files are listed by commit, because a branch may move between the two requests.
        sha = self._api.model_info(self.repo_id, revision=revision).sha
        entries = self._api.list_repo_tree(self.repo_id, recursive=True, revision=sha)
        files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        return _State(str(sha), files)

    def _changes(self, commit: Commit, state: _State) -> tuple[list[CommitOperationAdd], list[str]]:
        """The files to add and to delete to get from this state to the commit's."""
        adds = [self._add(path, content) for path, content in commit.files.items()]
        card = None  # the repository's current card
        if CARD in state.files:
            path = self._api.hf_hub_download(self.repo_id, CARD, revision=state.sha, cache_dir=self._hub.cache_dir)
            card = Path(path).read_text("utf-8", errors="replace")
        new_card = commit.card(card).encode()
        adds.append(CommitOperationAdd(CARD, new_card))
        gone = [path for path in state.files if path not in commit.files and path != CARD and commit.is_stale(path)]
        return [add for add in adds if not state.holds(add)], gone

    def _commit(self, commit: Commit, parent: str, adds: list[CommitOperationAdd], gone: list[str]) -> Pushed:
        """Commit on top of `parent`; the Hub rejects it if the head is another commit by then."""
        self._upload(adds)
        done = self._api.create_commit(
            self.repo_id,
            [*adds, *(CommitOperationDelete(path) for path in gone)],
            commit_message=commit.title,
            commit_description=commit.text,
            parent_commit=parent,
            create_pr=self._create_pr,
        )
        changed = (*(add.path_in_repo for add in adds), *gone)
        return Pushed(self.repo_id, done.pr_url or done.commit_url, changed)

    def _upload(self, adds: list[CommitOperationAdd]) -> None:
        """Upload the content of large files, which a commit only refers to."""

        def preupload() -> None:
            try:
                # The content stays in memory, because another attempt sends it again.
                self._api.preupload_lfs_files(self.repo_id, adds, create_pr=self._create_pr, free_memory=False)
            except OSError as error:
                if XET_TOKEN in str(error):
                    # The Xet library doesn't pass on the Hub's answer: the same request shows it.
                    query = "?create_pr=1" if self._create_pr else ""
                    self._hub.connection.get(f"/api/models/{self.repo_id}{XET_TOKEN}main{query}")
                raise

        retried(preupload)

    def _add(self, path: str, content: Content) -> CommitOperationAdd:
        """The operation of a path: one object per path, so that its file is hashed and sent once, even if moved."""
        if path not in self._adds:
            self._adds[path] = CommitOperationAdd(path, content)
        self._adds[path].path_or_fileobj = content if isinstance(content, bytes) else str(content)
        return self._adds[path]

    def _open_pull(self, commit: Commit) -> str | None:
        """Address of an open pull request with just this content, from a killed run or one whose reply was lost."""
        pulls = self._api.get_repo_discussions(self.repo_id, discussion_type="pull_request", discussion_status="open")
        for pull in pulls:
            if pull.title != commit.title:
                continue
            adds, gone = self._changes(commit, self._read(f"refs/pr/{pull.num}"))
            if not adds and not gone:
                return str(pull.url)
        return None

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn errors of a push into a `HubError` of one line."""
        try:
            yield
        except PUSHING as error:
            raise explain_push(error, self.repo_id, self._api.endpoint) from error


def _head_moved(error: BaseException) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code == HEAD_MOVED


def _content_id(file: RepoFile | None) -> str | None:
    """The id of a file's content; None if there is no file."""
    if file is None:
        return None
    return str(file.lfs.sha256 if file.lfs else file.blob_id)
