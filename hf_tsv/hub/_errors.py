"""Failures of the Hub, the network and the disk: which ones to retry, and a line that explains each of the others."""

import errno
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub import errors
from huggingface_hub.utils import parse_ratelimit_headers

from hf_tsv.errors import HfTsvError, HubError, ResourceError

try:
    from huggingface_hub.utils import httpx
except ImportError:  # before 2.0 the client uses httpx itself
    import httpx  # type: ignore[no-redef,import-not-found,unused-ignore]  # one of the two is installed

T = TypeVar("T")

RETRY_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
RETRY_AFTER_MAX = 300  # seconds: the longest window of the Hub's rate limits
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# Transport errors that the same request would get again: the address or the proxy is wrong.
FATAL = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.ProxyError)

# Errors of the client for reasons outside this program; any other error is a bug, and stays a traceback.
FAILURES = (
    httpx.HTTPError,
    errors.RevisionResolutionError,
    errors.EntryNotFoundError,
    errors.HFValidationError,
    json.JSONDecodeError,
    OSError,
    RuntimeError,  # from the Xet library
)

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
NOTHING = "then run this again; nothing was downloaded"
UNTOUCHED = "nothing was committed"
WITHOUT_XET = "set HF_HUB_DISABLE_XET=1"
MOVED_OR_TAKEN = (409, 412)  # statuses of a commit whose parent is no longer the head
NOT_SERVED = (404, 405, 501)  # statuses of an address that a Hub lacks, for example if it has no Xet
XET_TOKEN = "/xet-write-token/"  # part of the address from which the Xet library gets its right to upload


@dataclass(frozen=True)
class Request:
    """A request and its author: everything that a message needs besides the error.

    Attributes:
        repo_id: The repository's id.
        revision: The revision as the person wrote it, None for the default branch.
        endpoint: The Hub's address.
        cache: The cache folder.
        has_token: True if requests have a token.
        user: The token's owner, if known.
        similar: Id of a repository with a similar name, if there is one.
        revisions: Branches and tags of the repository, if known.
    """

    repo_id: str
    revision: str | None
    endpoint: str
    cache: str
    has_token: bool
    user: str | None = None
    similar: str | None = None
    revisions: Sequence[str] = ()

    @property
    def label(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def retried(call: Callable[[], T], waits: Sequence[float] | None = None) -> T:
    """Return the result of a call, and repeat the call after temporary failures of the network or the server.

    Args:
        call: The function to call.
        waits: Seconds before each further attempt, by default `RETRY_WAITS`; longer if the server asks for it.

    Raises:
        Exception: one of `FAILURES`, if it is not transient or every attempt failed.
    """
    for wait in RETRY_WAITS if waits is None else waits:
        try:
            return call()
        except FAILURES as error:
            reason = reason_of(error)
            if not is_transient(reason):
                raise
            time.sleep(max(wait, requested_wait(reason)))
    return call()


def reason_of(error: BaseException) -> BaseException:
    """The cause of an error that only says "not in the cache either" or "not uploaded"; else the error itself."""
    wraps = isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError | RuntimeError)
    if wraps and error.__cause__:
        return error.__cause__
    return error


def is_transient(error: BaseException) -> bool:
    """True if the same request may succeed in a moment."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in RETRY_STATUS
    return isinstance(error, httpx.TransportError) and not isinstance(error, FATAL)


def explain(error: Exception, request: Request) -> HfTsvError:
    """Return an error of one line with the source, what happened and the way out, without token or signed address."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{request.cache}: the disk is full. Free space there, or set another --cache-dir")
    reason = reason_of(error)
    return HubError(_line(reason, request))


def explain_push(error: Exception, repo_id: str, endpoint: str) -> HubError:
    """Return an error of one line with the reason why a push failed, without token or signed address."""
    request = Request(repo_id, None, endpoint, cache="", has_token=True)
    reason = reason_of(error)
    if isinstance(reason, errors.HfHubHTTPError):
        return HubError(_push_refused(reason, request))
    return HubError(_push_failed(reason, request))


