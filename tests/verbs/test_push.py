"""Pushing, with the real client against a Hub on loopback."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import hf_tsv
from hf_tsv.errors import HubError, OutputError, PublishError
from hf_tsv.hub import Hub
from hf_tsv.lora.formats import ADAPTERS
from tests.support import models
from tests.support.cli import run
from tests.support.hub_fixtures import both_transports
from tests.support.loopback_hub import LoopbackHub
from tests.support.pushes import REPO, commits_of, files_of, push, uploads, writes

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


class TestPush:
    @both_transports
    def test_one_commit_holds_the_whole_output(
        self, hub: LoopbackHub, alice: Hub, merged: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = push(merged, alice)
        assert not caplog.messages  # the client has nothing to warn of
        assert commits_of(hub) == ["Merge 3 models with hf_tsv (tsv_m)"]
        assert url.endswith(hub.repos[REPO].resolve("main").sha)
        pushed = files_of(hub)
        assert pushed.keys() - {".gitattributes"} == {path.name for path in merged.iterdir()}
        weights = [path for path in merged.iterdir() if path.suffix == ".safetensors"]
        assert len(weights) == 2
        assert all(pushed[path.name] == path.read_bytes() for path in weights)
        assert ModelCard(pushed["README.md"].decode()).data.license == "mit"

    @both_transports
    def test_again_is_no_commit_and_no_upload(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        url = push(merged, alice)
        hub.log.clear()
        assert push(merged, alice) == url
        assert len(commits_of(hub)) == 1
        assert not writes(hub)

    def test_no_folder_of_this_machine_is_pushed(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        push(merged, alice)
        for path, data in files_of(hub).items():
            assert str(merged.parent).encode() not in data, path
        assert b"model: t0" in files_of(hub)["recipe.lock.yaml"]
        assert json.loads(files_of(hub)["hf_tsv.json"])["sources"][1]["model"] == "t0"
        assert str(merged.parent) in (merged / "hf_tsv.json").read_text()

    def test_dry_run_writes_nothing(self, hub: LoopbackHub, merged: Path, tmp_path: Path) -> None:
        before = sorted(merged.rglob("*"))
        result = run(
            *("push", merged, REPO, "--dry-run", "--license", "mit", "--token", "hf_alice", "--cache-dir", tmp_path)
        )
        assert result.exit_code == 0, result.stderr
        assert "alice/merged (new, as your settings say)" in result.stderr
        assert hub.log
        assert not writes(hub)
        assert REPO not in hub.repos
        assert sorted(merged.rglob("*")) == before

    def test_command_prints_the_address(self, hub: LoopbackHub, merged: Path, tmp_path: Path) -> None:
        options = ("--license", "mit", "--token", "hf_alice", "--cache-dir", tmp_path, "-q", "--private")
        result = run("push", merged, REPO, *options)
        assert (result.exit_code, result.stdout) == (
            0,
            f"{hub.endpoint}/{REPO}/commit/{hub.repos[REPO].resolve('main').sha}\n",
        )
        assert hub.repos[REPO].private
        assert json.loads(run("push", merged, REPO, *options, "--json").stdout)[0]["changed"] == []

    def test_a_commit_says_what_a_person_says(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        push(merged, alice, commit_message="Better\n\nMuch better")
        commit = hub.repos[REPO].resolve("main")
        assert commit.title == "Better"
        assert commit.message.startswith(f"Much better\n\nhf_tsv {hf_tsv.__version__}, sources ")
        options = ("--license", "apache-2.0", "--cache-dir", alice.cache_dir, "--commit-message", "Another licence")
        assert run("push", merged, REPO, *options, "--token", "hf_alice").exit_code == 0
        assert commits_of(hub) == ["Another licence", "Better"]

    def test_stale_weights_go_in_the_same_commit(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        old = ["model.safetensors", "pytorch_model.bin", "adapter_config.json", "task_parts/x.safetensors"]
        kept = ["notes.txt", "figures/model.safetensors", "model.gguf"]
        hub.publish(REPO, dict.fromkeys([*old, *kept], b"old"))
        push(merged, alice)
        assert not set(old) & files_of(hub).keys()
        assert set(kept) < files_of(hub).keys()
        assert len(commits_of(hub)) == 1

    def test_a_folder_of_something_else_is_refused(self, hub: LoopbackHub, alice: Hub, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="has no hf_tsv.json"):
            push(tmp_path, alice)
        assert not hub.log

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers renamed
    def test_adapters_on_a_merge_name_its_repository(self, hub: LoopbackHub, alice: Hub, tmp_path: Path) -> None:
        recipe = models.recipe(models.zoo(models.llama, tmp_path, tasks=2), tasks=2, more="residuals: {rank: 2}\n")
        hf_tsv.merge(recipe, tmp_path / "out")
        push(tmp_path / "out", alice)
        pushed = files_of(hub)
        for task in ("t0", "t1"):
            config = json.loads(pushed[f"adapters/{task}/adapter_config.json"])
            assert config["base_model_name_or_path"] == REPO
            assert f"adapters/{task}/adapter_model.safetensors" in pushed
        assert 'subfolder="adapters/t0"' in pushed["README.md"].decode()

    @both_transports
    def test_pull_request(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        hub.publish("bob/model", {"config.json": b"{}"})
        url = push(merged, alice, "bob/model", create_pr=True)
        assert url == f"{hub.endpoint}/bob/model/discussions/1"
        assert files_of(hub, "bob/model").keys() == {"config.json"}
        assert "hf_tsv.json" in files_of(hub, "bob/model", "refs/pr/1")
        hub.log.clear()
        assert push(merged, alice, "bob/model", create_pr=True) == url
        assert len(hub.repos["bob/model"].discussions) == 1
        assert not uploads(hub)


class TestRefused:
    """Each reason has a line of its own, told before anything is written."""

    @pytest.mark.parametrize(
        ("token", "repo", "told"),
        [
            ("hf_alice", "bob/model", "'alice' can't create one under 'bob'. Choose alice/model, team/model."),
            ("hf_alice", "model", "model: has no owner. Write user/name, such as alice/model."),
            ("hf_alice", "a b/c", "a b/c: not a valid name for the Hub"),
            ("hf_alice", "bob/public", "bob/public: your token has no write access there (403: Forbidden"),
            ("hf_alice", "bob/secret", "no such repository, or it is private"),
            ("hf_reader", "carol/model", "your token is read-only. Create one that may write"),
            ("hf_wrong", "alice/model", "your token is wrong, expired or revoked (401)"),
            (False, "alice/model", "writing needs a token, and none was found"),
        ],
    )
    def test_before_a_byte_is_uploaded(
        self, hub: LoopbackHub, merged: Path, token: str | bool, repo: str, told: str, tmp_path: Path
    ) -> None:
        hub.publish("bob/public", {"a": b"a"})
        hub.publish("bob/secret", {"a": b"a"}, private=True)
        with pytest.raises(HubError) as caught:
            push(merged, Hub(token=token, cache_dir=tmp_path), repo)
        assert told in str(caught.value)
        assert len(caught.value.problems) == 1
        assert caught.value.exit_code == 3
        assert not writes(hub)

    def test_a_licence_that_nobody_named(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        with pytest.raises(
            PublishError, match="some sources name no licence, or several .*base: none named.*pass --license"
        ):
            push(merged, alice, license=None)
        with pytest.raises(PublishError, match="Pass one such as apache-2.0"):
            push(merged, alice, license="Apache 2")
        assert not writes(hub)


class TestCard:
    def test_what_people_wrote_survives_a_push(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        push(merged, alice)
        card = files_of(hub)["README.md"].decode()
        edited = card.replace("tags:\n", "tags:\n- mine\n").replace(
            "<!-- hf_tsv:begin recipe", "## Mine\n\n<!-- hf_tsv:begin recipe"
        )
        hub.publish(REPO, {"README.md": edited.encode()}, title="by hand")
        push(merged, alice, license="apache-2.0")
        pushed = files_of(hub)["README.md"].decode()
        assert "license: apache-2.0" in pushed
        assert "- mine\n" in pushed
        assert pushed.index("## What was merged") < pushed.index("## Mine") < pushed.index("## Recipe")
        url = push(merged, alice, license="apache-2.0")
        assert url.endswith(hub.repos[REPO].resolve("main").sha)
        assert len(commits_of(hub)) == 3

    def test_is_written_anew_around_what_people_wrote(self, merged: Path, tmp_path: Path) -> None:
        out = shutil.copytree(merged, tmp_path / "out")
        card = (out / "README.md").read_text()
        (out / "README.md").write_text(card.replace("## Recipe", "## Rezept") + "\nMy words.\n")
        result = run("card", out)
        assert (result.exit_code, result.stdout) == (0, f"{out}/README.md\n"), result.stderr
        assert (out / "README.md").read_text() == card + "\nMy words.\n"

    def test_a_licence_in_its_header_counts_as_chosen(
        self, hub: LoopbackHub, alice: Hub, merged: Path, tmp_path: Path
    ) -> None:
        out = shutil.copytree(merged, tmp_path / "out")
        run("card", out, "--license", "bsd-3-clause")
        run("card", out)
        assert "license: bsd-3-clause" in (out / "README.md").read_text()
        push(out, alice, license=None)
        assert "license: bsd-3-clause" in files_of(hub)["README.md"].decode()

    def test_one_that_the_hub_would_refuse_stops_the_push(
        self, hub: LoopbackHub, alice: Hub, merged: Path, tmp_path: Path
    ) -> None:
        out = shutil.copytree(merged, tmp_path / "out")
        card = (out / "README.md").read_text()
        (out / "README.md").write_text(card.replace("---\n", "---\nbase_model: [no id]\nlicense: mit\n", 1))
        with pytest.raises(PublishError, match="README.md: base_model 'no id' is not a Hub id"):
            push(out, alice)
        assert not writes(hub)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of two tasks, in both profiles."""
    folder = tmp_path_factory.mktemp("compressed")
    recipe = models.recipe(models.zoo(models.llama, folder, tasks=2), tasks=2)
    hf_tsv.compress(
        recipe, folder / "out", "rank=4", adapters=hf_tsv.AdapterOptions(profile="faithful,serving", serving_rank=8)
    )
    return folder / "out"


