"""Merging from the Hub and to the Hub, with the real client against a Hub on loopback."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, save

import hf_tsv
from hf_tsv.cards import all_terms
from hf_tsv.checkpoints.writer import CheckpointWriter
from hf_tsv.errors import CheckpointError, HfTsvError, HubError, OutputError, PublishError
from hf_tsv.hub import Hub
from hf_tsv.publish.check import Pushing
from hf_tsv.record import MergeRecord
from tests.support import models
from tests.support.cli import run
from tests.support.hub_fixtures import both_transports
from tests.support.loopback_hub import LoopbackHub
from tests.support.pushes import REPO, commits_of, files_of, uploads, writes
from tests.support.tokenizers import bpe

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
CARD = b"---\nlicense: apache-2.0\nlanguage: en\n---\nA model\n"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three fine-tunes, and their merge from the disk."""
    folder = models.zoo(models.llama, tmp_path_factory.mktemp("zoo"), max_shard_size="40KB")
    hf_tsv.merge(models.recipe(folder), folder / "merged", options=hf_tsv.Options(max_shard_size=30_000))
    return folder


@pytest.fixture
def recipe(hub: LoopbackHub, local: Path, tmp_path: Path) -> Path:
    """The same models on the Hub, and the recipe that merges them."""
    for name in ("base", "t0", "t1", "t2"):
        files = {path.name: path.read_bytes() for path in (local / name).iterdir()}
        hub.publish(f"bob/{name}", {**files, "README.md": CARD})
    path = tmp_path / "recipe.yaml"
    tasks = "".join(f"  - model: bob/t{t}\n" for t in range(3))
    path.write_text(f"merge_method: tsv_m\nbase_model: bob/base\nmodels:\n{tasks}")
    return path


def merge(recipe: Path, hub: Hub, pushing: Pushing | None = None, **more: Any) -> MergeRecord:
    """With small shards; `more` are arguments of the merge, and options."""
    progress = more.pop("progress", None)
    options = hf_tsv.Options(max_shard_size=30_000, **more)
    return hf_tsv.merge(recipe, recipe.parent / "out", options, push_to_hub=pushing, hub=hub, progress=progress)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def pushed_weights(hub: LoopbackHub, repo_id: str = REPO) -> dict[str, bytes]:
    return {path: data for path, data in files_of(hub, repo_id).items() if path.endswith(".safetensors")}


