"""The `hub` fixture: a Hub on loopback, and an environment in which the client can reach no other."""

import atexit
import os
import shutil
from collections.abc import Iterator
from tempfile import mkdtemp

import pytest

# The client reads these when it is first imported. Port 9 refuses, so a request that was not pointed at the
# loopback Hub fails instead of leaving this machine.
os.environ.update(
    HF_ENDPOINT="http://127.0.0.1:9",
    HF_HUB_DISABLE_IMPLICIT_TOKEN="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1",
    HF_HUB_DISABLE_XET="1",
    HF_XET_CACHE=mkdtemp(prefix="hf_tsv-xet-"),
    HF_XET_CLIENT_RETRY_BASE_DELAY="20ms",
    HF_XET_XORB_COMPRESSION_POLICY="none",  # what the loopback Hub's store reads
)

from huggingface_hub import close_session, constants, get_session

from tests.support.loopback_hub import LoopbackHub

atexit.register(shutil.rmtree, os.environ["HF_XET_CACHE"], ignore_errors=True)
both_transports = pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)


@pytest.fixture
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """An empty Hub; calls of the client that name no endpoint go to it as well. With `both_transports` it is, the
    second time, one with Xet."""
    get_session()  # made here and once: before 2.0, threads that ask first at the same time leak one
    xet = getattr(request, "param", "lfs") == "xet"
    if xet:
        pytest.importorskip("hf_xet")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with LoopbackHub(xet=xet) as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        yield served
        close_session()  # its connections lead to this Hub only
