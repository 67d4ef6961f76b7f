"""What breaks a push, on the real client: it ends in one commit with the right bytes, or in a line that says why not.

HF_TSV_KILLS sets how often the runs are killed, twice unless given.
"""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_tsv.errors import HubError
from hf_tsv.hub import Hub, _push
from tests.support import models
from tests.support.hub_fixtures import both_transports
from tests.support.loopback_hub import LoopbackHub
from tests.support.pushes import REPO, commits_of, files_of, push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
KILLS = int(os.environ.get("HF_TSV_KILLS", "2"))
COMMIT = f"/{REPO}/commit/"


@pytest.fixture(autouse=True)
def no_waiting_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits up to eight seconds before it tries again."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def uploaded_again(hub: LoopbackHub) -> list[str]:
    """What arrived whole in the store though it was there."""
    if hub.cas:
        return hub.cas.again
    files = [r.path.partition("?")[0] for r in hub.log if r.method == "PUT" and r.status == 200]
    assert files
    return [file for i, file in enumerate(files) if file in files[:i]]


def assert_pushed(hub: LoopbackHub, out: Path, commits: int = 1) -> None:
    """One commit, with the output's bytes, each uploaded once."""
    assert len(commits_of(hub)) == commits
    stored = files_of(hub)
    for path in out.glob("*.safetensors"):
        assert stored[path.name] == path.read_bytes()
    assert not uploaded_again(hub)


def before_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen on the Hub right before the first commit arrives there."""
    original, waiting = hub.api.create_commit, [act]

    def create_commit(*args: Any, **kwargs: Any) -> Any:
        if waiting:
            waiting.pop()()
        return original(*args, **kwargs)

    monkeypatch.setattr(hub.api, "create_commit", create_commit)


@both_transports
class TestMovedHead:
    def test_others_changed_something_else(
        self, hub: LoopbackHub, alice: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.publish(REPO, {"notes.txt": b"old"})
        before_commit(alice, monkeypatch, lambda: hub.publish(REPO, {"notes.txt": b"new"}, title="theirs"))
        push(merged, alice)
        assert commits_of(hub)[1:] == ["theirs"]
        assert files_of(hub)["notes.txt"] == b"new"
        assert_pushed(hub, merged, commits=2)
        assert [request.status for request in hub.log if COMMIT in request.path] == [412, 200]

    def test_others_changed_the_same_file(
        self, hub: LoopbackHub, alice: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.publish(REPO, {"notes.txt": b"old"})
        before_commit(alice, monkeypatch, lambda: hub.publish(REPO, {"config.json": b"theirs"}))
        with pytest.raises(HubError, match=r"commit \w{7} changed config.json .* pass --create-pr"):
            push(merged, alice)
        assert files_of(hub)["config.json"] == b"theirs"

    def test_others_wrote_into_the_card(
        self, hub: LoopbackHub, alice: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.publish(REPO, {"README.md": b"---\ntags: [mine]\n---\nold words"})
        edited = b"---\ntags: [mine]\n---\nnew words"
        before_commit(alice, monkeypatch, lambda: hub.publish(REPO, {"README.md": edited}))
        push(merged, alice)
        card = files_of(hub)["README.md"].decode()
        assert "new words" in card
        assert "- mine\n" in card
        assert "old words" not in card


@both_transports
class TestCommit:
    @pytest.mark.slow
    @pytest.mark.parametrize("what", [{"lose_reply": True}, {"drop_after": 10}, {"take_only": 700}, {"status": 503}])
    def test_that_breaks_is_made_once(self, hub: LoopbackHub, alice: Hub, merged: Path, what: dict[str, Any]) -> None:
        hub.fault(COMMIT, method="POST", **what)
        push(merged, alice)
        assert_pushed(hub, merged)

    def test_of_a_pull_request_whose_reply_is_lost_is_made_once(
        self, hub: LoopbackHub, alice: Hub, merged: Path
    ) -> None:
        hub.publish(REPO, {"a": b"a"})
        hub.fault(COMMIT, method="POST", lose_reply=True)
        assert push(merged, alice, create_pr=True).endswith("/discussions/1")
        assert len(hub.repos[REPO].discussions) == 1

    def test_waits_as_long_as_the_server_asks(
        self, hub: LoopbackHub, alice: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []
        monkeypatch.setattr(_push.time, "sleep", waited.append)
        hub.fault(COMMIT, method="POST", status=429, headers={"Retry-After": "7"})
        push(merged, alice)
        assert [seconds for seconds in waited if seconds > 1] == [7]


LFS = ("/preupload/", "objects/batch", "/lfs/[0-9a-f]{64}", COMMIT)
XET = ("/preupload/", "/xet-write-token/", COMMIT)
XET_STORE = ("/v1/xorbs/", "/v1/shards")


class TestRefused:
    """Each status has its line, wherever it comes; what was uploaded before isn't uploaded again when it is over."""

    def refused(self, hub: LoopbackHub, alice: Hub, merged: Path, where: str, **what: Any) -> str:
        hub.fault(where, times=1000, **what)
        with pytest.raises(HubError) as caught:
            push(merged, alice)
        assert not commits_of(hub)
        hub.faults.clear()
        push(merged, alice)
        assert_pushed(hub, merged)
        return str(caught.value)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("status", "told"),
        [
            (401, "your token is wrong, expired or revoked (401)"),
            (403, "storage is full (403: the quota is used up)"),
            (404, "404: the quota is used up"),
            (409, "others keep committing to it (409: "),
            (413, "a file is too large for the Hub (413: "),
            (429, "too many requests (429)"),
            (500, "the Hub failed (500: "),
            (503, "the Hub failed (503: "),
        ],
    )
    @pytest.mark.parametrize(
        ("hub", "where"), [("lfs", where) for where in LFS] + [("xet", where) for where in XET], indirect=["hub"]
    )
    def test_by_the_hub(self, hub: LoopbackHub, alice: Hub, merged: Path, status: int, told: str, where: str) -> None:
        said = self.refused(hub, alice, merged, where, status=status, message="the quota is used up")
        if (status, where) == (404, "/xet-write-token/"):
            told = "this Hub has no Xet"
        assert told in said
        assert "othing was committed" in said or status in (409, 413)

    @pytest.mark.slow
    @pytest.mark.parametrize("hub", ["xet"], indirect=True)
    @pytest.mark.parametrize("where", XET_STORE)
    @pytest.mark.parametrize(
        ("what", "told"),
        [
            ({"status": 403}, "(403 Forbidden)"),
            ({"status": 429}, "(429 Too Many Requests)"),
            ({"status": 500}, "(500 Internal Server Error)"),
            ({"take_only": 3}, "(Network error: "),
        ],
    )
    def test_by_the_store_of_xet(
        self, hub: LoopbackHub, alice: Hub, merged: Path, where: str, what: dict[str, Any], told: str
    ) -> None:
        said = self.refused(hub, alice, merged, where, **what)
        assert said.startswith(f"{REPO}: the upload over Xet failed {told}")
        assert said.endswith("Push again; if that goes on, set HF_HUB_DISABLE_XET=1; nothing was committed.")


