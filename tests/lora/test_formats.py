"""The registry of formats, and what a whole compression makes of the default one."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import hf_tsv
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.errors import RecipeError
from hf_tsv.linalg.ranks import Dense
from hf_tsv.lora import formats
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.format import LEFT, RIGHT, SIDECAR_FILE
from hf_tsv.lora.formats import ADAPTERS, FORMATS, AdapterFormat
from hf_tsv.lora.skeleton import quiet
from hf_tsv.lora.write.plan import AdapterPlan, AdapterRequest
from hf_tsv.record import AdapterReport
from tests.support import models
from tests.support.models import ARCHITECTURES, INPUTS, TOKENS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what transformers renamed


def compressed(folder: Path, keep: str, out: Path, **adapters: Any) -> dict[str, AdapterReport]:
    """What the record says of the one task's adapters, by format."""
    options = hf_tsv.AdapterOptions(**adapters)
    record = hf_tsv.compress(models.recipe(folder, tasks=1), out, keep, adapters=options)
    return record.adapters["t0"]


def fine_tuned_a_little(make: Callable[[], nn.Module], folder: Path, rank: int = 2) -> Path:
    """A base and a fine-tune that changed every matrix by that rank, and every vector."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    model = make()
    models.save(model, folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            rows = parameter.shape[0] if parameter.ndim > 1 else 0
            if rows:
                left = torch.randn(rows, rank, generator=generator)
                right = torch.randn(rank, parameter[0].numel(), generator=generator)
                parameter.add_((left @ right).reshape(parameter.shape) * 0.02)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    models.save(model, folder / "t0")
    return folder


def logits(model: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**INPUTS.get(name, {"input_ids": TOKENS}))[0]
    return output


def loaded(folder: Path) -> Any:
    [name] = tf.AutoConfig.from_pretrained(folder).architectures
    return getattr(tf, name).from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for its tensors to outweigh the files' headers."""
    with quiet():
        return models.zoo(models.bert_wide, tmp_path_factory.mktemp("encoder"), tasks=1)


class TestEveryRuleFactorsEveryMatrix:
    """Whatever chose the ranks: biases that PEFT can't hold beside factors don't make their matrices go whole."""

    @pytest.mark.slow
    def test_a_smaller_rank_is_a_smaller_adapter(self, encoder: Path, tmp_path: Path) -> None:
        full = sum(file.stat().st_size for file in (encoder / "base").glob("*.safetensors"))
        sizes = []
        for rank in (8, 24):
            facts = compressed(encoder, f"rank={rank}", tmp_path / str(rank))["faithful"]
            sizes.append(facts.bytes)
            matrices = {name: rank for name, rank in facts.ranks.items() if name.endswith("dense.weight")}
            assert matrices
            assert set(matrices.values()) == {rank}
        assert sizes[0] < 0.05 * full
        assert 2 * sizes[0] < sizes[1] < 0.15 * full

    @pytest.mark.slow
    @pytest.mark.parametrize("keep", ["energy=0.3", "fraction=0.05", "1MB"])
    def test_other_rules_too(self, keep: str, encoder: Path, tmp_path: Path) -> None:
        facts = compressed(encoder, keep, tmp_path / "out")["faithful"]
        matrices = [rank for name, rank in facts.ranks.items() if name.endswith("dense.weight")]
        assert matrices
        assert "dense" not in matrices

    @pytest.mark.slow
    def test_the_card_says_what_peft_does_not_see(self, encoder: Path, tmp_path: Path) -> None:
        facts = compressed(encoder, "rank=8", tmp_path / "out")["faithful"]
        # Their factors are smaller than all the biases, and PEFT doesn't take both.
        beside = [f"embeddings.{kind}_embeddings.weight" for kind in ("position", "word")]
        assert list(facts.in_sidecar) == beside
        assert facts.left_out.keys() == set(beside)
        stored = load_file(tmp_path / "out" / "adapters" / "t0" / SIDECAR_FILE)
        assert stored.keys() == {name + side for name in beside for side in (LEFT, RIGHT)}
        for card in ("README.md", "adapters/t0/README.md"):
            text = (tmp_path / "out" / card).read_text()
            assert f"2 changed tensors lie beside the adapter, in `{SIDECAR_FILE}`" in text


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama", "llama-tied", "mixtral"])
class TestFullRank:
    def test_peft_gives_the_fine_tune(self, name: str, tmp_path: Path) -> None:
        """Where no matrix is worth factors everything is stored whole, where PEFT sees it."""
        with quiet():
            folder = models.zoo(ARCHITECTURES[name], tmp_path, tasks=1)
            facts = compressed(folder, "fraction=1.0", tmp_path / "out", verify="forward")["faithful"]
            assert facts.in_sidecar == ()
            base = loaded(folder / "base")
            before = logits(base, name)
            adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapters" / "t0").eval()
            want = logits(loaded(folder / "t0"), name)
        assert (want - before).abs().max() > 1e-2
        torch.testing.assert_close(logits(adapted, name), want, rtol=0, atol=1e-4)

    @pytest.mark.slow
    def test_a_recipe_says_it_as_well_as_the_flag(self, name: str, tmp_path: Path) -> None:
        """The same bytes by `compress` and `merge`, so what PEFT makes of the flag's adapter holds for all three."""
        with quiet():
            folder = models.zoo(ARCHITECTURES[name], tmp_path, tasks=1)
            compressed(folder, "fraction=1.0", tmp_path / "by_flag")
            recipe = models.recipe(folder, "tsv_c", tasks=1, more="parameters: {fraction: 1.0}\n")
            hf_tsv.compress(recipe, tmp_path / "by_recipe")
            hf_tsv.merge(recipe, tmp_path / "by_merge")
        files = sorted(path.relative_to(tmp_path / "by_flag") for path in (tmp_path / "by_flag").rglob("*.safetensors"))
        assert files
        for file in files:
            wanted = (tmp_path / "by_flag" / file).read_bytes()
            assert (tmp_path / "by_recipe" / file).read_bytes() == wanted
            assert (tmp_path / "by_merge" / file).read_bytes() == wanted

    def test_restoring_gives_the_fine_tune_with_what_lies_beside(self, name: str, tmp_path: Path) -> None:
        """Changes of rank 2 go into factors; biases and tied embeddings don't all fit beside them."""
        with quiet():
            folder = fine_tuned_a_little(ARCHITECTURES[name], tmp_path)
            facts = compressed(folder, "fraction=1.0", tmp_path / "out", verify="forward")["faithful"]
            hf_tsv.restore(tmp_path / "out", "t0", tmp_path / "restored")
            model = hf_tsv.load_task(tmp_path / "out", "t0")
        assert bool(facts.in_sidecar) == (name not in ("llama", "mixtral"))
        assert 2 in facts.ranks.values()
        restored, want = open_checkpoint(tmp_path / "restored"), open_checkpoint(folder / "t0")
        assert set(restored.names()) == set(want.names())
        for tensor in want.names():
            torch.testing.assert_close(restored.read(tensor), want.read(tensor), rtol=0, atol=1e-6)
        torch.testing.assert_close(logits(model, name), logits(loaded(folder / "t0"), name), rtol=0, atol=1e-5)


