"""The Hub's writing side: large files first, then one commit, whatever breaks on the way.

The commit says which head it stands on. Before every attempt the repository is read again: what is there already is
neither sent nor committed again, so a lost reply, a killed run and a second run all come to the same end.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, RepoFile
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_tsv.errors import HubError, some
from hf_tsv.hub._client import PREFLIGHT_WAITS, Hub
from hf_tsv.hub._errors import LOG_IN, TELLABLE, XET_TOKEN, is_transient, reason_of, retried, tell_push, wait_asked
from hf_tsv.hub._repository import CARD

COMMIT_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt
HEAD_MOVED = 412
PUSHING = (*TELLABLE, ValueError)  # the client wraps what breaks an upload in a RuntimeError or a ValueError

Content = Path | bytes


@dataclass(frozen=True)
class Target:
    """A repository to be written to, before it is.

    Attributes:
        repo_id: Its id.
        exists: Whether it is there.
        private: Whether only its owners see it; None when it isn't there yet.
    """

    repo_id: str
    exists: bool
    private: bool | None = None


@dataclass(frozen=True)
class Pushed:
    """What a push came to.

    Attributes:
        repo_id: The repository.
        url: Address of the commit, or of the pull request.
        changed: Files added, replaced or deleted; none when the repository held it all.
    """

    repo_id: str
    url: str
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commit:
    """What one commit is to bring about.

    Attributes:
        files: By path in the repository, where the content lies.
        card: Makes the new `README.md` from the one that is there, None when there is none. It may be asked again.
        is_stale: Whether a file of the repository that isn't in `files` has to go.
        title: First line of the message.
        text: The rest of it.
    """

    files: Mapping[str, Content]
    card: Callable[[str | None], str]
    is_stale: Callable[[str], bool]
    title: str
    text: str = ""


@dataclass(frozen=True)
class _State:
    """A revision as it was last read: its commit, and its files with what identifies their content."""

    sha: str
    files: Mapping[str, RepoFile] = field(repr=False)

    def holds(self, add: CommitOperationAdd) -> bool:
        found = self.files.get(add.path_in_repo)
        if found is None or found.size != add.upload_info.size:
            return False
        if found.lfs:
            return bool(found.lfs.sha256 == add.upload_info.sha256.hex())
        return bool(found.blob_id == _git_id(add))


class Repository:
    """One repository that a person pushes to. `send` may be called from another thread than the rest.

    Every failure is a `HubError` that says what was done and what to do.

    Args:
        hub: The Hub as the person sees it.
        repo_id: `user/name`; it need not exist.
        create_pr: Whether to open a pull request instead of committing to the main branch.
    """

    def __init__(self, hub: Hub, repo_id: str, *, create_pr: bool = False) -> None:
        self.repo_id = repo_id
        self._api, self._hub, self._create_pr = hub.api, hub, create_pr
        self._adds: dict[str, CommitOperationAdd] = {}
        self._is_made = False

    def check(self) -> Target:
        """Whether the person may write there, or create it. Writes nothing.

        Raises:
            HubError: no, or the name can't be one, or there is no token that may write.
        """
        with self._telling():
            validate_repo_id(self.repo_id)
            owner, slash, _ = self.repo_id.partition("/")
            names = self._names_of_owner()
            if not slash:
                raise HubError(f"{self.repo_id}: no owner, expected user/name, such as {names[0]}/{self.repo_id}.")
            try:
                info = retried(lambda: self._api.model_info(self.repo_id), PREFLIGHT_WAITS)
            except RepositoryNotFoundError:
                return self._check_creatable(owner, names)
            if not self._create_pr:
                retried(lambda: self._api.auth_check(self.repo_id, write=True), PREFLIGHT_WAITS)
        return Target(self.repo_id, exists=True, private=bool(info.private))

    def create(self, *, private: bool | None) -> None:
        """Make the repository unless it is there; private, public, or as its owner's settings say (None).

        Raises:
            HubError: it was to be private, but somebody has made it meanwhile, and it is public.
        """
        if self._is_made:
            return
        with self._telling():
            retried(lambda: self._api.create_repo(self.repo_id, private=private, exist_ok=True))
            if private and not retried(lambda: self._api.model_info(self.repo_id)).private:
                raise HubError(
                    f"{self.repo_id}: was made meanwhile, and is public. Nothing was uploaded. Choose another"
                )
        self._is_made = True

    def send(self, path: str, file: Path) -> None:
        """Upload a large file ahead of the commit, unless the Hub has it. The file must stay as it is."""
        with self._telling():
            add = self._add(path, file)
            if not retried(self._read).holds(add):
                self._upload([add])

    def commit(self, commit: Commit) -> Pushed:
        """Bring it about, in one commit or one pull request; none when the repository is as it should be.

        A head that others move meanwhile is no obstacle unless they touch the same files; the card is merged.

        Raises:
            HubError: the Hub refuses, fails again and again, or others changed the same files meanwhile.
        """
        before: _State | None = None
        for wait in (*COMMIT_WAITS, None):
            with self._telling():
                state = retried(self._read)
                adds, gone = self._changes(commit, state)
                if not adds and not gone:
                    return Pushed(self.repo_id, self._url(state.sha))
                if self._create_pr and (url := retried(lambda: self._open_pull(commit))):
                    return Pushed(self.repo_id, url)
                if before:
                    self._check_untouched(before, state, [*commit.files, *gone])
                try:
                    return self._commit(commit, state.sha, adds, gone)
                except PUSHING as error:
                    reason = reason_of(error)
                    if wait is None or not (_head_moved(reason) or is_transient(reason)):
                        raise
                    before = state
                    time.sleep(0 if _head_moved(reason) else max(wait, wait_asked(reason)))
        raise AssertionError("the last attempt returns or raises")

    # -------------------------------------------------------------------------------------------------- checks

    def _names_of_owner(self) -> list[str]:
        """The person's name, then those of their organisations."""
        if not self._hub.has_token:
            raise HubError(f"{self.repo_id}: no token was found, and writing needs one. Please {LOG_IN}.")
        who = retried(lambda: self._api.whoami(cache=True), PREFLIGHT_WAITS)
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise HubError(
                f"{self.repo_id}: your token only reads, expected one that writes. Make one in the settings of"
                f" {who['name']!r} on the Hub, then {LOG_IN}."
            )
        return [who["name"], *(org["name"] for org in who.get("orgs", ()))]

    def _check_creatable(self, owner: str, names: list[str]) -> Target:
        if owner not in names:
            name = self.repo_id.rpartition("/")[2]
            raise HubError(
                f"{self.repo_id}: no such repository, or it is private, and {names[0]!r} can't create one under"
                f" {owner!r}. Expected {some([f'{known}/{name}' for known in names])}."
            )
        return Target(self.repo_id, exists=False)

    def _check_untouched(self, before: _State, now: _State, paths: Iterable[str]) -> None:
        """Refuse to write over what others changed since this push began."""
        touched = sorted({p for p in paths if p != CARD and _id(before.files.get(p)) != _id(now.files.get(p))})
        if touched:
            raise HubError(
                f"{self.repo_id}: commit {now.sha[:7]} changed {some(touched)} while this push was on its way."
                " Nothing was committed. Look at it and push again, or pass --create-pr to propose this instead."
            )

    # ------------------------------------------------------------------------------------------------- writing

    def _read(self, revision: str | None = None) -> _State:
        sha = self._api.model_info(self.repo_id, revision=revision).sha
        entries = self._api.list_repo_tree(self.repo_id, recursive=True, revision=sha)
        return _State(str(sha), {entry.path: entry for entry in entries if isinstance(entry, RepoFile)})

    def _changes(self, commit: Commit, state: _State) -> tuple[list[CommitOperationAdd], list[str]]:
        """What has to be added and deleted to get from this state to what was asked for."""
        adds = [self._add(path, content) for path, content in commit.files.items()]
        card = commit.card(self._card(state)).encode()
        adds.append(CommitOperationAdd(CARD, card))
        gone = [path for path in state.files if path not in commit.files and path != CARD and commit.is_stale(path)]
        return [add for add in adds if not state.holds(add)], gone

    def _commit(self, commit: Commit, parent: str, adds: list[CommitOperationAdd], gone: list[str]) -> Pushed:
        self._upload(adds)
        done = self._api.create_commit(
            self.repo_id,
            [*adds, *map(CommitOperationDelete, gone)],
            commit_message=commit.title,
            commit_description=commit.text,
            parent_commit=parent,
            create_pr=self._create_pr,
        )
        changed = (*(add.path_in_repo for add in adds), *gone)
        return Pushed(self.repo_id, done.pr_url or done.commit_url, changed)

    def _upload(self, adds: list[CommitOperationAdd]) -> None:
        retried(lambda: self._preupload(adds))

    def _preupload(self, adds: list[CommitOperationAdd]) -> None:
        try:
            self._api.preupload_lfs_files(self.repo_id, adds, create_pr=self._create_pr, free_memory=False)
        except OSError as error:
            if XET_TOKEN in str(error):  # the Xet library doesn't pass on what the Hub answered: ask for it
                self._hub.ask(f"/api/models/{self.repo_id}{XET_TOKEN}main{'?create_pr=1' * self._create_pr}")
            raise

    def _add(self, path: str, content: Content) -> CommitOperationAdd:
        """The one operation of a path, so that its file is hashed and sent once, even if it has been moved since."""
        if path not in self._adds:
            self._adds[path] = CommitOperationAdd(path, content)
        self._adds[path].path_or_fileobj = content if isinstance(content, bytes) else str(content)
        return self._adds[path]

    def _card(self, state: _State) -> str | None:
        if CARD not in state.files:
            return None
        path = self._api.hf_hub_download(self.repo_id, CARD, revision=state.sha, cache_dir=self._hub.cache_dir)
        return Path(path).read_text("utf-8", errors="replace")

    def _open_pull(self, commit: Commit) -> str | None:
        """Address of an open pull request that brings just this about: of a run whose reply was lost, or killed."""
        for pull in self._api.get_repo_discussions(
            self.repo_id, discussion_type="pull_request", discussion_status="open"
        ):
            if pull.title == commit.title and not any(self._changes(commit, self._read(f"refs/pr/{pull.num}"))):
                return str(pull.url)
        return None

    def _url(self, sha: str) -> str:
        return f"{self._api.endpoint}/{self.repo_id}/commit/{sha}"

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except PUSHING as error:
            raise tell_push(error, self.repo_id, self._api.endpoint) from error


def _head_moved(error: BaseException) -> bool:
    return isinstance(error, HfHubHTTPError) and error.response.status_code == HEAD_MOVED


def _id(file: RepoFile | None) -> Any:
    return file and (file.lfs.sha256 if file.lfs else file.blob_id)


def _git_id(add: CommitOperationAdd) -> str:
    """The id that git gives a file's content."""
    with add.as_file() as file:
        data = file.read()
    return sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
