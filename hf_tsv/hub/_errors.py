"""What the Hub, the network and the disk can say, told in one line each."""

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
except ImportError:  # before 2.0 the client stands on httpx itself
    import httpx  # type: ignore[no-redef,import-not-found,unused-ignore]  # one of the two is there

T = TypeVar("T")

RETRY_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
RETRY_AFTER_MAX = 300  # seconds: the longest window of the Hub's rate limits
RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
FATAL = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.ProxyError)

TELLABLE = (
    httpx.HTTPError,
    errors.RevisionResolutionError,
    errors.EntryNotFoundError,
    errors.HFValidationError,
    json.JSONDecodeError,
    OSError,
    RuntimeError,  # the Xet library's
)

LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
NOTHING = "then run this again; nothing was downloaded"
UNTOUCHED, UNTOUCHED_ = "nothing was committed", "Nothing was committed"
WITHOUT_XET = "set HF_HUB_DISABLE_XET=1"
MOVED_OR_TAKEN = (409, 412)
NOT_SERVED = (404, 405, 501)
XET_TOKEN = "/xet-write-token/"


@dataclass(frozen=True)
class Asked:
    """What was asked for, by whom: all that a message says besides the error.

    Attributes:
        repo_id: The repository.
        revision: The revision as the person wrote it, None for the default branch.
        endpoint: The Hub's address.
        cache: The cache folder.
        has_token: Whether requests carry a token.
        user: The token's owner, if known.
        similar: A repository with nearly that name, if there is one.
        revisions: Branches and tags the repository has, if known.
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
    """Call, and call again when the network or the server fails in passing; waits as long as the server asks."""
    for wait in RETRY_WAITS if waits is None else waits:
        try:
            return call()
        except TELLABLE as error:
            reason = reason_of(error)
            if not is_transient(reason):
                raise
            time.sleep(max(wait, wait_asked(reason)))
    return call()


def reason_of(error: BaseException) -> BaseException:
    """What the client met when it says that something isn't in the cache either, or wasn't uploaded; else the error."""
    wraps = isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError | RuntimeError)
    return error.__cause__ if wraps and error.__cause__ else error


def is_transient(error: BaseException) -> bool:
    """Whether the same request may do better in a moment."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in RETRY_STATUS
    return isinstance(error, httpx.TransportError) and not isinstance(error, FATAL)


def tell(error: Exception, asked: Asked) -> HfTsvError:
    """The error as one line: which source, what happened, what to do. Holds no token and no signed address."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{asked.cache}: the disk is full. Free space there, or set another --cache-dir")
    return HubError(_line(reason_of(error), asked))


def tell_push(error: Exception, repo_id: str, endpoint: str) -> HubError:
    """What broke a push, as one line. Holds no token and no signed address."""
    return HubError(_push_line(reason_of(error), Asked(repo_id, None, endpoint, cache="", has_token=True)))


def _push_line(error: BaseException, asked: Asked) -> str:
    where = asked.repo_id
    match error:
        case errors.HfHubHTTPError() if XET_TOKEN in str(error) and error.response.status_code in NOT_SERVED:
            return (
                f"{asked.endpoint}: this Hub has no Xet. To upload without, {WITHOUT_XET} and push again; {UNTOUCHED}."
            )
        case errors.HFValidationError():
            return f"{where}: no name that the Hub takes, expected user/name of letters, digits, '-', '_' and '.'."
        case errors.OfflineModeIsEnabled():
            return f"{where}: this run is offline (HF_HUB_OFFLINE=1), and pushing needs the network. Unset it."
        case errors.GatedRepoError():
            way_out = f"Ask for access on {asked.endpoint}/{where}"
            return f"{where}: it is gated, and your token can't reach it. {way_out}; {UNTOUCHED}."
        case errors.RepositoryNotFoundError():
            return f"{where}: the repository is gone, or your token may not see it (private). {UNTOUCHED_}."
        case errors.BadRequestError():
            return f"{where}: the Hub finds the commit wrong ({_said(error)}). {UNTOUCHED_}."
        case errors.HfHubHTTPError() if error.response.status_code == 401:
            return f"{asked.endpoint}: your token is wrong, expired or revoked (401). Renew it: {LOG_IN}; {UNTOUCHED}."
        case errors.HfHubHTTPError() if error.response.status_code == 403:
            return f"{where}: {_forbidden(_said(error))} {UNTOUCHED_}."
        case errors.HfHubHTTPError() if error.response.status_code in MOVED_OR_TAKEN:
            way_out = "Push again, or pass --create-pr"
            return f"{where}: others keep changing it ({error.response.status_code}: {_said(error)}). {way_out}."
        case errors.HfHubHTTPError() if error.response.status_code == 413:
            return f"{where}: a file is too large for the Hub (413: {_said(error)}). Use a smaller --max-shard-size."
        case errors.HfHubHTTPError():
            return f"{_refused(error, asked)} {UNTOUCHED_}."
        case httpx.HTTPError():
            why = type(error).__name__
            return f"{asked.endpoint}: can't be reached ({why}). Check the network and push again; {UNTOUCHED}."
        case OSError(errno=int()) | ValueError():
            return f"{where}: {_one_line(error)}. {UNTOUCHED_}."
        case _:
            way_out = f"Push again; if that goes on, {WITHOUT_XET}"
            return f"{where}: the upload over Xet failed ({_status_or_text(error)}). {way_out}; {UNTOUCHED}."


def _forbidden(said: str) -> str:
    """Rights, or room: the Hub answers both with 403."""
    if any(word in said.lower() for word in ("quota", "storage", "exceeded")):
        way_out = "Free some, push to another owner, or make it public, then push again: what is there isn't sent again"
        return f"no room (403: {said}). {way_out}."
    return f"your token may not write there (403: {said}). Use one that may, or pass --create-pr."


def _said(error: errors.HfHubHTTPError) -> str:
    """The server's own words."""
    return (error.server_message or "no reason given").splitlines()[0].rstrip(".")


