"""The `hub` fixture: a Hub on loopback, and a client that doesn't wait for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants, get_session

from hf_tsv.hub import Hub, _client, _errors, _push
from tests.support.loopback_hub import LoopbackHub

both_transports = pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)


@pytest.fixture
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty Hub; calls of the client that name no endpoint go to it as well.

    With `both_transports` the test runs a second time, on a Hub with Xet.
    """
    get_session()  # made here and once: before 2.0, threads that ask first at the same time leak one
    xet = getattr(request, "param", "lfs") == "xet"
    if xet:
        pytest.importorskip("hf_xet")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    # What fails is tried again as often as in earnest, but at once.
    monkeypatch.setattr(_errors, "RETRY_WAITS", (0.0, 0.0))
    monkeypatch.setattr(_client, "PREFLIGHT_WAITS", (0.0, 0.0))
    monkeypatch.setattr(_push, "COMMIT_WAITS", (0.0, 0.0, 0.0))
    with LoopbackHub(xet=xet) as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        yield served
        close_session()  # its connections lead to this Hub only


@pytest.fixture
def alice(hub: LoopbackHub, tmp_path: Path) -> Hub:
    """The Hub as alice sees it, with a cache of her own."""
    return Hub(token="hf_alice", cache_dir=tmp_path / "cache")