def _push_refused(error: errors.HfHubHTTPError, request: Request) -> str:
    """The message about a push that the Hub refused. Subclasses first, because several inherit from one another."""
    where, status, message = request.repo_id, error.response.status_code, _server_message(error)
    untouched = f"{UNTOUCHED.capitalize()}."
    if XET_TOKEN in str(error) and status in NOT_SERVED:
        way_out = f"To upload without, {WITHOUT_XET} and push again"
        return f"{request.endpoint}: this Hub has no Xet. {way_out}; {UNTOUCHED}."
    if isinstance(error, errors.GatedRepoError):
        way_out = f"Ask for access on {request.endpoint}/{where}"
        return f"{where}: it is gated, and your token can't reach it. {way_out}; {UNTOUCHED}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{where}: the repository is gone, or your token may not see it (private). {untouched}"
    if isinstance(error, errors.BadRequestError):
        return f"{where}: the Hub rejects the commit ({message}). {untouched}"
    if status == 401:
        way_out = f"Renew it: {LOG_IN}"
        return f"{request.endpoint}: your token is wrong, expired or revoked (401). {way_out}; {UNTOUCHED}."
    if status == 403:
        # The Hub answers with 403 both without the right to write and without space.
        if any(word in message.lower() for word in ("quota", "storage", "exceeded")):
            way_out = "Free some, push to another owner, or make it public, then push again"
            return (
                f"{where}: storage is full (403: {message}). {way_out}: uploaded files aren't sent again. {untouched}"
            )
        way_out = "Use one that has, or pass --create-pr"
        return f"{where}: your token has no write access there (403: {message}). {way_out}. {untouched}"
    if status in MOVED_OR_TAKEN:
        return f"{where}: others keep committing to it ({status}: {message}). Push again, or pass --create-pr."
    if status == 413:
        return f"{where}: a file is too large for the Hub (413: {message}). Use a smaller --max-shard-size."
    return f"{_refused(error, request)} {untouched}"


def _push_failed(error: BaseException, request: Request) -> str:
    """The message about a push that failed without an answer from the Hub."""
    where = request.repo_id
    match error:
        case errors.HFValidationError():
            way_out = "Use user/name, made of letters, digits, '-', '_' and '.'"
            return f"{where}: not a valid name for the Hub. {way_out}."
        case errors.OfflineModeIsEnabled():
            return f"{where}: this run is offline (HF_HUB_OFFLINE=1), and pushing needs the network. Unset it."
        case httpx.HTTPError():
            why = type(error).__name__
            return f"{request.endpoint}: can't be reached ({why}). Check the network and push again; {UNTOUCHED}."
        case OSError(errno=int()) | ValueError():
            return f"{where}: {_one_line(error)}. {UNTOUCHED.capitalize()}."
        case _:
            way_out = f"Push again; if that goes on, {WITHOUT_XET}"
            return f"{where}: the upload over Xet failed ({_status_or_text(error)}). {way_out}; {UNTOUCHED}."


def _server_message(error: errors.HfHubHTTPError) -> str:
    """The server's own words."""
    return (error.server_message or "no reason given").splitlines()[0].rstrip(".")


def _one_line(error: BaseException) -> str:
    """The error's own words, short enough for a message, and without the signatures of addresses."""
    unsigned = re.sub(r"(https?://[^\s?]*)\?[^\s)'\"]*", r"\1", str(error))
    words = " ".join(unsigned.split())[:300].rstrip(".")
    return words or type(error).__name__


def _status_or_text(error: BaseException) -> str:
    """The status in an error of the Xet library, which hides it in a long line; else the error's own words."""
    status = re.search(r"\b[45]\d\d [A-Z][A-Za-z ]+\b", str(error))
    return status[0] if status else _one_line(error)


