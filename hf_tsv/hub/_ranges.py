"""Byte ranges of files on the Hub, over connections that break and links that expire."""

import re
from collections.abc import Mapping
from functools import partial

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status

from hf_tsv.errors import HubError
from hf_tsv.hub._errors import retried

LINK_EXPIRED = (401, 403, 404, 410)  # statuses with which CDNs answer a signed link that is too old


class Ranges:
    """Byte ranges of one repository's files at one commit. Safe to use from several threads.

    The Hub answers a request for a large file with a signed link to its CDN. The link is kept until it expires,
    so a thousand tensors cost a thousand requests to the CDN, which bears them, and few to the rate-limited Hub.
    """

    def __init__(self, repo_id: str, sha: str, *, endpoint: str, headers: Mapping[str, str]) -> None:
        self._repo_id, self._sha, self._endpoint = repo_id, sha, endpoint
        self._headers = dict(headers)
        self._links: dict[str, str] = {}

    def read_into(self, file: str, begin: int, view: memoryview) -> None:
        """Fill the view with the file's bytes from `begin` on; a connection that breaks is resumed where it broke.

        Raises:
            httpx.HTTPError: the Hub or the network refuses every attempt.
            HubError: the server doesn't support byte ranges.
        """
        done = 0
        while done < len(view):
            # `retried` starts anew on every round, so only attempts in a row that bring nothing count.
            done += retried(partial(self._read_some, file, begin + done, view[done:]))

    def _read_some(self, file: str, begin: int, view: memoryview) -> int:
        """Fill as much of the view as one request brings.

        Returns:
            The number of bytes: less than asked for where the connection breaks, 0 if the link has expired.
        """
        requested = f"{begin}-{begin + len(view) - 1}"  # HTTP counts the last byte in
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
            # An answer that isn't the requested range is refused, before a whole file comes in.
            match = re.match(r"bytes (\d+-\d+)/", response.headers.get("Content-Range", ""))
            if response.status_code != 206 or match is None or match[1] != requested:
                answer = f"bytes {match[1]}" if match else "the whole file"
                raise HubError(
                    f"{self._repo_id}/{file}: the server sent {answer} instead of the requested part."
                    " It doesn't support reading in parts: download the model first."
                )
            # A redirect that still carries the token leads to the Hub itself (a renamed repository): no link to keep.
            if response.history and "authorization" not in response.request.headers:
                self._links[file] = str(response.url)
            done = 0
            try:
                for chunk in response.iter_raw():
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
            except HTTPError:
                if not done:  # what has come counts as progress: the caller resumes after it
                    raise
            return done
