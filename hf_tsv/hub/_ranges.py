"""Reading byte ranges of files on the Hub, despite broken connections and expired links."""

import re
from collections.abc import Mapping
from functools import partial

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status

from hf_tsv.errors import HubError
from hf_tsv.hub._errors import retried

LINK_EXPIRED = (401, 403, 404, 410)  # statuses with which CDNs answer an expired signed link


class Ranges:
    """Reader of byte ranges of one repository's files at one commit. Safe to use from several threads.

    The Hub answers a request for a large file with a signed link to its CDN. The link is reused until it expires,
    so a thousand tensors cost a thousand requests to the CDN, but only a few to the rate-limited Hub.
    """

    def __init__(self, repo_id: str, sha: str, *, endpoint: str, headers: Mapping[str, str]) -> None:
        self._repo_id, self._sha, self._endpoint = repo_id, sha, endpoint
        self._headers = dict(headers)
        self._links: dict[str, str] = {}

    def read_into(self, file: str, begin: int, view: memoryview) -> None:
        """Fill the view with the file's bytes from `begin` on; a broken connection is resumed where it broke.

        Raises:
            httpx.HTTPError: the Hub or the network refuses every attempt.
            HubError: the server doesn't support byte ranges.
        """
        done = 0
        while done < len(view):
            # `retried` starts again in every round, so only consecutive attempts without any bytes count.
            done += retried(partial(self._read_some, file, begin + done, view[done:]))

    def _read_some(self, file: str, begin: int, view: memoryview) -> int:
        """Fill as much of the view as one request returns.

        Returns:
            The number of bytes: fewer than requested if the connection breaks, 0 if the link has expired.
        """
        requested = f"{begin}-{begin + len(view) - 1}"  # HTTP ranges include the last byte
        headers = {"Range": f"bytes={requested}", "Accept-Encoding": "identity"}  # not compressed
        link = self._links.get(file)
        if link is None:  # the token goes to the Hub, never to the CDN
            headers |= self._headers
        url = link or hf_hub_url(self._repo_id, file, revision=self._sha, endpoint=self._endpoint)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as response:
            if link and response.status_code in LINK_EXPIRED:
                self._links.pop(file, None)
                return 0
            hf_raise_for_status(response)
            # An answer that isn't the requested range is refused before a whole file is transferred.
            match = re.match(r"bytes (\d+-\d+)/", response.headers.get("Content-Range", ""))
            if response.status_code != 206 or match is None or match[1] != requested:
                answer = f"bytes {match[1]}" if match else "the whole file"
                raise HubError(
                    f"{self._repo_id}/{file}: the server sent {answer} instead of the requested part."
                    " It doesn't support reading in parts: download the model first."
                )
            # A redirect that still has the token leads to the Hub itself (a renamed repository), so it isn't reused.
            if response.history and "authorization" not in response.request.headers:
                self._links[file] = str(response.url)
            done = 0
            try:
                for chunk in response.iter_raw():
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
            except HTTPError:
                if not done:  # received bytes count as progress: the caller resumes after them
                    raise
            return done
