"""One person's connection to the Hub: the client with their token, their cache, and explained failures."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hf_tsv._version import __version__
from hf_tsv.errors import HubError
from hf_tsv.hub._errors import FAILURES, LOG_IN, Request, explain


class Connection:
    """A client of the Hub with a person's token.

    Attributes:
        api: huggingface_hub's client.
        headers: HTTP headers of every request.
        cache_dir: huggingface_hub's cache folder.
        offline: True if only the cache is read.

    Args:
        token: A token; None for the one the person is logged in with, False for none.
        cache_dir: The cache folder; None for the usual one.
        offline: True to read only the cache; None for the value of HF_HUB_OFFLINE.
        endpoint: The Hub's address; None for the value of HF_ENDPOINT, or huggingface.co.

    Raises:
        HubError: the token is malformed, or one is required and none is stored.
    """

    def __init__(
        self, token: str | bool | None, cache_dir: Path | None, offline: bool | None, endpoint: str | None
    ) -> None:
        self.api = HfApi(endpoint=endpoint, token=token, library_name="hf_tsv", library_version=__version__)
        try:
            self.headers = build_hf_headers(token=token, library_name="hf_tsv", library_version=__version__)
        except LocalTokenNotFoundError:
            raise HubError(f"your token: none is stored. To store one, {LOG_IN}.") from None
        # Checked here, because the HTTP library would raise in the middle of a request, and print the token.
        secret = self.headers.get("authorization", "").removeprefix("Bearer ")
        if any(not "!" <= letter <= "~" for letter in secret):
            raise HubError("your token: contains a space, a line break or another invalid character. Copy it again.")
        self.cache_dir = cache_dir or Path(constants.HF_HUB_CACHE)
        self.offline = constants.is_offline_mode() if offline is None else offline

    @property
    def has_token(self) -> bool:
        """True if requests have a token."""
        return "authorization" in self.headers

    def get(self, path: str) -> None:
        """Request a path of the Hub, only to raise the error in its answer.

        Raises:
            HfHubHTTPError: the Hub refuses.
        """
        hf_raise_for_status(get_session().get(f"{self.api.endpoint}{path}", headers=self.headers))

    @contextmanager
    def explaining(self, repo_id: str, revision: str | None) -> Iterator[None]:
        """Turn errors of the client, the network and the disk into an error of one line.

        Raises:
            HubError: the Hub or the network refuses or fails.
            ResourceError: the disk is full.
        """
        try:
            yield
        except FAILURES as error:
            raise explain(error, self._request(repo_id, revision, error)) from error

    def _request(self, repo_id: str, revision: str | None, error: Exception) -> Request:
        """The request, with further facts from the Hub that make the error clearer."""
        request = Request(repo_id, revision, self.api.endpoint, str(self.cache_dir), self.has_token)
        # Only hints: if their requests fail as well, the error is explained without them.
        with suppress(*FAILURES):
            if isinstance(error, RevisionNotFoundError):
                refs = self.api.list_repo_refs(repo_id)
                revisions = [ref.name for ref in refs.branches + refs.tags]
                return replace(request, revisions=revisions)
            if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
                # Most wrong ids are typing errors in the name, under the right owner.
                owner = repo_id.partition("/")[0]
                known = [model.id for model in self.api.list_models(author=owner, limit=500)]
                matches = difflib.get_close_matches(repo_id, known, n=1, cutoff=0.8)
                request = replace(request, similar=matches[0] if matches else None)
                if request.has_token:
                    request = replace(request, user=self.api.whoami(cache=True)["name"])
        return request
