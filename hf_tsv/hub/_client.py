"""The Hub's reading side: pin a commit, check access, list files, read headers, open and download."""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelInfo, RepoFile, constants, get_cached_repo_tree, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from hf_tsv.checkpoints.model_files import side_files
from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.checkpoints.quantized import check_not_quantized
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.errors import CheckpointError, HfTsvError, HubError, some
from hf_tsv.files.names import MODEL_CONFIG
from hf_tsv.hub._connection import Connection
from hf_tsv.hub._errors import retried
from hf_tsv.hub._facts import SourceFacts, facts_of_folder, facts_of_info
from hf_tsv.hub._pinned import Pinned
from hf_tsv.hub._progress import ByteCounter
from hf_tsv.hub._ranges import Ranges
from hf_tsv.hub._remote import Fetch, RemoteCheckpoint, Slice, check_index, read_header
from hf_tsv.hub._repository import CARD, Weights, in_folder, weights_of
from hf_tsv.lora.format import ADAPTER_CONFIG
from hf_tsv.recipe import in_repository

AT_ONCE = 8  # concurrent requests
PREFLIGHT_WAITS = (0.5, 1.0)  # seconds before further attempts while a person waits


class Hub:
    """The Hub as one person sees it: with their token, their cache, and with or without a network.

    Every failure is a `HubError` with the source, what happened, and the way out.

    Args:
        token: A token; None for the one the person is logged in with, False for none.
        cache_dir: huggingface_hub's cache folder; None for the usual one.
        offline: True to read only the cache; None for the value of HF_HUB_OFFLINE.
        endpoint: The Hub's address; None for the value of HF_ENDPOINT, or huggingface.co.

    Raises:
        HubError: the token is malformed.
    """

    def __init__(
        self,
        *,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
        offline: bool | None = None,
        endpoint: str | None = None,
    ) -> None:
        self.connection = Connection(token, cache_dir, offline, endpoint)
        self.api = self.connection.api
        self.cache_dir = self.connection.cache_dir
        self.offline = self.connection.offline
        # The content of a commit never changes, so each answer is cached for the life of this object.
        self._files: dict[Pinned, dict[str, int]] = {}
        self._weights: dict[Pinned, Weights] = {}
        self._infos: dict[Pinned, ModelInfo] = {}
        self._partial: set[Pinned] = set()  # models of which only the cached files are known

    # ------------------------------------------------------------------------------------- commits and access

    def preflight(self, sources: Iterable[tuple[str, str | None]]) -> list[Pinned]:
        """Check that every source can be read, and pin it, without downloading anything.

        Args:
            sources: Path and revision of each source. A path is a repository's id, with or without a folder in it.

        Returns:
            The pinned sources, in the order of `sources`.

        Raises:
            HubError: some sources can't be read; one line per problem, after all sources were tried.
        """
        sources = list(sources)
        distinct = list(dict.fromkeys(sources))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = pool.map(self._checked, distinct)
            outcomes = dict(zip(distinct, results, strict=True))
        problems: dict[str, None] = {}  # each once: a wrong token is one problem, however many sources it affects
        for outcome in outcomes.values():
            if isinstance(outcome, HfTsvError):
                problems |= dict.fromkeys(outcome.problems)
        if problems:
            raise HubError(problems)
        return [cast("Pinned", outcomes[source]) for source in sources]

    def pin(self, path: str, revision: str | None = None) -> Pinned:
        """Resolve a branch, a tag or the default to its current commit; offline, to the last commit in the cache.

        Raises:
            HubError: the repository or revision doesn't exist or, offline, isn't in the cache.
        """
        repo_id, folder = in_repository(path)
        with self.connection.explaining(repo_id, revision):
            resolved = retried(
                lambda: self.api.resolve_revision(
                    repo_id, revision=revision, cache_dir=self.cache_dir, local_files_only=self.offline
                ),
                PREFLIGHT_WAITS,
            )
        return Pinned(repo_id, revision, resolved.resolved, folder)

    def _checked(self, source: tuple[str, str | None]) -> Pinned | HfTsvError:
        """The pinned source, or the error; returned rather than raised, so that one failure doesn't hide the others."""
        path, revision = source
        repo_id, folder = in_repository(path)
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        try:
            if self.offline:
                pinned = self.pin(path, revision)
                self._cached_folder(pinned)
                return pinned
            # Anyone can list a gated repository, but not read its files, so `auth_check` is needed too.
            # The call with a timeout goes first: on a dead network the others would wait for minutes.
            with self.connection.explaining(repo_id, revision):
                info = retried(
                    lambda: self.api.model_info(repo_id, revision=revision, timeout=timeout), PREFLIGHT_WAITS
                )
                retried(lambda: self.api.auth_check(repo_id), PREFLIGHT_WAITS)
            cached = self.pin(repo_id, revision)  # this stores the revision's commit in the cache, for offline runs
        except HfTsvError as error:
            return error
        pinned = Pinned(repo_id, revision, info.sha or cached.sha, folder)
        self._infos[pinned] = info
        return pinned

    # ----------------------------------------------------------------------------------------------- contents

    def files(self, pinned: Pinned) -> Mapping[str, int]:
        """Every file and its size in bytes; offline, perhaps only the files in the cache.

        Raises:
            CheckpointError: the repository has no such folder.
        """
        if pinned in self._files:
            return self._files[pinned]
        if not self.offline:
            with self.connection.explaining(pinned.repo_id, pinned.requested_revision):
                entries = list(self.api.list_repo_tree(pinned.repo_id, recursive=True, revision=pinned.sha))
            whole = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
        else:
            try:
                # The listing stored by an earlier download.
                tree = get_cached_repo_tree(pinned.repo_id, revision=pinned.sha, cache_dir=self.cache_dir)
                whole = {entry.path: entry.size for entry in tree}
            except CachedRepoTreeNotFoundError:
                # Another program filled the cache: a file missing from it may or may not be in the repository.
                self._partial.add(pinned)
                folder = self._cached_folder(replace(pinned, folder=""))
                paths = [path for path in folder.rglob("*") if path.is_file()]
                whole = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        self._files[pinned] = in_folder(whole, pinned.folder, pinned.repo_id)
        return self._files[pinned]

    def weights(self, pinned: Pinned) -> Weights:
        """The model's weight files: a model or an adapter, in one file or in shards.

        Raises:
            CheckpointError: the weights aren't safetensors, or their index can't be used.
        """
        if pinned not in self._weights:
            files = self.files(pinned)
            try:
                weights = weights_of(files, pinned.label)
            except CheckpointError:
                if pinned in self._partial:
                    raise self._not_in_cache(pinned, ["its weights"]) from None
                raise
            if weights.index:
                weights = self._read_index(pinned, weights.index)
            self._weights[pinned] = weights
        return self._weights[pinned]

    def _read_index(self, pinned: Pinned, index: str) -> Weights:
        """Read the weights' index, and return the weights it describes."""
        where = f"{pinned.label}/{index}"
        try:
            folder = self._snapshot(pinned, [index])
            text = (folder / index).read_text("utf-8")
            weight_map = dict(json.loads(text)["weight_map"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{where}: can't be read as an index with a 'weight_map'") from error
        # A stranger's index can name any path: only files in the repository's listing are ever read.
        known = {file for file in self.files(pinned) if file.endswith(".safetensors")}
        unknown = sorted({str(file) for file in weight_map.values()} - known)
        if unknown and pinned in self._partial:
            raise self._not_in_cache(pinned, unknown)
        if unknown:
            raise CheckpointError(f"{where}: the repository doesn't contain {some(unknown)}. Use another revision")
        shards = sorted(set(weight_map.values()))
        return Weights("model", tuple(shards), index, weight_map)

    def side_files(self, pinned: Pinned) -> tuple[str, ...]:
        """The files that a copy of the model needs besides its weights."""
        return side_files(self.files(pinned))

    def facts(self, pinned: Pinned) -> SourceFacts:
        """Licence, tags and access as of the pinned commit; offline, only the facts in the cached card."""
        if self.offline:
            return facts_of_folder(self._cached_folder(pinned))
        if pinned not in self._infos:
            with self.connection.explaining(pinned.repo_id, pinned.requested_revision):
                self._infos[pinned] = retried(lambda: self.api.model_info(pinned.repo_id, revision=pinned.sha))
        return facts_of_info(self._infos[pinned])

    # ------------------------------------------------------------------------------------------ by byte range

    def headers(self, pinned: Pinned) -> dict[str, dict[str, Slice]]:
        """Read every tensor's header and position, by file and name, by byte range: no weights are downloaded.

        Raises:
            CheckpointError: the weights aren't safetensors, or a header or the index contradicts itself.
        """
        return self._read_headers(pinned, self._fetch(pinned))

    def open(self, pinned: Pinned) -> Checkpoint:
        """Open the weights as a checkpoint, read by byte range, or offline from the cache.

        Raises:
            CheckpointError: the weights are an adapter or quantized, or aren't safetensors, or a header or the index
                contradicts itself.
        """
        weights = self.weights(pinned)
        if weights.kind == "adapter":
            raise CheckpointError(f"{pinned.label}: an adapter, expected a full checkpoint. Merge it in and save that")
        checkpoint: Checkpoint
        if self.offline:
            folder = self.download(pinned)
            files = [folder / file for file in weights.files]
            checkpoint = SafetensorsCheckpoint(files, label=pinned.label, index=weights.weight_map)
        else:
            fetch = self._fetch(pinned)
            # The commit identifies the content: the revision that the person wrote must not change the fingerprint.
            identity = f"{replace(pinned, requested_revision=None).label}@{pinned.sha}"
            headers = self._read_headers(pinned, fetch)
            checkpoint = RemoteCheckpoint(headers, fetch, label=pinned.label, fingerprint=identity)
        config = [MODEL_CONFIG] if MODEL_CONFIG in self.files(pinned) else []
        infos = map(checkpoint.info, checkpoint.names())
        check_not_quantized(self._snapshot(pinned, config), pinned.label, infos)
        return checkpoint

    def _read_headers(self, pinned: Pinned, fetch: Fetch) -> dict[str, dict[str, Slice]]:
        """Read the headers of all weight files, several at a time, and check them against the index."""
        sizes, weights = self.files(pinned), self.weights(pinned)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            slices = pool.map(lambda file: read_header(fetch, file, sizes[file], pinned.label), weights.files)
            headers = dict(zip(weights.files, slices, strict=True))
        check_index(headers, weights.weight_map, pinned.label)
        return headers

    def _fetch(self, pinned: Pinned) -> Fetch:
        """Return a function that fills a view with bytes of one of the model's files."""
        ranges = Ranges(pinned.repo_id, pinned.sha, endpoint=self.api.endpoint, headers=self.connection.headers)

        def fetch(file: str, begin: int, view: memoryview) -> None:
            with self.connection.explaining(pinned.repo_id, pinned.requested_revision):
                ranges.read_into(pinned.within(file), begin, view)

        return fetch

    # ---------------------------------------------------------------------------------------------- downloads

    def download(self, pinned: Pinned, *, weights: bool = True, progress: Callable[[int], None] | None = None) -> Path:
        """Download side files and weights into huggingface_hub's cache; offline, check that they are there.

        Args:
            pinned: The model to download.
            weights: True to download the weights as well.
            progress: Callback, called with the number of bytes received since the last call, from several threads.

        Returns:
            The model's folder in the snapshot. It may contain other files, from earlier downloads.

        Raises:
            HubError: a file can't be downloaded.
            ResourceError: the disk is full.
        """
        wanted = self._wanted(pinned, weights)
        folder = self._snapshot(pinned, wanted, progress)
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            raise self._not_in_cache(pinned, missing)
        return folder

    def bytes_to_download(self, pinned: Pinned, *, weights: bool = True) -> int:
        """The number of bytes that `download` would transfer: those of files not in the cache yet."""
        sizes = self.files(pinned)
        total = 0
        for file in self._wanted(pinned, weights):
            cached = try_to_load_from_cache(
                pinned.repo_id, pinned.within(file), cache_dir=self.cache_dir, revision=pinned.sha
            )
            # Not a path: None if nothing is known, or a sentinel if the file is known not to exist.
            if not isinstance(cached, str):
                total += sizes[file]
        return total

    def _wanted(self, pinned: Pinned, weights: bool) -> list[str]:
        """The files to have in the cache, including the card, because an offline run reads the licence from it."""
        files = self.files(pinned)
        wanted = list(self.side_files(pinned))
        if CARD in files and not self.offline:
            wanted.append(CARD)
        if weights:
            about = self.weights(pinned)
            if about.index:
                wanted.append(about.index)
            elif about.kind == "adapter":
                wanted.append(ADAPTER_CONFIG)
            wanted.extend(about.files)
        return wanted

    def _cached_folder(self, pinned: Pinned) -> Path:
        """The model's folder in the cached snapshot, with whatever files are in it."""
        return self._snapshot(pinned, [], local=True)

    def _snapshot(
        self, pinned: Pinned, wanted: list[str], progress: Callable[[int], None] | None = None, *, local: bool = False
    ) -> Path:
        """Download these files into the snapshot, and return the model's folder in it."""
        with self.connection.explaining(pinned.repo_id, pinned.requested_revision):
            # Not wrapped in `retried`: the client retries this by itself, like the listing of files.
            snapshot = self.api.snapshot_download(
                pinned.repo_id,
                revision=pinned.sha,
                cache_dir=self.cache_dir,
                allow_patterns=[escape(pinned.within(file)) for file in wanted],
                local_files_only=local or self.offline,
                tqdm_class=cast("Any", ByteCounter(progress).bar),
            )
        return Path(snapshot) / pinned.folder

    def _not_in_cache(self, pinned: Pinned, files: list[str]) -> HubError:
        return HubError(
            f"{pinned.label}: the cache ({self.cache_dir}) lacks {some(files)}. Run this once with network access."
        )