PLANNED: list[AdapterRequest] = []


def plan(architecture: Architecture, ranks: Mapping[str, int | Dense], request: AdapterRequest) -> AdapterPlan:
    """A format of these tests: the faithful one of the attention alone."""
    PLANNED.append(request)
    attention = {name: rank for name, rank in ranks.items() if "attn" in name}
    planned = FORMATS["faithful"].plan(architecture, attention, request)
    left_out = dict.fromkeys(ranks.keys() - attention.keys(), "not of the attention")
    return AdapterPlan("attention", planned.slots, (), left_out, planned.config)


class TestRegistry:
    def test_naming_the_formats_imports_no_torch(self) -> None:
        script = (
            "import sys, hf_tsv.lora.formats; sys.exit(bool({'torch', 'peft', 'transformers'} & sys.modules.keys()))"
        )
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

    def test_folders_are_their_own(self) -> None:
        """Inputs leave out an earlier output's adapters by the beginning of the folder's name."""
        assert len(set(ADAPTERS.values())) == len(FORMATS)
        assert all(folder.startswith("adapters") for folder in ADAPTERS.values())
        assert {name: one.folder for name, one in FORMATS.items()} == ADAPTERS

    def test_another_format_is_one_entry_and_one_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        own = AdapterFormat("attention", "adapters-attention", __name__, "the attention alone")
        monkeypatch.setitem(formats.FORMATS, own.name, own)
        monkeypatch.setitem(formats.ADAPTERS, own.name, own.folder)
        folder = models.zoo(models.llama, tmp_path, tasks=1)
        more = "adapters: {profiles: [faithful, attention]}\n"
        recipe = hf_tsv.load_recipe(models.recipe(folder, tasks=1, more=more))
        assert recipe.adapters.profiles == ("faithful", "attention")
        facts = compressed(folder, "rank=2", tmp_path / "out", profile="faithful,attention")
        assert [request.base.name for request in PLANNED] == [str(folder / "base")]
        assert all("attn" in name for name in facts["attention"].ranks)
        assert facts["attention"].verified.largest_error < 1e-5
        assert load_file(tmp_path / "out" / "adapters-attention" / "t0" / "adapter_model.safetensors")
        assert "The attention adapters hold the attention alone." in (tmp_path / "out" / "README.md").read_text()

    @pytest.mark.parametrize(
        ("adapters", "problem"),
        [
            ("{profiles: [servin]}", r"recipe.yaml:7: .*expected faithful or serving but got 'servin'"),
            ("{profiles: []}", r"recipe.yaml:7: .*at least 1 entry"),
            ("{rank: 7}", r"recipe.yaml:7: .*expected 8, 16, 32, 64 or 128 but got 7"),
        ],
    )
    def test_a_recipe_names_only_formats_and_ranks_there_are(self, adapters: str, problem: str, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=problem):
            hf_tsv.load_recipe(models.recipe(tmp_path, more=f"adapters: {adapters}\n"))

    def test_a_rank_that_the_format_does_not_take(self, tmp_path: Path) -> None:
        folder = models.zoo(models.llama, tmp_path, tasks=1)
        with pytest.raises(RecipeError, match="expected 8, 16, 32, 64 or 128 but got 7"):
            compressed(folder, "rank=4", tmp_path / "out", profile="serving", serving_rank=7)