class TestPushWhileMerging:
    @both_transports
    def test_one_commit_with_the_same_bytes(self, hub: LoopbackHub, alice: Hub, recipe: Path, local: Path) -> None:
        record = merge(recipe, alice, Pushing(REPO))
        assert record.pushed[0].url.endswith(hub.repos[REPO].resolve("main").sha)
        assert len(commits_of(hub)) == 1
        assert pushed_weights(hub) == weights(local / "merged") == weights(recipe.parent / "out")
        card = files_of(hub)["README.md"].decode()
        assert "license: apache-2.0" in card
        assert "language:\n- en" in card
        assert "| apache-2.0 |" in card
        assert len(uploads(hub)) == len(set(uploads(hub))) == len(weights(local / "merged"))

    @pytest.mark.slow
    def test_shards_go_up_while_others_are_merged(
        self, hub: LoopbackHub, alice: Hub, recipe: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last tensor waits until the Hub has a shard; if none is sent before, that is never."""
        seen = []
        original = CheckpointWriter.write

        def write(self: Any, name: str, tensor: Any) -> str:
            if name == "model.norm.weight":
                seen.extend(wait_for(lambda: uploads(hub)))
            return str(original(self, name, tensor))

        monkeypatch.setattr(CheckpointWriter, "write", write)
        merge(recipe, alice, Pushing(REPO), workers=1)
        assert seen

    @pytest.mark.slow
    @both_transports
    def test_again_pushes_what_is_there(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        first = merge(recipe, alice, Pushing(REPO))
        hub.log.clear()
        assert merge(recipe, alice, Pushing(REPO)) == first
        assert not writes(hub)
        del hub.repos[REPO]
        merge(recipe, alice, Pushing(REPO))
        assert len(commits_of(hub)) == 1

    @pytest.mark.slow
    def test_a_failed_push_leaves_the_merge(self, hub: LoopbackHub, alice: Hub, recipe: Path, local: Path) -> None:
        quota = "Storage quota exceeded for private repositories"
        hub.fault("lfs/objects/batch", status=403, message=quota, times=99)
        with pytest.raises(HubError, match="storage is full .403: Storage quota") as caught:
            merge(recipe, alice, Pushing(REPO))
        assert "out is complete. The same command goes on with the push" in caught.value.problems[-1]
        assert weights(recipe.parent / "out") == weights(local / "merged")
        assert not commits_of(hub)
        hub.faults.clear()
        merge(recipe, alice, Pushing(REPO))
        assert pushed_weights(hub) == weights(local / "merged")

    def test_nothing_is_downloaded_before_the_target_is_found_fit(
        self, hub: LoopbackHub, alice: Hub, recipe: Path
    ) -> None:
        with pytest.raises(HubError, match="can't create one under 'bob'"):
            merge(recipe, alice, Pushing("bob/merged"))
        assert not [r for r in hub.log if r.cdn and not r.range]
        assert not (recipe.parent / "out").exists()

    @pytest.mark.slow
    def test_dry_run_writes_nothing(self, hub: LoopbackHub, recipe: Path, tmp_path: Path) -> None:
        options = ("--push-to-hub", REPO, "--dry-run", "--token", "hf_alice", "--cache-dir", tmp_path / "cache")
        result = run("merge", recipe, *options)
        assert result.exit_code == 0, result.stderr
        assert "Licence: apache-2.0 (all sources have it)." in result.stderr
        assert f"{REPO} (new, as your settings say): 78.5 kB of weights" in result.stderr
        result = run("compress", recipe, *options[:1], "alice/llama-{task}", *options[2:])
        assert "alice/llama-t2 (new, as your settings say)" in result.stderr
        assert not writes(hub)
        assert not (tmp_path / "out").exists()

    def test_dry_run_looks_at_the_disks(self, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hf_tsv.merging.resources.shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
        result = run("merge", recipe, tmp_path / "out", "--dry-run", "--token", "hf_alice", "--cache-dir", tmp_path)
        assert result.exit_code == 4
        assert "its disk has 10 kB free, expected at least" in result.stderr

    @pytest.mark.slow
    def test_a_download_is_watched(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        class Watch:
            began: ClassVar[list[float]] = []
            came: ClassVar[list[float]] = []

            def begin(self, total: float) -> None:
                self.began.append(total)

            def advance(self, work: float, name: str) -> None:
                if name == "downloading":
                    self.came.append(work)

        merge(recipe, alice, progress=Watch())
        assert sum(Watch.came) == Watch.began[0] > sum(len(data) for data in weights(recipe.parent / "out").values())

    @pytest.mark.slow
    def test_without_a_folder_it_has_the_repositorys_name(
        self, hub: LoopbackHub, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        options = ("--token", "hf_alice", "--cache-dir", tmp_path / "cache", "--commit-message", "First")
        result = run("merge", recipe, "--push-to-hub", REPO, *options)
        assert commits_of(hub) == ["First"]
        assert (result.exit_code, result.stdout) == (0, "merged\n"), result.stderr
        assert (tmp_path / "merged" / "hf_tsv.json").is_file()
        assert run("merge", recipe).exit_code == 2
        assert run("merge", recipe, "x", "--private").exit_code == 2
        assert run("merge", recipe, "x", "--commit-message", "x").exit_code == 2

    @pytest.mark.slow
    def test_adapters_to_a_repository_each(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        pushing, options = Pushing("alice/llama-{task}", message="Adapters"), "rank=4"
        record = hf_tsv.compress(recipe, recipe.parent / "out", options, push_to_hub=pushing, hub=alice)
        assert [one.repo_id for one in record.pushed] == [f"alice/llama-t{t}" for t in range(3)]
        config = json.loads(files_of(hub, "alice/llama-t1")["adapter_config.json"])
        assert config["base_model_name_or_path"] == "bob/base"
        assert commits_of(hub, "alice/llama-t1") == ["Adapters"]
        card = files_of(hub, "alice/llama-t1")["README.md"].decode()
        assert "base_model:\n- bob/base\n" in card
        assert "base_model_relation: adapter" in card
        assert f'from_pretrained("bob/base", revision="{hub.repos["bob/base"].resolve("main").sha}")' in card
        hub.log.clear()
        assert hf_tsv.compress(recipe, recipe.parent / "out", options, push_to_hub=pushing, hub=alice) == record
        assert not writes(hub)

    @pytest.mark.slow
    def test_a_merge_as_an_adapter(
        self, hub: LoopbackHub, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        options = ("--as", "adapter", "--keep", "rank=4", "--push-to-hub", REPO)
        options += ("--token", "hf_alice", "--cache-dir", tmp_path / "cache", "--quiet")
        for _ in range(2):  # the second finds all done
            result = run("merge", recipe, *options)
            assert result.exit_code == 0, result.stderr
            assert f"Pushed to {hub.endpoint}/{REPO}" in result.stderr.replace("\n", "")
        assert len(commits_of(hub)) == 1
        files, written = files_of(hub), tmp_path / "merged" / "adapter_model.safetensors"
        assert files["adapter_model.safetensors"] == written.read_bytes()
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "bob/base"
        assert not [path for path in files if path.startswith("model")]

    @pytest.mark.slow
    def test_adapters_in_folders_of_one_are_models_of_recipes(
        self, hub: LoopbackHub, alice: Hub, recipe: Path, tmp_path: Path
    ) -> None:
        made = tmp_path / "made"
        hf_tsv.compress(recipe, made, "rank=4", push_to_hub="alice/all", hub=alice)
        sha = hub.repos["alice/all"].resolve("main").sha
        names = ("alice/all/adapters/t0@main", "hf://alice/all/adapters/t1", f"bob/base+alice/all/adapters/t2@{sha}")
        listed = "".join(f"  - model: {name}\n" for name in names)
        text = f"merge_method: tsv_m\nbase_model: bob/base\nmodels:\n{listed}"
        (tmp_path / "folders.yaml").write_text(text)
        local = "merge_method: tsv_m\nbase_model: bob/base\nmodels:\n" + "".join(
            f"  - model: {made}/adapters/t{t}\n" for t in range(3)
        )
        (tmp_path / "local.yaml").write_text(local)
        hf_tsv.merge(tmp_path / "local.yaml", tmp_path / "local", hub=alice)
        record = hf_tsv.merge(tmp_path / "folders.yaml", tmp_path / "out", hub=alice)
        assert weights(tmp_path / "out") == weights(tmp_path / "local")
        assert [source.task for source in record.sources] == [None, "t0", "t1", "t2"]
        card = (tmp_path / "out" / "README.md").read_text()
        assert f"/alice/all/tree/{sha}/adapters/t0" in card
        assert ModelCard(card).data.base_model == ["bob/base", "alice/all"]
        hf_tsv.merge(tmp_path / "out" / "recipe.lock.yaml", tmp_path / "again", hub=alice)
        offline = Hub(cache_dir=alice.cache_dir, offline=True)
        hf_tsv.merge(tmp_path / "folders.yaml", tmp_path / "offline", hub=offline)
        assert weights(tmp_path / "again") == weights(tmp_path / "offline") == weights(tmp_path / "local")

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("alice/all", r"has weights only in folders \(adapters/t0, adapters/t1\)\. Append one of them"),
            ("alice/all/adapters/t9", r"has no folder 'adapters/t9'; weights are in adapters/t0, adapters/t1"),
            ("alice/all/../t9", "neither a folder here nor a Hub id, expected org/name"),
        ],
    )
    @pytest.mark.usefixtures("recipe")
    def test_folders_that_are_none(self, name: str, told: str, hub: LoopbackHub, alice: Hub, tmp_path: Path) -> None:
        hub.publish("alice/all", {f"adapters/t{t}/adapter_model.safetensors": b"x" for t in range(2)})
        path = tmp_path / "x.yaml"
        path.write_text(f"merge_method: linear\nbase_model: bob/base\nmodels:\n  - model: {name}\n")
        with pytest.raises(HfTsvError, match=told):
            hf_tsv.plan(path, hub=alice)

    def test_a_base_is_a_whole_repository(self, hub: LoopbackHub, alice: Hub, recipe: Path, tmp_path: Path) -> None:
        base = {f"sub/{path}": data for path, data in files_of(hub, "bob/base").items()}
        hub.publish("bob/nested", base)
        path = tmp_path / "x.yaml"
        path.write_text("merge_method: linear\nbase_model: bob/nested/sub\nmodels:\n  - model: bob/t1\n")
        with pytest.raises(HfTsvError, match="a folder in a repository, expected a whole one as the base"):
            hf_tsv.plan(path, hub=alice)
        path.write_text("merge_method: linear\nbase_model: bob/base\nmodels:\n  - model: bob/nested/sub\n")
        hf_tsv.merge(path, tmp_path / "out", hub=alice, options=hf_tsv.Options(stream=True))
        assert weights(tmp_path / "out")


class TestReplacing:
    @pytest.mark.slow
    def test_a_model_of_the_recipe_is_not_replaced(self, hub: LoopbackHub, recipe: Path) -> None:
        bob = Hub(token="hf_bob", cache_dir=recipe.parent / "cache")
        with pytest.raises(PublishError, match="bob/t1: is one of the recipe's models, which the push would replace"):
            merge(recipe, bob, Pushing("bob/t1"))
        assert not (recipe.parent / "out").exists()
        merge(recipe, bob)
        with pytest.raises(PublishError, match="bob/base: is one of the recipe's models"):
            hf_tsv.push(recipe.parent / "out", "bob/base", hub=bob)
        assert not writes(hub)
        assert hf_tsv.push(recipe.parent / "out", "bob/t1", create_pr=True, hub=bob)[0].url.endswith("/discussions/1")


class TestTerms:
    @pytest.mark.slow
    def test_licences_and_notices_come_along(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        hub.publish("bob/base", {"LICENSE": b"base"})
        hub.publish("bob/t0", {"LICENSE": b"base", "NOTICE.txt": b"t0"})
        hub.publish("bob/t1", {"LICENSE": b"other", "USE_POLICY.md": b"t1"})
        merge(recipe, alice, Pushing(REPO))
        found = {path: data for path, data in files_of(hub).items() if b"LIC" in path.encode() or "licenses/" in path}
        assert found == {
            "LICENSE": b"base",
            "licenses/bob__t0/NOTICE.txt": b"t0",
            "licenses/bob__t1/LICENSE": b"other",
            "licenses/bob__t1/USE_POLICY.md": b"t1",
        }

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("how", "private"), [({"private": True}, True), ({"gated": "manual", "allowed": {"alice"}}, False)]
    )
    def test_the_recipe_beside_an_adapter_names_no_private_model_in_public(
        self, hub: LoopbackHub, alice: Hub, recipe: Path, how: dict[str, Any], private: bool
    ) -> None:
        recipe.write_text(recipe.read_text().replace("bob/t1", "team/t1"))
        hub.repos["team/t1"] = hub.repos.pop("bob/t1")
        hub.publish("team/t1", {}, **how)
        hf_tsv.compress(recipe, recipe.parent / "made", "rank=4", hub=alice)
        hf_tsv.push(recipe.parent / "made", "alice/a-{task}", hub=alice)
        assert hub.repos["alice/a-t0"].private is private
        assert hub.repos["alice/a-t1"].private

    @pytest.mark.slow
    @pytest.mark.parametrize("how", [{"private": True}, {"gated": "manual", "allowed": {"alice"}}])
    def test_hidden_sources_are_pushed_in_private(
        self, hub: LoopbackHub, alice: Hub, recipe: Path, how: dict[str, Any]
    ) -> None:
        text = recipe.read_text().replace("bob/t1", "team/t1")
        recipe.write_text(text)
        hub.repos["team/t1"] = hub.repos.pop("bob/t1")
        hub.publish("team/t1", {}, **how)
        hub.publish("alice/public", {"a": b"a"})
        with pytest.raises(PublishError, match="is public, but not everyone may see team/t1. Pass --public if"):
            merge(recipe, alice, Pushing("alice/public"))
        merge(recipe, alice, Pushing(REPO))
        assert hub.repos[REPO].private
        merge(recipe, alice, Pushing("alice/public", private=False))
        assert not hub.repos["alice/public"].private

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("wish", "told"), [(True, "is public, but --private"), (False, "is private, but --public")]
    )
    def test_an_existing_repository_is_as_it_was_asked_for(
        self, hub: LoopbackHub, alice: Hub, recipe: Path, wish: bool, told: str
    ) -> None:
        hub.publish(REPO, {"a": b"a"}, private=not wish)
        with pytest.raises(PublishError, match=told):
            merge(recipe, alice, Pushing(REPO, private=wish))
        assert not writes(hub)

    @pytest.mark.slow
    def test_a_conflict_of_licences_stops_it_before_the_download(
        self, hub: LoopbackHub, alice: Hub, recipe: Path
    ) -> None:
        hub.publish("bob/t0", {"README.md": CARD.replace(b"apache-2.0", b"llama3.1")})
        hub.publish("bob/t1", {"README.md": CARD.replace(b"apache-2.0", b"gemma")})
        with pytest.raises(PublishError, match="llama3.1 can't be combined.*bob/t0: llama3.1.*pass --license"):
            merge(recipe, alice, Pushing(REPO))
        assert not writes(hub)
        merge(recipe, alice, Pushing(REPO, license="llama3.1"))
        card = files_of(hub)["README.md"].decode()
        assert "license: llama3.1" in card
        assert "chosen by the publisher. Built with Llama." in card

    @pytest.mark.slow
    def test_offline_it_is_not_known_who_may_see_a_source(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        merge(recipe, alice)
        offline = Hub(cache_dir=alice.cache_dir, offline=True)
        record = merge(recipe, offline, overwrite=True)
        assert {named.terms.private for named in all_terms(record)} == {None}
        hf_tsv.push(recipe.parent / "out", REPO, hub=alice)
        assert hub.repos[REPO].private


class TestLock:
    @pytest.mark.slow
    def test_gives_the_same_bytes_though_every_source_has_moved(
        self, hub: LoopbackHub, alice: Hub, recipe: Path
    ) -> None:
        """A base, fine-tunes of which one is an adapter on a model, and a tokenizer, each from a repository."""
        options = "rank=4"
        hf_tsv.compress(recipe, recipe.parent / "a", options, push_to_hub=Pushing("alice/a-{task}"), hub=alice)
        text = recipe.read_text().replace("bob/t0", "bob/base@main+alice/a-t0").replace("bob/t1", "hf://bob/t1@main")
        recipe.write_text(f"{text}tokenizer_source: bob/t2\n")
        bpe().save_pretrained(recipe.parent / "tokenizer")
        tokenizer = (recipe.parent / "tokenizer" / "tokenizer.json").read_bytes()
        for name in ("bob/base", "bob/t2"):
            hub.publish(name, {"tokenizer.json": tokenizer})
        merge(recipe, alice)
        first = recipe.parent / "first"
        (recipe.parent / "out").rename(first)
        asked = [request.path for request in hub.log]
        for repo in hub.repos:
            weights_ = save({"moved": torch.ones(2)})
            hub.publish(repo, {"model.safetensors": weights_, "tokenizer.json": b"[]", "config.json": b"[]"})
        hub.log.clear()
        other = Hub(token="hf_alice", cache_dir=recipe.parent / "other cache")
        hf_tsv.merge(
            first / "recipe.lock.yaml", recipe.parent / "out", hub=other, options=hf_tsv.Options(max_shard_size=30_000)
        )
        asked += [request.path for request in hub.log]
        once, again = (contents(folder) for folder in (first, recipe.parent / "out"))
        assert once.keys() == again.keys()
        own = {"hf_tsv.json", "recipe.yaml", "README.md"}  # what names the recipe, and the seconds it took
        assert [name for name in once.keys() - own if once[name] != again[name]] == []
        read = [re.search(r"/(resolve|tree|paths-info)/([^/?]+)", path) for path in asked]
        assert {found[1] for found in read if found} >= {"resolve", "tree"}
        assert not [found[0] for found in read if found and not re.fullmatch(r"[0-9a-f]{40}", found[2])]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestStream:
    @pytest.mark.slow
    def test_same_bytes_and_no_weights_on_disk(self, hub: LoopbackHub, alice: Hub, recipe: Path, local: Path) -> None:
        merge(recipe, alice, stream=True)
        assert weights(recipe.parent / "out") == weights(local / "merged")
        assert not list(alice.cache_dir.rglob("*.safetensors"))
        assert (recipe.parent / "out" / "config.json").is_file()

    @pytest.mark.slow
    def test_each_byte_is_asked_for_once_in_few_requests(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        merge(recipe, alice, stream=True, workers=1)
        ranges = [request for request in hub.log if request.cdn]
        shards = [path for path in files_of(hub, "bob/base") if path.endswith(".safetensors")]
        tensors = sum(len(load(data)) for path, data in files_of(hub, "bob/base").items() if path in shards)
        assert len(ranges) == 4 * 2 * len(shards) < 4 * tensors  # a header and a run of each shard of four models
        largest = sum(len(data) for path, data in files_of(hub, "bob/base").items() if path in shards)
        assert sum(request.sent for request in ranges) < 4 * 2 * largest + 4 * 100_000 * len(shards)

    @pytest.mark.slow
    def test_cut_connections_and_expired_links_do_not_show(
        self, hub: LoopbackHub, alice: Hub, recipe: Path, local: Path
    ) -> None:
        for skip in range(2, 20, 3):
            hub.fault("/lfs/", drop_after=1000, skip=skip)
        hub.fault("/lfs/", status=403, message="Request has expired", skip=9)
        hub.fault("/lfs/", status=503, skip=12, times=2)
        merge(recipe, alice, stream=True)
        assert weights(recipe.parent / "out") == weights(local / "merged")

    @pytest.mark.slow
    def test_adapters_on_a_streamed_base(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        """What a compression wrote and published is merged; only the adapters, which are small, lie on the disk."""
        pushing = Pushing("alice/llama-{task}")
        hf_tsv.compress(recipe, recipe.parent / "adapters", "rank=4", push_to_hub=pushing, hub=alice)
        for task in range(3):
            recipe.write_text(recipe.read_text().replace(f"bob/t{task}", f"alice/llama-t{task}"))
        merge(recipe, alice)
        downloaded, cache = weights(recipe.parent / "out"), recipe.parent / "other"
        merge(recipe, Hub(token="hf_alice", cache_dir=cache), stream=True, overwrite=True)
        assert weights(recipe.parent / "out") == downloaded
        assert {path.name for path in cache.rglob("*.safetensors")} == {"adapter_model.safetensors"}

    @pytest.mark.slow
    def test_compressing_keeps_the_base_alone_on_the_disk(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        options = "rank=4"
        hf_tsv.compress(recipe, recipe.parent / "streamed", options, hub=alice, options=hf_tsv.Options(stream=True))
        cached = {path.relative_to(alice.cache_dir).parts[0] for path in alice.cache_dir.rglob("*.safetensors")}
        assert cached == {"models--bob--base"}
        hf_tsv.compress(recipe, recipe.parent / "downloaded", options, hub=alice)
        one, other = (recipe.parent / name / "adapters" for name in ("streamed", "downloaded"))
        assert weights(one / "t1") == weights(other / "t1")
        assert weights(one / "t1")

    @pytest.mark.slow
    def test_merging_into_an_adapter(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        one, other = recipe.parent / "streamed", recipe.parent / "downloaded"
        hf_tsv.merge_as_adapter(recipe, one, "rank=2", hub=alice, options=hf_tsv.Options(stream=True))
        assert not list((alice.cache_dir / "models--bob--t1").rglob("*.safetensors"))
        hf_tsv.merge_as_adapter(recipe, other, "rank=2", hub=alice)
        assert weights(one) == weights(other)
        assert weights(one)

    @pytest.mark.slow
    def test_dry_run_tells_what_is_read(self, hub: LoopbackHub, recipe: Path, tmp_path: Path) -> None:
        options = ("--dry-run", "--stream", "--token", "hf_alice", "--cache-dir", tmp_path / "cache")
        for command in (("merge", recipe), ("compress", recipe)):
            result = run(*command, tmp_path / "out", *options)
            assert result.exit_code == 0, result.stderr
            assert "of weights from the Hub, none of which is kept." in result.stderr
        assert not list((tmp_path / "cache").rglob("*.safetensors"))

    @pytest.mark.slow
    def test_a_quantized_model_is_refused_at_plan_time(self, hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
        said = json.loads(files_of(hub, "bob/t1")["config.json"]) | {"quantization_config": {"quant_method": "fp8"}}
        hub.publish("bob/t1", {"config.json": json.dumps(said).encode()})
        for run_ in (hf_tsv.plan, lambda *_, hub: merge(recipe, hub, stream=True)):
            with pytest.raises(CheckpointError, match=r"^bob/t1: its config.json says that it is quantized \('fp8'\)"):
                run_(recipe, hub=alice)


def wait_for(found: Any, seconds: float = 20) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := found():
            return value
        time.sleep(0.01)
    return []


@pytest.mark.slow
def test_adapters_on_the_merged_model_go_along(hub: LoopbackHub, alice: Hub, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "residuals: {rank: 2}\n")
    merge(recipe, alice, Pushing(REPO))
    adapters = {path for path in files_of(hub) if path.endswith("adapter_model.safetensors")}
    assert adapters == {f"adapters/t{t}/adapter_model.safetensors" for t in range(3)}
    assert str(recipe.parent).encode() not in b"".join(files_of(hub).values())
    with pytest.raises(OutputError, match="an adapter on the merged model"):
        hf_tsv.push(recipe.parent / "out" / "adapters" / "t0", REPO, hub=alice)