@both_transports
class TestUpload:
    @pytest.mark.parametrize("seed", range(3))
    def test_connections_cut_at_random_bytes_do_not_show(
        self, hub: LoopbackHub, alice: Hub, merged: Path, seed: int
    ) -> None:
        chance = random.Random(seed)
        for _ in range(6):
            how = chance.choice(["take_only", "drop_after"])
            hub.fault(
                "/lfs/|/commit/|/preupload/|/tree/|xet-write|/v1/",
                skip=chance.randrange(12),
                **{how: chance.randrange(2000)},
            )
        push(merged, alice)
        assert_pushed(hub, merged)

    def test_a_server_that_is_gone_is_told(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        push(merged, alice)
        hub.stop()
        with pytest.raises(HubError, match="can't be reached"):
            push(merged, alice)


def environment(hub: LoopbackHub) -> dict[str, str]:
    """Of a command that alice starts."""
    inherited = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_IMPLICIT_TOKEN"}
    return {**inherited, **hub.environment("hf_alice")}


@pytest.mark.slow
def test_a_hub_without_xet_is_explained(hub: LoopbackHub, merged: Path, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    options = ["--license", "mit", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "hf_tsv", "push", str(merged), REPO, *options]
    with_xet = {**environment(hub), "HF_HUB_DISABLE_XET": "0"}
    done = subprocess.run(command, env=with_xet, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        f"{hub.endpoint}: this Hub has no Xet. To upload without, set HF_HUB_DISABLE_XET=1 and push again;"
        " nothing was committed."
    )
    assert not commits_of(hub)


def killed_again_and_again(command: list[str], hub: LoopbackHub, longest: float) -> str:
    """Start it, kill it at a random moment, KILLS times; then let it finish. All that it said."""
    moments, said = random.Random(0), ""
    for kill in [True] * KILLS + [False]:
        process = subprocess.Popen(command, env=environment(hub), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if kill:
            asked = len(hub.log)
            while len(hub.log) == asked and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, longest))
            process.kill()
        said += process.communicate()[0].decode()
    assert process.returncode == 0, said
    return said


def assert_no_token(folder: Path, hub: LoopbackHub, said: str) -> None:
    told = [path for path in folder.rglob("*") if path.is_file() and b"hf_alice" in path.read_bytes()]
    assert not told
    assert "hf_alice" not in said
    assert not [path for path, data in files_of(hub).items() if b"hf_alice" in data]


@pytest.mark.slow
@pytest.mark.timeout(600 + 60 * KILLS)
@both_transports
def test_a_push_that_is_killed_again_and_again(hub: LoopbackHub, merged: Path, tmp_path: Path) -> None:
    hub.fault("", delay=0.05, times=10**6)
    options = ["--license", "mit", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "hf_tsv", "push", str(merged), REPO, *options]
    said = killed_again_and_again(command, hub, longest=1.2)
    assert_pushed(hub, merged)
    assert_no_token(tmp_path, hub, said)
    assert re.search(rf"{REPO}/commit/\w{{40}}", said)


@pytest.mark.slow
@pytest.mark.timeout(600 + 60 * KILLS)
@both_transports
def test_a_merge_with_a_push_that_is_killed_again_and_again(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault("", delay=0.02, times=10**6)
    recipe = models.recipe(models.zoo(models.bert_wide, tmp_path, tasks=2), tasks=2)
    out = tmp_path / "out"
    options = ["--push-to-hub", REPO, "--license", "mit", "--max-shard-size", "5MB", "--workers", "2", "-q"]
    command = [sys.executable, "-m", "hf_tsv", "merge", str(recipe), str(out), *options]
    said = killed_again_and_again(command, hub, longest=4.0)
    assert_pushed(hub, out)
    assert_no_token(tmp_path, hub, said)
    assert not list(tmp_path.glob(".out*"))
