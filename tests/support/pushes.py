"""What a push left on the loopback Hub, and an output to push."""

from pathlib import Path
from typing import Any

import pytest

import hf_tsv
from hf_tsv.hub import Hub
from tests.support import models
from tests.support.loopback_hub import LoopbackHub

REPO = "alice/merged"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of three local models, in two shards."""
    folder = tmp_path_factory.mktemp("merged")
    hf_tsv.merge(
        models.recipe(models.zoo(models.llama, folder)), folder / "out", options=hf_tsv.Options(max_shard_size=50_000)
    )
    return folder / "out"


def uploads(hub: LoopbackHub) -> list[str]:
    """Where each file's bytes went."""
    return [r.path for r in hub.log if r.method == "PUT" or r.path.startswith("/v1/xorbs/")]


def writes(hub: LoopbackHub) -> list[str]:
    """Every request that may change something."""
    return [f"{request.method} {request.path}" for request in hub.log if request.method not in ("GET", "HEAD")]


def files_of(hub: LoopbackHub, repo_id: str = REPO, revision: str = "main") -> dict[str, bytes]:
    """Every file of a revision."""
    return {path: blob.data for path, blob in hub.repos[repo_id].resolve(revision).files.items()}


def commits_of(hub: LoopbackHub, repo_id: str = REPO) -> list[str]:
    """Titles of the commits on main, without the one that made the repository."""
    repo = hub.repos[repo_id]
    return [commit.title for commit in repo.history(repo.resolve("main"))][:-1]


def push(out: Path, hub: Hub, repo: str = REPO, **options: Any) -> str:
    """The address of what `hf_tsv.push` pushed."""
    options = {"license": "mit"} | options
    [pushed] = hf_tsv.push(out, repo, hub=hub, **options)
    return pushed.url