def _line(error: BaseException, request: Request) -> str:
    """The message about a failure. Subclasses first, because several inherit from one another."""
    match error:
        case errors.GatedRepoError():
            return _gated(error, request)
        case errors.RepositoryNotFoundError():
            return _not_found(request)
        case errors.RevisionNotFoundError():
            known = f"; it has {', '.join(request.revisions)}" if request.revisions else ""
            fact = f"no branch, tag or commit {request.revision!r}{known}"
            return f"{request.repo_id}: {fact}. Correct what follows the '@'."
        case errors.RemoteEntryNotFoundError():
            return f"{request.label}: a listed file is no longer there. Run this again."
        case errors.EntryNotFoundError() | errors.RevisionResolutionError() | errors.OfflineModeIsEnabled():
            is_partial = isinstance(error, errors.IncompleteSnapshotError)
            state = "only partly in" if is_partial else "neither a folder here nor in"
            fact = f"{state} the cache ({request.cache}), and this run is offline"
            return f"{request.label}: {fact}. Run this once with network access."
        case errors.DisabledRepoError():
            return f"{request.label}: the Hub has disabled this repository. Use another source."
        case errors.HFValidationError():
            return f"{request.repo_id}: neither a folder nor a Hub id (user/name). Check the spelling."
        case errors.FileMetadataError() | json.JSONDecodeError():
            return f"{request.endpoint}: the server there isn't the Hub. Check for a proxy or a firewall in between."
        case errors.HfHubHTTPError():
            return _refused(error, request)
        case httpx.HTTPError():
            why = type(error).__name__
            return f"{request.endpoint}: can't be reached ({why}). Check the network, or set HF_HUB_OFFLINE=1."
        case OSError(errno=int()):
            return f"{request.cache}: {error.strerror}. Set another --cache-dir."
        case _:
            way_out = f"Run this again; if that goes on, {WITHOUT_XET}"
            return f"{request.label}: the download failed ({_status_or_text(error)}). {way_out}."


def _gated(error: errors.GatedRepoError, request: Request) -> str:
    """The message about a gated repository that can't be read. Only the server's words distinguish the reasons."""
    message = (error.server_message or "").lower()
    ask = f"Ask for access on {request.endpoint}/{request.repo_id}"
    if not request.has_token:
        return f"{request.repo_id}: it is gated and no token was sent. {ask}, {LOG_IN}, {NOTHING}."
    if "awaiting" in message:
        way_out = "Wait until its owner grants your request"
        return f"{request.repo_id}: your token can't read it (gated). {way_out}, {NOTHING}."
    if "fine-grained" in message:
        way_out = "In the token's settings allow it to read public gated repositories"
        return f"{request.repo_id}: your token can't read it (gated). {way_out}, {NOTHING}."
    return f"{request.repo_id}: your token can't read it (gated). {ask}, {NOTHING}."


def _not_found(request: Request) -> str:
    """The message about a repository that isn't found. The Hub's answer is the same for a missing and a private one."""
    way_out = "ask its owner for access" if request.has_token else LOG_IN
    if request.similar:
        return f"{request.repo_id}: no such repository. Did you mean {request.similar!r}? If it is private, {way_out}."
    if request.has_token:
        user = f" of {request.user!r}" if request.user else ""
        fact = f"not found, or private and not visible to your token{user}"
    else:
        fact = "neither a folder here nor a repository, or it is private and no token was sent"
    return f"{request.repo_id}: {fact}. Check the spelling, or {way_out}, {NOTHING}."


def _refused(error: errors.HfHubHTTPError, request: Request) -> str:
    """The message about a refusal without a class of its own, by its status."""
    status = error.response.status_code
    message = _server_message(error)
    if status == 401:
        return f"{request.endpoint}: your token is wrong, expired or revoked (401). Renew it: {LOG_IN}, {NOTHING}."
    if status == 429:
        hint = "" if request.has_token else f" For a higher limit, {LOG_IN}."
        return f"{request.endpoint}: too many requests (429). Wait five minutes and run this again.{hint}"
    if status >= 500:
        return f"{request.endpoint}: the Hub failed ({status}: {message}). Wait a little and run this again."
    return f"{request.label}: the Hub refuses ({status}: {message}). Check your token's permissions, {NOTHING}."


def requested_wait(error: BaseException) -> float:
    """Seconds that the server asks a client to wait; 0 if it doesn't say."""
    if not isinstance(error, errors.HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if error.response.status_code == 429 and limit and limit.remaining == 0:
        return min(limit.reset_in_seconds + 1, RETRY_AFTER_MAX)
    after = headers.get("Retry-After", "")  # seconds; a date, which HTTP allows too, is ignored
    return min(int(after), RETRY_AFTER_MAX) if after.isdigit() else 0.0