class TestAdapters:
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers renamed
    def test_each_has_a_card_by_which_peft_loads_it(self, compressed: Path) -> None:
        card = (compressed / "adapters" / "t0" / "README.md").read_text()
        header = ModelCard(card).data
        assert (header.library_name, header.tags) == ("peft", ["hf_tsv", "tsv-c", "lora"])
        (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        names: dict[str, Any] = {}
        snippet = snippet.replace('"base"', repr(str(compressed.parent / "base")))
        exec(snippet.replace('path = "."', f"path = {str(compressed / 'adapters' / 't0')!r}"), names)
        assert names["model"].active_adapter == "default"
        assert str(compressed.parent) not in card
        assert "hf-tsv compress recipe.lock.yaml OUT\n" in card

    def test_a_repository_each(self, hub: LoopbackHub, alice: Hub, compressed: Path) -> None:
        pushed = hf_tsv.push(compressed, "alice/llama-{task}", license="mit", hub=alice)
        assert [one.repo_id for one in pushed] == ["alice/llama-t0", "alice/llama-t1"]
        files = files_of(hub, "alice/llama-t1")
        adapter = compressed / "adapters" / "t1" / "adapter_model.safetensors"
        assert files["adapter_model.safetensors"] == adapter.read_bytes()
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
        assert "adapters-serving/t1/adapter_model.safetensors" in files
        assert list(json.loads(files["hf_tsv.json"])["adapters"]) == ["t1"]
        assert b"t1 as an adapter" in files["README.md"]
        assert not [path for path, data in files.items() if str(compressed.parent).encode() in data]

    def test_one_repository_with_folders(self, hub: LoopbackHub, alice: Hub, compressed: Path) -> None:
        hub.publish(REPO, {"adapters/gone/adapter_model.safetensors": b"x"})
        push(compressed, alice)
        files = files_of(hub)
        assert {f"{folder}/{t}/adapter_model.safetensors" for folder in ADAPTERS.values() for t in ("t0", "t1")} == {
            path for path in files if path.endswith(".safetensors")
        }
        assert b"2 tasks as adapters" in files["README.md"]
        assert b'subfolder="adapters/t0"' in files["README.md"]

    def test_the_folder_of_one(self, hub: LoopbackHub, alice: Hub, compressed: Path) -> None:
        push(compressed / "adapters-serving" / "t0", alice)
        weights = (compressed / "adapters-serving" / "t0" / "adapter_model.safetensors").read_bytes()
        assert files_of(hub)["adapter_model.safetensors"] == weights
        assert commits_of(hub) == ["t0: adapter by hf_tsv (tsv_c)"]

    def test_the_folders_are_those_that_compress_writes(self, compressed: Path) -> None:
        assert {path.name for path in compressed.iterdir() if path.is_dir()} == set(ADAPTERS.values())

    def test_a_merge_is_no_adapter_of_a_task(self, hub: LoopbackHub, alice: Hub, merged: Path) -> None:
        with pytest.raises(PublishError, match="Name it without {task}"):
            push(merged, alice, "alice/model-{task}")