def _one_line(error: BaseException) -> str:
    unsigned = re.sub(r"(https?://[^\s?]*)\?[^\s)'\"]*", r"\1", str(error))
    return " ".join(unsigned.split())[:300].rstrip(".") or type(error).__name__


def _status_or_text(error: BaseException) -> str:
    """What the Xet library says, which hides an answer's status in a long line."""
    status = re.search(r"\b[45]\d\d [A-Z][A-Za-z ]+\b", str(error))
    return status[0] if status else _one_line(error)


def _line(error: BaseException, asked: Asked) -> str:
    """Most special class first: several of them inherit from one another."""
    match error:
        case errors.GatedRepoError():
            return _gated(error, asked)
        case errors.RepositoryNotFoundError():
            return _not_found(asked)
        case errors.RevisionNotFoundError():
            known = f", expected one of {', '.join(asked.revisions)}" if asked.revisions else ""
            return f"{asked.repo_id}: no branch, tag or commit {asked.revision!r}{known}. Correct what follows the '@'."
        case errors.RemoteEntryNotFoundError():
            return f"{asked.label}: a file that it lists is not there any more. Run this again."
        case errors.EntryNotFoundError() | errors.RevisionResolutionError() | errors.OfflineModeIsEnabled():
            return _not_cached(error, asked)
        case errors.DisabledRepoError():
            return f"{asked.label}: the Hub has disabled this repository. Use another source."
        case errors.HFValidationError():
            return f"{asked.repo_id}: neither a folder nor a Hub id, expected user/name. Check the spelling."
        case errors.FileMetadataError() | json.JSONDecodeError():
            return f"{asked.endpoint}: what answers there isn't the Hub. Look for a proxy or a firewall in between."
        case errors.HfHubHTTPError():
            return _refused(error, asked)
        case httpx.HTTPError():
            why = type(error).__name__
            return f"{asked.endpoint}: can't be reached ({why}). Check the network, or set HF_HUB_OFFLINE=1."
        case OSError(errno=int()):
            return f"{asked.cache}: {error.strerror}. Set another --cache-dir."
        case _:
            way_out = f"Run this again; if that goes on, {WITHOUT_XET}"
            return f"{asked.label}: the download failed ({_status_or_text(error)}). {way_out}."


def _gated(error: errors.GatedRepoError, asked: Asked) -> str:
    said = (error.server_message or "").lower()
    ask = f"Ask for access on {asked.endpoint}/{asked.repo_id}"
    if not asked.has_token:
        return f"{asked.repo_id}: it is gated and no token was sent. {ask}, {LOG_IN}, {NOTHING}."
    if "awaiting" in said:
        way_out = "Wait until its owner grants your request"
        return f"{asked.repo_id}: your token can't read it (gated). {way_out}, {NOTHING}."
    if "fine-grained" in said:
        way_out = "In the token's settings allow it to read public gated repositories"
        return f"{asked.repo_id}: your token can't read it (gated). {way_out}, {NOTHING}."
    return f"{asked.repo_id}: your token can't read it (gated). {ask}, {NOTHING}."


def _not_found(asked: Asked) -> str:
    way_out = "ask its owner for access" if asked.has_token else LOG_IN
    if asked.similar:
        return f"{asked.repo_id}: no such repository. Did you mean {asked.similar!r}? If it is private, {way_out}."
    if asked.has_token:
        user = f" of {asked.user!r}" if asked.user else ""
        fact = f"your token{user} finds no such repository, or may not see it (private)"
    else:
        fact = "no folder here, and no such repository, or it is private and no token was sent"
    return f"{asked.repo_id}: {fact}. Check the spelling, or {way_out}, {NOTHING}."


def _not_cached(error: BaseException, asked: Asked) -> str:
    what = "not wholly" if isinstance(error, errors.IncompleteSnapshotError) else "no folder here, and not"
    return f"{asked.label}: {what} in the cache ({asked.cache}), and this run is offline. Run it once with network."


def _refused(error: errors.HfHubHTTPError, asked: Asked) -> str:
    status = error.response.status_code
    said = _said(error)
    if status == 401:
        return f"{asked.endpoint}: your token is wrong, expired or revoked (401). Renew it: {LOG_IN}, {NOTHING}."
    if status == 429:
        hint = "" if asked.has_token else f" To have a higher limit, {LOG_IN}."
        return f"{asked.endpoint}: too many requests (429). Wait five minutes and run this again.{hint}"
    if status >= 500:
        return f"{asked.endpoint}: the Hub fails ({status}: {said}). Wait a little and run this again."
    return f"{asked.label}: the Hub refuses ({status}: {said}). Check what your token may do, {NOTHING}."


def wait_asked(error: BaseException) -> float:
    """Seconds that the server asks to wait, 0 when it doesn't."""
    if not isinstance(error, errors.HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    limit = parse_ratelimit_headers(headers)
    if error.response.status_code == 429 and limit and limit.remaining == 0:
        return min(limit.reset_in_seconds + 1, RETRY_AFTER_MAX)
    after = headers.get("Retry-After", "")
    return min(int(after), RETRY_AFTER_MAX) if after.isdigit() else 0.0
