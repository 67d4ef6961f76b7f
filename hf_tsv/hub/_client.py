"""What a run asks of the Hub: which commit, may I, what is in it, give me."""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, cast

from huggingface_hub import (
    HfApi,
    ModelInfo,
    RepoFile,
    constants,
    get_cached_repo_tree,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hf_tsv._version import __version__
from hf_tsv.checkpoints.model_files import side_files
from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.checkpoints.quantized import check_not_quantized
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.errors import CheckpointError, HfTsvError, HubError, some
from hf_tsv.files.names import MODEL_CONFIG
from hf_tsv.hub._errors import LOG_IN, TELLABLE, Asked, retried, tell
from hf_tsv.hub._facts import SourceFacts, facts_of_folder, facts_of_info
from hf_tsv.hub._progress import ByteCounter
from hf_tsv.hub._ranges import Ranges
from hf_tsv.hub._remote import Fetch, RemoteCheckpoint, Slice, check_index, read_header
from hf_tsv.hub._repository import CARD, Weights, in_folder, weights_of
from hf_tsv.lora.format import ADAPTER_CONFIG
from hf_tsv.recipe import in_repository

AT_ONCE = 8  # requests side by side
PREFLIGHT_WAITS = (0.5, 1.0)  # seconds before further attempts, when a person is waiting


@dataclass(frozen=True)
class Pinned:
    """A model repository, or a folder in one, at one commit.

    Attributes:
        repo_id: Its id, `user/name`.
        revision_asked: The branch, tag or commit that was asked for, None for the default branch.
        sha: The commit it stood for, 40 hexadecimal digits.
        folder: Where in the repository the model lies; its files are told as seen from there.
    """

    repo_id: str
    revision_asked: str | None
    sha: str
    folder: str = ""

    @property
    def label(self) -> str:
        """What a message calls it."""
        asked, path = self.revision_asked, "/".join(filter(None, (self.repo_id, self.folder)))
        return path if asked is None else f"{path}@{asked[:7] if asked == self.sha else asked}"

    def within(self, file: str) -> str:
        """Where in the repository one of its files lies."""
        return f"{self.folder}/{file}" if self.folder else file


class Hub:
    """The Hub as one person sees it: with their token, their cache, and a network or none.

    Every failure is a `HubError` that says which source, what happened and what to do.

    Args:
        token: A token; None for the one the person is logged in with, False for none.
        cache_dir: huggingface_hub's cache folder; None for the usual one.
        offline: Whether only the cache is asked; None for what HF_HUB_OFFLINE says.
        endpoint: The Hub's address; None for what HF_ENDPOINT says, or huggingface.co.

    Raises:
        HubError: the token can't be one.
    """

    def __init__(
        self,
        *,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
        offline: bool | None = None,
        endpoint: str | None = None,
    ) -> None:
        self.api = HfApi(endpoint=endpoint, token=token, library_name="hf_tsv", library_version=__version__)
        self.cache_dir = cache_dir or Path(constants.HF_HUB_CACHE)
        self.offline = constants.is_offline_mode() if offline is None else offline
        self._headers = _headers(token)
        self._files: dict[Pinned, dict[str, int]] = {}
        self._weights: dict[Pinned, Weights] = {}
        self._infos: dict[Pinned, ModelInfo] = {}
        self._partial: set[Pinned] = set()  # those of which only the cached files are known

    @property
    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return "authorization" in self._headers

    # ------------------------------------------------------------------------------------- which, and may I

    def preflight(self, sources: Iterable[tuple[str, str | None]]) -> list[Pinned]:
        """Check that every source can be read, and pin it: `(path, revision)` in, its commit out, in that order.

        A path is a repository's id, with or without a folder in it. Downloads nothing. All sources are asked before a
        problem is told.

        Raises:
            HubError: some can't be read: one line for each problem.
        """
        asked = list(sources)
        once = list(dict.fromkeys(asked))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = dict(zip(once, pool.map(self._checked, once), strict=True))
        problems = [problem for error in found.values() if isinstance(error, HfTsvError) for problem in error.problems]
        if problems:
            raise HubError(dict.fromkeys(problems))
        return [pinned for source in asked if isinstance(pinned := found[source], Pinned)]

    def pin(self, path: str, revision: str | None = None) -> Pinned:
        """The commit that a branch, a tag or nothing stands for now; when offline, for what it last stood.

        Raises:
            HubError: there is no such repository or revision, or offline: it was never seen.
        """
        repo_id, folder = in_repository(path)
        with self._telling(repo_id, revision):
            resolved = retried(
                lambda: self.api.resolve_revision(
                    repo_id, revision=revision, cache_dir=self.cache_dir, local_files_only=self.offline
                ),
                PREFLIGHT_WAITS,
            )
        return Pinned(repo_id, revision, resolved.resolved, folder)

    def _checked(self, source: tuple[str, str | None]) -> Pinned | HfTsvError:
        try:
            return self._check_offline(*source) if self.offline else self._check_access(*source)
        except HfTsvError as error:
            return error

    def _check_offline(self, path: str, revision: str | None) -> Pinned:
        pinned = self.pin(path, revision)
        self._cached_folder(pinned)
        return pinned

    def _check_access(self, path: str, revision: str | None) -> Pinned:
        """Anyone sees what a gated repository holds, so seeing it says nothing about reading it: both are asked."""
        repo_id, folder = in_repository(path)
        timeout = constants.HF_HUB_ETAG_TIMEOUT  # the only one of these calls that takes a timeout goes first
        with self._telling(repo_id, revision):
            info = retried(lambda: self.api.model_info(repo_id, revision=revision, timeout=timeout), PREFLIGHT_WAITS)
            retried(lambda: self.api.auth_check(repo_id), PREFLIGHT_WAITS)
        cached = self.pin(repo_id, revision)  # the cache learns what the revision stands for, for offline runs
        pinned = Pinned(repo_id, revision, info.sha or cached.sha, folder)
        self._infos[pinned] = info
        return pinned

    # ------------------------------------------------------------------------------------------ what is in it

    def files(self, pinned: Pinned) -> Mapping[str, int]:
        """Every file and its size in bytes.

        Raises:
            CheckpointError: the repository has no such folder.
        """
        if pinned not in self._files:
            found = self._cached_files(pinned) if self.offline else self._listed_files(pinned)
            self._files[pinned] = in_folder(found, pinned.folder, pinned.repo_id)
        return self._files[pinned]

    def weights(self, pinned: Pinned) -> Weights:
        """What its weights are: a model or an adapter, in one file or in shards.

        Raises:
            CheckpointError: they aren't safetensors, or their index can't be used.
        """
        if pinned not in self._weights:
            files = self.files(pinned)
            try:
                found = weights_of(files, pinned.label)
            except CheckpointError as error:
                raise self._lacking(pinned, ["its weights"]) if pinned in self._partial else error from None
            self._weights[pinned] = self._indexed(pinned, found.index) if found.index else found
        return self._weights[pinned]

    def side_files(self, pinned: Pinned) -> tuple[str, ...]:
        """The files that a copy of the model needs besides weights."""
        return side_files(self.files(pinned))

    def headers(self, pinned: Pinned) -> dict[str, dict[str, Slice]]:
        """Every tensor's header and place, by file, read by byte range: no weights are downloaded.

        Raises:
            CheckpointError: the weights aren't safetensors, or a header or the index contradicts itself.
        """
        return self._read_headers(pinned, self._fetch(pinned))

    def open(self, pinned: Pinned) -> Checkpoint:
        """Its weights as a checkpoint: read by byte range, or offline from the cache.

        Raises:
            CheckpointError: it is an adapter or quantized, isn't safetensors, or a header or the index contradicts
                itself.
        """
        checkpoint = self._opened(pinned, self.weights(pinned))
        folder = self._snapshot(pinned, [MODEL_CONFIG] if MODEL_CONFIG in self.files(pinned) else [])
        check_not_quantized(folder, pinned.label, map(checkpoint.info, checkpoint.names()))
        return checkpoint

    def _opened(self, pinned: Pinned, weights: Weights) -> Checkpoint:
        if weights.kind == "adapter":
            raise CheckpointError(f"{pinned.label}: an adapter, expected a full checkpoint. Merge it in and save that")
        if self.offline:
            folder = self.download(pinned)
            files = [folder / file for file in weights.files]
            return SafetensorsCheckpoint(files, label=pinned.label, index=weights.weight_map)
        fetch = self._fetch(pinned)
        identity = f"{replace(pinned, revision_asked=None).label}@{pinned.sha}"
        return RemoteCheckpoint(self._read_headers(pinned, fetch), fetch, label=pinned.label, fingerprint=identity)

    def facts(self, pinned: Pinned) -> SourceFacts:
        """Licence, tags and access as of the pinned commit; offline, only what the cached card says."""
        if self.offline:
            return facts_of_folder(self._cached_folder(pinned))
        if pinned not in self._infos:
            with self._telling(pinned.repo_id, pinned.revision_asked):
                self._infos[pinned] = retried(lambda: self.api.model_info(pinned.repo_id, revision=pinned.sha))
        return facts_of_info(self._infos[pinned])

    # ---------------------------------------------------------------------------------------------- give me

    def download(self, pinned: Pinned, *, weights: bool = True, progress: Callable[[int], None] | None = None) -> Path:
        """Bring its side files, and its weights, into huggingface_hub's cache; offline, check that they are there.

        Args:
            pinned: What to download.
            weights: Whether the weights as well.
            progress: Called with the number of bytes that have come since the last call, from several threads.

        Returns:
            The snapshot's folder. It may hold more than was asked for, when something else downloaded it before.

        Raises:
            HubError: it can't be had.
            ResourceError: the disk is full.
        """
        wanted = self._wanted(pinned, weights)
        folder = self._snapshot(pinned, wanted, progress)
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            raise self._lacking(pinned, missing)
        return folder

    def bytes_to_download(self, pinned: Pinned, *, weights: bool = True) -> int:
        """How much `download` would have to bring: what isn't in the cache yet."""
        sizes = self.files(pinned)
        return sum(sizes[file] for file in self._wanted(pinned, weights) if not self._is_cached(pinned, file))

    def _wanted(self, pinned: Pinned, weights: bool) -> list[str]:
        """Files to have in the cache. The card is one of them: it tells an offline run the licence."""
        files = self.files(pinned)
        card = [CARD] if CARD in files and not self.offline else []
        if not weights:
            return [*self.side_files(pinned), *card]
        found = self.weights(pinned)
        about = [found.index] if found.index else [ADAPTER_CONFIG] if found.kind == "adapter" else []
        return [*self.side_files(pinned), *card, *about, *found.files]

    def _cached_folder(self, pinned: Pinned) -> Path:
        """The snapshot's folder as the cache has it, with whatever is in it."""
        return self._snapshot(pinned, [], local=True)

    def _snapshot(
        self, pinned: Pinned, wanted: list[str], progress: Callable[[int], None] | None = None, *, local: bool = False
    ) -> Path:
        """The model's folder in the snapshot, with these files in it."""
        with self._telling(pinned.repo_id, pinned.revision_asked):
            snapshot = Path(
                self.api.snapshot_download(  # retries by itself, as the listing of files does
                    pinned.repo_id,
                    revision=pinned.sha,
                    cache_dir=self.cache_dir,
                    allow_patterns=[escape(pinned.within(file)) for file in wanted],
                    local_files_only=local or self.offline,
                    tqdm_class=cast("Any", ByteCounter(progress).bar),
                )
            )
        return snapshot / pinned.folder

    def _listed_files(self, pinned: Pinned) -> dict[str, int]:
        with self._telling(pinned.repo_id, pinned.revision_asked):
            entries = list(self.api.list_repo_tree(pinned.repo_id, recursive=True, revision=pinned.sha))
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}

    def _cached_files(self, pinned: Pinned) -> dict[str, int]:
        """The list that an earlier download left, or else what lies in the cache, which may be a part."""
        try:
            tree = get_cached_repo_tree(pinned.repo_id, revision=pinned.sha, cache_dir=self.cache_dir)
            return {entry.path: entry.size for entry in tree}
        except CachedRepoTreeNotFoundError:
            self._partial.add(pinned)
            folder = self._cached_folder(replace(pinned, folder=""))
            found = [path for path in folder.rglob("*") if path.is_file()]
            return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}

    def _indexed(self, pinned: Pinned, index: str) -> Weights:
        """The weights that an index describes."""
        where = f"{pinned.label}/{index}"
        try:
            text = (self._snapshot(pinned, [index]) / index).read_text("utf-8")
            weight_map = dict(json.loads(text)["weight_map"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{where}: no index that can be read, expected a 'weight_map'") from error
        known = {file for file in self.files(pinned) if file.endswith(".safetensors")}
        strange = sorted({str(file) for file in weight_map.values()} - known)
        if strange and pinned in self._partial:
            raise self._lacking(pinned, strange)
        if strange:
            raise CheckpointError(f"{where}: the repository doesn't hold {some(strange)}. Use another revision")
        return Weights("model", tuple(sorted(set(weight_map.values()))), index, weight_map)

    def _read_headers(self, pinned: Pinned, fetch: Fetch) -> dict[str, dict[str, Slice]]:
        sizes, weights = self.files(pinned), self.weights(pinned)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            headers = pool.map(lambda file: read_header(fetch, file, sizes[file], pinned.label), weights.files)
            found = dict(zip(weights.files, headers, strict=True))
        check_index(found, weights.weight_map, pinned.label)
        return found

    def _fetch(self, pinned: Pinned) -> Fetch:
        ranges = Ranges(pinned.repo_id, pinned.sha, endpoint=self.api.endpoint, headers=self._headers)

        def fetch(file: str, begin: int, view: memoryview) -> None:
            with self._telling(pinned.repo_id, pinned.revision_asked):
                ranges.read_into(pinned.within(file), begin, view)

        return fetch

    def _is_cached(self, pinned: Pinned, file: str) -> bool:
        found = try_to_load_from_cache(
            pinned.repo_id, pinned.within(file), cache_dir=self.cache_dir, revision=pinned.sha
        )
        return isinstance(found, str)

    # ------------------------------------------------------------------------------------------- what went wrong

    def ask(self, path: str) -> None:
        """Ask the Hub for a path, for the sake of what it answers if it refuses.

        Raises:
            HfHubHTTPError: that.
        """
        hf_raise_for_status(get_session().get(f"{self.api.endpoint}{path}", headers=self._headers))

    def _lacking(self, pinned: Pinned, files: list[str]) -> HubError:
        return HubError(f"{pinned.label}: the cache ({self.cache_dir}) lacks {some(files)}. Run it once with network.")

    @contextmanager
    def _telling(self, repo_id: str, revision: str | None) -> Iterator[None]:
        """Turn what the client, the network and the disk raise into a told error."""
        try:
            yield
        except TELLABLE as error:
            raise tell(error, self._asked(repo_id, revision, error)) from error

    def _asked(self, repo_id: str, revision: str | None, error: Exception) -> Asked:
        """What helps to tell this error, as far as it can be found out now."""
        asked = Asked(repo_id, revision, self.api.endpoint, str(self.cache_dir), self.has_token)
        with suppress(*TELLABLE):
            if isinstance(error, RevisionNotFoundError):
                refs = self.api.list_repo_refs(repo_id)
                return replace(asked, revisions=[ref.name for ref in (*refs.branches, *refs.tags)])
            if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
                asked = replace(asked, similar=self._similar(repo_id))
                return replace(asked, user=self.api.whoami(cache=True)["name"]) if asked.has_token else asked
        return asked

    def _similar(self, repo_id: str) -> str | None:
        """A repository of the same owner with nearly the same name."""
        owner = repo_id.partition("/")[0]
        known = [model.id for model in self.api.list_models(author=owner, limit=500)]
        return next(iter(difflib.get_close_matches(repo_id, known, n=1, cutoff=0.8)), None)


def _headers(token: str | bool | None) -> dict[str, str]:
    """What every request carries.

    Raises:
        HubError: there is no token though one is asked for, or it holds what no header can carry.
    """
    try:
        headers = build_hf_headers(token=token, library_name="hf_tsv", library_version=__version__)
    except LocalTokenNotFoundError:
        raise HubError(f"your token: none is stored, expected one. For that, {LOG_IN}.") from None
    sent = headers.get("authorization", "").removeprefix("Bearer ")
    if any(not "!" <= letter <= "~" for letter in sent):
        raise HubError("your token: it holds a space, a line break or another letter that no token has. Copy it again.")
    return headers
