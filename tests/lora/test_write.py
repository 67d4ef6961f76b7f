"""Adapters are what PEFT makes of them: every test loads them back."""

import json
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.modules import kind_of, matrix_view
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.errors import CheckpointError, MethodError
from hf_tsv.linalg import truncated_svd
from hf_tsv.linalg.ranks import DENSE, Dense
from hf_tsv.lora.architecture import Architecture, read_architecture
from hf_tsv.lora.check.verify import verify_adapter
from hf_tsv.lora.format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SIDECAR_FILE
from hf_tsv.lora.formats import FORMATS
from hf_tsv.lora.names import Located
from hf_tsv.lora.read.sidecar import read_sidecar
from hf_tsv.lora.skeleton import quiet
from hf_tsv.lora.write.changes import Change, LowRankChange, WholeChange
from hf_tsv.lora.write.plan import AdapterPlan, AdapterRequest, BaseRef
from hf_tsv.lora.write.writer import AdapterReport, AdapterWriter
from tests.support.models import (
    ARCHITECTURES,
    INPUTS,
    SMALL,
    TOKENS,
    bare_vit,
    bert,
    bert_classifier,
    llama,
    perturbed,
    save,
    zoo,
)
from tests.support.tolerances import CHANGE, OUTPUTS

BASE = BaseRef("org/base", "0" * 40)
Ranks = dict[str, int | Dense]


def plan_adapter(architecture: Architecture, ranks: Mapping[str, int | Dense], **options: Any) -> AdapterPlan:
    return FORMATS["faithful"].plan(architecture, ranks, AdapterRequest(BASE, **options))


def plan_serving(architecture: Architecture, ranks: Mapping[str, int | Dense], **options: Any) -> AdapterPlan:
    return FORMATS["serving"].plan(architecture, ranks, AdapterRequest(BASE, **options))


def clip_vision() -> nn.Module:
    return tf.CLIPVisionModelWithProjection(
        tf.CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=24, **SMALL)
    )


def qwen3_moe() -> nn.Module:
    """One dense layer, whose modules PEFT would take for experts, and one of experts."""
    config = tf.Qwen3MoeConfig(
        vocab_size=64, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        head_dim=8, mlp_only_layers=[0], **SMALL,
    )  # fmt: skip
    return tf.Qwen3MoeForCausalLM(config)


def gpt_oss() -> nn.Module:
    """Experts stored (E, in, out)."""
    config = tf.GptOssConfig(
        vocab_size=64, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, head_dim=8,
        layer_types=["full_attention"] * 2, **SMALL,
    )  # fmt: skip
    return tf.GptOssForCausalLM(config)


def bare_llama() -> nn.Module:
    """Its last norm is called `norm`, which is how the names of all other norms end."""
    return tf.LlamaModel(tf.LlamaConfig(vocab_size=64, num_key_value_heads=2, **SMALL))


def convnext() -> nn.Module:
    """Depthwise convolutions, and parameters of layers."""
    return tf.ConvNextForImageClassification(
        tf.ConvNextConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    )


def regnet() -> nn.Module:
    """Grouped convolutions, and buffers of batch norms."""
    return tf.RegNetForImageClassification(
        tf.RegNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8)
    )


EXACT: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tied=True),
    "bert": bert_classifier,
    "vit": ARCHITECTURES["vit"],
    "clip-vision": clip_vision,
    "gpt2": ARCHITECTURES["gpt2"],
    "mixtral": ARCHITECTURES["mixtral"],
    "qwen3-moe": qwen3_moe,
}
MORE = {
    "clip": ARCHITECTURES["clip"],
    "t5": ARCHITECTURES["t5"],
    "whisper": ARCHITECTURES["whisper"],
    "gpt-oss": gpt_oss,
    "bare-llama": bare_llama,
    "bare-vit": bare_vit,
    "convnext": convnext,
    "regnet": regnet,
}


def inputs_of(name: str) -> dict[str, Tensor]:
    return {"clip-vision": INPUTS["vit"], "bare-vit": INPUTS["vit"], **INPUTS}.get(name, {"input_ids": TOKENS})


class Pair:
    """A base model and one fine-tune of it in a folder."""

    def __init__(self, folder: Path, make: Callable[[], nn.Module], **options: Any) -> None:
        with quiet():
            zoo(make, folder, 1, **options)
        self.base_folder, self.finetuned_folder = folder / "base", folder / "t0"
        self.base, self.finetuned = open_checkpoint(self.base_folder), open_checkpoint(self.finetuned_folder)
        self.headers = {name: self.base.info(name) for name in self.base.names()}
        self.architecture = read_architecture(self.headers, self.base_folder)

    def ranks(self, most: int = 10**6) -> Ranks:
        """Every matrix as factors of at most that rank, all else whole."""
        views = {name: matrix_view(info, kind_of(info)) for name, info in self.headers.items()}
        return {name: min(view.m, view.n, most) if view else DENSE for name, view in views.items()}

    def change(self, name: str, rank: int | Dense) -> Change:
        value = self.finetuned.read(name)
        if isinstance(rank, Dense):
            return WholeChange(value)
        view = matrix_view(self.headers[name], kind_of(self.headers[name]))
        assert view
        deltas = (value.float() - self.base.read(name).float()).reshape(view.count, view.m, view.n)
        return LowRankChange([truncated_svd(delta, rank, rtol=0) for delta in deltas])

    def expected(self, name: str, rank: int | Dense) -> Tensor:
        """What the fine-tune's tensor is after such a compression."""
        change, base = self.change(name, rank), self.base.read(name)
        if isinstance(change, WholeChange):
            return change.value
        deltas = [(factors.u * factors.s) @ factors.vh for factors in change.matrices]
        return base.float() + torch.stack(deltas).reshape(base.shape)

    def write(self, plan: AdapterPlan, ranks: Mapping[str, int | Dense], folder: Path) -> AdapterReport:
        with AdapterWriter(folder, plan, self.base) as writer:
            for name, rank in ranks.items():
                writer.put(name, self.change(name, rank))
            return writer.finish()

    def export(self, folder: Path, ranks: Ranks | None = None, **options: Any) -> AdapterPlan:
        ranks = ranks or self.ranks()
        plan = plan_adapter(self.architecture, ranks, **options)
        self.write(plan, ranks, folder)
        return plan

    def model(self, folder: Path) -> Any:
        with quiet():
            model_class = getattr(tf, self.architecture.class_name)
            return model_class.from_pretrained(folder, dtype="auto").eval()


def outputs(model: Any, name: str) -> Tensor:
    with torch.no_grad():
        return model(**inputs_of(name))[0].float()


def close(a: Tensor, b: Tensor, tolerance: float = OUTPUTS) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in made:
            made[name] = Pair(tmp_path_factory.mktemp(name), {**EXACT, **MORE}[name])
        return made[name]

    return pair


Pairs = Callable[[str], Pair]


class TestFaithful:
    @pytest.mark.parametrize("name", EXACT)
    def test_full_rank_gives_the_finetune_and_switched_off_the_base(
        self, name: str, pairs: Pairs, tmp_path: Path
    ) -> None:
        pair = pairs(name)
        plan = pair.export(tmp_path)
        assert plan.left_out == {}
        base = pair.model(pair.base_folder)
        wanted, before = outputs(pair.model(pair.finetuned_folder), name), outputs(base, name)
        assert (wanted - before).abs().max() > 1e-2
        with quiet():
            adapted = PeftModel.from_pretrained(base, tmp_path).eval()
        close(outputs(adapted, name), wanted)
        with adapted.disable_adapter():
            assert torch.equal(outputs(adapted, name), before)
        with quiet():
            merged = adapted.merge_and_unload()
        close(outputs(merged, name), wanted)

    @pytest.mark.parametrize("name", [*EXACT, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
    def test_any_mix_of_ranks_is_what_was_put_in(self, name: str, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs(name)
        ranks = {
            n: rank if isinstance(rank, Dense) else 1 + sum(n.encode()) % min(rank, 4)
            for n, rank in pair.ranks().items()
        }
        plan = pair.export(tmp_path, ranks)
        assert plan.held | plan.left_out.keys() == ranks.keys()
        assert len({plan.config.r, *(plan.config.rank_pattern or {}).values()}) > 1
        found = verify_adapter(tmp_path, pair.architecture, lambda n: pair.expected(n, ranks[n]), forward=True)
        assert found.largest_error < CHANGE
        assert found.logits_error is not None

    def test_transformers_loads_it_without_peft_in_sight(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("bert")
        pair.export(tmp_path)
        model = pair.model(pair.base_folder)
        before = outputs(model, "bert")
        with quiet():
            model.load_adapter(str(tmp_path))
        close(outputs(model, "bert"), outputs(pair.model(pair.finetuned_folder), "bert"))
        model.disable_adapters()
        assert torch.equal(outputs(model, "bert"), before)

    def test_bytes_depend_on_nothing_but_plan_and_changes(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("mixtral")
        ranks = pair.ranks(3)
        plan = pair.export(tmp_path / "one", ranks)
        writer = AdapterWriter(tmp_path / "two", plan, pair.base)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: writer.put(n, pair.change(n, ranks[n])), reversed(list(ranks))))
        writer.finish()
        for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()

    def test_its_size_is_known_before(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("llama-tied")
        ranks = pair.ranks(2)
        plan = plan_adapter(pair.architecture, ranks, factor_dtype="BF16")
        report = pair.write(plan, ranks, tmp_path)
        sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
        assert sizes.keys() == {ADAPTER_WEIGHTS, SIDECAR_FILE, ADAPTER_CONFIG}
        assert sum(sizes.values()) == plan.nbytes == report.nbytes

    def test_names_are_anchored_and_escaped(self, pairs: Pairs) -> None:
        ranks = pairs("llama").ranks(2) | {"model.layers.1.mlp.up_proj.weight": 5}
        config = plan_adapter(pairs("llama").architecture, ranks).config
        assert config.rank_pattern == config.alpha_pattern == {r"^model\.layers\.1\.mlp\.up_proj": 5}
        assert (config.r, config.lora_alpha) == (2, 2)
        assert list(config.modules_to_save or ()) == sorted(config.modules_to_save or ()) != []

    def test_only_what_changed_is_stored(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("bert")
        name = "bert.encoder.layer.1.output.dense.weight"
        plan = pair.export(tmp_path, {name: 3})
        assert load_file(tmp_path / ADAPTER_WEIGHTS).keys() == {
            f"base_model.model.bert.encoder.layer.1.output.dense.lora_{side}.weight" for side in "AB"
        }
        assert "modules_to_save" not in plan.config.written()
        verify_adapter(tmp_path, pair.architecture, lambda n: pair.expected(n, 3) if n == name else pair.base.read(n))

    def test_a_name_that_ends_others_stores_them_too(self, pairs: Pairs, tmp_path: Path) -> None:
        """PEFT stores every module whole whose name ends with `norm`: all of them have to be in the file."""
        pair = pairs("bare-llama")
        changed: Ranks = dict.fromkeys(["norm.weight", *(f"layers.{i}.input_layernorm.weight" for i in (0, 1))], DENSE)
        pair.export(tmp_path, changed)
        assert "base_model.model.layers.0.post_attention_layernorm.weight" in load_file(tmp_path / ADAPTER_WEIGHTS)
        verify_adapter(tmp_path, pair.architecture, lambda n: (pair.finetuned if n in changed else pair.base).read(n))

    def test_a_name_that_ends_many_others_lies_beside(self, pairs: Pairs, tmp_path: Path) -> None:
        """PEFT would store four times as much along with it."""
        pair = pairs("bare-llama")
        plan = pair.export(tmp_path, {"norm.weight": DENSE})
        assert plan.left_out.keys() == {"norm.weight"}
        assert not load_file(tmp_path / ADAPTER_WEIGHTS)
        assert torch.equal(read_sidecar(tmp_path)["norm.weight"].applied(), pair.finetuned.read("norm.weight"))
        verify_adapter(tmp_path, pair.architecture, pair.base.read)

    def test_a_linear_module_named_like_an_expert_gets_factors(self, pairs: Pairs) -> None:
        """PEFT would turn it into a target on the experts, so its weight is targeted as a parameter."""
        pair = pairs("qwen3-moe")
        config = plan_adapter(pair.architecture, pair.ranks(2)).config
        assert "model.layers.0.mlp.gate_proj.weight" in (config.target_parameters or ())

    def test_the_writer_keeps_no_change_that_is_written(self, pairs: Pairs, tmp_path: Path) -> None:
        pair, ranks = pairs("llama-tied"), pairs("llama-tied").ranks(2)
        with AdapterWriter(tmp_path, plan_adapter(pair.architecture, ranks), pair.base) as writer:
            for name, rank in ranks.items():
                change = pair.change(name, rank)
                held = weakref.ref(change)
                writer.put(name, change)
                del change
                assert held() is None

    def test_an_adapter_without_factors_loads(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("bert")
        norm = "bert.embeddings.LayerNorm.weight"
        pair.export(tmp_path, {norm: DENSE})
        verify_adapter(
            tmp_path, pair.architecture, lambda n: (pair.finetuned if n == norm else pair.base).read(n), forward=True
        )

    def test_a_name_that_ends_another_is_not_mistaken_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PEFT targets every module whose name ends like a target's: here `dense` ends eight others."""

        class BertWithDense(tf.BertModel):
            def __init__(self, config: Any) -> None:
                super().__init__(config)
                self.dense = nn.Linear(32, 32)
                self.post_init()

        monkeypatch.setattr("transformers.BertWithDense", BertWithDense, raising=False)
        pair = Pair(tmp_path, lambda: BertWithDense(bert().config))
        pair.export(tmp_path / "adapter", {"dense.weight": 3})
        verify_adapter(
            tmp_path / "adapter",
            pair.architecture,
            lambda n: pair.expected(n, 3) if n == "dense.weight" else pair.base.read(n),
        )

    @pytest.mark.parametrize("with_head", [False, True])
    def test_a_head_of_the_finetune_alone_goes_along(self, with_head: bool, tmp_path: Path) -> None:
        """Whether the base has none, or one for other labels."""
        with quiet():
            torch.manual_seed(0)
            base, task = bert_classifier(2), bert_classifier(3)
            task.bert.load_state_dict(base.bert.state_dict())
            save(base if with_head else base.bert, tmp_path / "base")
            save(perturbed(task, 1), tmp_path / "task")
        checkpoint = open_checkpoint(tmp_path / "base")
        prefix = "" if with_head else "bert."
        values = {n.removeprefix(prefix): t for n, t in load_file(tmp_path / "task" / "model.safetensors").items()}
        headers = {n: TensorInfo(n, tuple(t.shape), "F32") for n, t in values.items()}
        architecture = read_architecture(headers, tmp_path / "base", config_folder=tmp_path / "task")
        plan = plan_adapter(architecture, dict.fromkeys(values, DENSE))
        assert plan.config.task_type == "SEQ_CLS"
        with AdapterWriter(tmp_path / "adapter", plan, checkpoint) as writer:
            for name, value in values.items():
                writer.put(name, WholeChange(value))
            report = writer.finish()
        assert (report.left_out_share, report.left_out) == (0.0, {})
        verify_adapter(tmp_path / "adapter", architecture, values.__getitem__, forward=True)

    def test_half_precision_is_verified_as_closely_as_it_is_stored(self, tmp_path: Path) -> None:
        pair = Pair(tmp_path, llama, dtype=torch.bfloat16)
        ranks = pair.ranks(4)
        pair.export(tmp_path / "adapter", ranks)
        assert {t.dtype for t in load_file(tmp_path / "adapter" / ADAPTER_WEIGHTS).values()} == {torch.bfloat16}
        for forward in (False, True):
            verify_adapter(
                tmp_path / "adapter", pair.architecture, lambda n: pair.expected(n, ranks[n]), forward=forward
            )


class TestMisfits:
    def test_biases_and_factors_of_embeddings_exclude_each_other(self, pairs: Pairs) -> None:
        """PEFT knows no bias beside an embedding's factors: either the embeddings are stored whole, or biases apart."""
        pair, embedding = pairs("bert"), "base_model.model.bert.embeddings.word_embeddings"
        full = {name: rank for name, rank in pair.ranks().items() if "embeddings" in name}
        whole = plan_adapter(pair.architecture, pair.ranks(4) | full)
        beside = plan_adapter(pair.architecture, pair.ranks(4))
        keys = {info.name for slot in whole.slots for info in slot.infos}
        assert whole.config.lora_bias
        assert f"{embedding}.weight" in keys
        assert whole.left_out == {}
        keys = {info.name for slot in beside.slots for info in slot.infos}
        assert "lora_bias" not in beside.config.written()
        assert f"{embedding}.lora_embedding_A" in keys
        assert all(name.endswith(".bias") for name in beside.left_out)
        assert {slot.name for slot in beside.rest} == beside.left_out.keys()
        assert beside.nbytes < whole.nbytes

    def test_a_tied_embedding_is_stored_twice_or_beside(self, pairs: Pairs, tmp_path: Path) -> None:
        pair, name = pairs("llama-tied"), "model.embed_tokens.weight"
        whole = plan_adapter(pair.architecture, pair.ranks())
        assert {"model.embed_tokens", "lm_head"} <= set(whole.config.modules_to_save or ())
        ranks = pair.ranks(2)
        plan = pair.export(tmp_path, ranks)
        assert plan.left_out.keys() == {name}
        rest = read_sidecar(tmp_path)
        assert rest.keys() == {name}
        close(rest[name].applied(pair.base.read(name)), pair.expected(name, 2))

    def test_a_parameter_of_the_model_itself_lies_beside(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("clip")
        plan = pair.export(tmp_path)
        assert plan.left_out.keys() == {"logit_scale"}
        assert torch.equal(read_sidecar(tmp_path)["logit_scale"].applied(), pair.finetuned.read("logit_scale"))

    def test_stacked_factors_lie_beside_as_a_stack(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("gpt-oss")
        name = next(n for n in pair.headers if n.endswith("experts.down_proj"))
        changed: Ranks = {name: 2}
        nowhere = replace(pair.architecture, located=Located({}, {name: "lost"}))
        plan = plan_adapter(nowhere, changed)
        pair.write(plan, changed, tmp_path)
        close(read_sidecar(tmp_path)[name].applied(pair.base.read(name)), pair.expected(name, 2))

    def test_no_sidecar_is_no_tensors(self, tmp_path: Path) -> None:
        assert read_sidecar(tmp_path) == {}

    def test_a_module_whose_owner_reads_it_gets_no_factors(self, pairs: Pairs) -> None:
        """Whisper's encoder asks its convolutions for their stride, which PEFT's wrapper hasn't."""
        architecture, name = pairs("whisper").architecture, "model.encoder.conv1.weight"
        assert not architecture.place(name).low_rank
        assert "reads" in architecture.no_factors(name)

    def test_experts_share_a_rank_and_its_price(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("mixtral")
        name = "model.layers.0.block_sparse_moe.experts.{}.w{}.weight"
        places = {(e, w): pair.architecture.place(name.format(e, w)) for e in range(4) for w in (1, 2, 3)}
        assert len({place.group for place in places.values()}) == 3
        assert places[0, 1].group == places[3, 1].group
        one, two = (
            plan_adapter(pair.architecture, {name.format(e, 1): k for e in range(4)}).files[0].nbytes for k in (1, 2)
        )
        assert (two - one) == 4 * sum(places[e, 1].rank_numbers for e in range(4))

    def test_factors_larger_than_the_experts_are_not_stored(self, pairs: Pairs, tmp_path: Path) -> None:
        """Factors of gate and up span the rows of both: each alone would be smaller, together they aren't."""
        pair = pairs("mixtral")
        experts = {name: 16 for name in pair.headers if ".experts." in name}
        assert all(16 * sum(pair.headers[name].shape) < math.prod(pair.headers[name].shape) for name in experts)
        plan = pair.export(tmp_path, dict(experts))
        assert set(plan.config.modules_to_save or ()) == {f"model.layers.{i}.mlp.experts" for i in (0, 1)}
        assert plan.nbytes < 1.1 * sum(pair.headers[name].nbytes for name in experts)
        small = plan_adapter(pair.architecture, dict.fromkeys(experts, 4))
        assert small.config.modules_to_save is None or small.config.modules_to_save == []
        assert small.nbytes < plan.nbytes / 2
        verify_adapter(
            tmp_path, pair.architecture, lambda n: pair.expected(n, 16) if n in experts else pair.base.read(n)
        )


class TestServing:
    @pytest.fixture
    def served(self, pairs: Pairs, tmp_path: Path) -> Iterator[tuple[Pair, AdapterPlan, AdapterReport, Path]]:
        pair = pairs("llama")
        changed = {n: 12 for n in pair.headers if "layers.1" not in n or "mlp" not in n}
        plan = plan_serving(pair.architecture, changed, rank=8, factor_dtype="BF16")
        with AdapterWriter(tmp_path, plan, pair.base) as writer:
            for name in changed:
                writer.put(name, pair.change(name, pair.ranks(12)[name]))
            yield pair, plan, writer.finish(), tmp_path

    def test_every_layer_of_every_type_has_the_one_rank(self, served: Any) -> None:
        _, plan, _, folder = served
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        assert config == {
            "peft_type": "LORA",
            "base_model_name_or_path": BASE.name,
            "revision": BASE.revision,
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": 8,
            "lora_alpha": 8,
            "rank_pattern": {},
            "alpha_pattern": {},
            "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        }
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        assert len(tensors) == 2 * 2 * 7
        for key, tensor in tensors.items():
            assert tensor.shape[0 if ".lora_A." in key else 1] == 8
            assert tensor.dtype == torch.bfloat16
            unchanged = "layers.1" in key and "mlp" in key
            assert bool(tensor.any()) != unchanged
        assert plan.left_out.keys() == {n for n in plan.left_out if "norm" in n or "embed" in n or "lm_head" in n}

    def test_it_is_the_base_plus_the_leading_triplets(self, served: Any) -> None:
        pair, plan, _, folder = served
        verify_adapter(
            folder,
            pair.architecture,
            lambda n: pair.expected(n, 8) if n in plan.held else pair.base.read(n),
            forward=True,
        )

    def test_what_is_left_out_is_measured(self, served: Any) -> None:
        pair, plan, report, _ = served
        changed = [*plan.held, *plan.left_out]
        deltas = {n: pair.finetuned.read(n) - pair.base.read(n) for n in changed}
        kept = sum(float((pair.expected(n, 8) - pair.base.read(n)).square().sum()) for n in plan.held)
        total = sum(float(delta.square().sum()) for delta in deltas.values())
        assert report.left_out_share == pytest.approx(1 - kept / total, rel=1e-4)
        assert 0.1 < report.left_out_share < 0.9

    def test_a_whole_change_is_factored(self, pairs: Pairs, tmp_path: Path) -> None:
        pair, name = pairs("llama"), "model.layers.0.mlp.up_proj.weight"
        plan = plan_serving(pair.architecture, {name: DENSE}, rank=16)
        assert plan.config.target_modules == ["gate_proj", "up_proj"]  # servers fuse the two
        with AdapterWriter(tmp_path, plan, pair.base) as writer:
            writer.put(name, WholeChange(pair.finetuned.read(name)))
            writer.finish()
        verify_adapter(tmp_path, pair.architecture, lambda n: pair.expected(n, 16) if n == name else pair.base.read(n))

    def test_nothing_to_serve_is_told(self, pairs: Pairs) -> None:
        with pytest.raises(CheckpointError, match="expected a change of a linear module in the layers"):
            plan_serving(pairs("llama").architecture, {"model.norm.weight": DENSE}, rank=8)
        with pytest.raises(MethodError, match="expected a rank of 8, 16, 32, 64, 128 but got 7"):
            plan_serving(pairs("llama").architecture, dict.fromkeys(pairs("llama").headers, 4), rank=7)

    @pytest.mark.parametrize(("chosen", "rank"), [(0, 8), (8, 8), (9, 16), (33, 64), (500, 128), (DENSE, 128)])
    def test_the_rank_holds_what_was_chosen(self, pairs: Pairs, chosen: int | Dense, rank: int) -> None:
        changed = {"model.layers.0.mlp.up_proj.weight": chosen, "model.layers.1.self_attn.q_proj.weight": 3}
        plan = plan_serving(pairs("llama").architecture, changed)
        assert plan.config.r == rank
        assert set(plan.ranks.values()) == {rank}

    def test_a_budget_is_used_and_kept(self, pairs: Pairs) -> None:
        architecture, changed = pairs("llama").architecture, dict.fromkeys(pairs("llama").headers, 4)
        sizes = {rank: plan_serving(architecture, changed, rank=rank).nbytes for rank in (8, 16, 32)}
        for most, rank in [(sizes[16], 16), (sizes[32] - 1, 16), (sizes[32], 32)]:
            assert plan_serving(architecture, changed, most_bytes=most).config.r == rank
        with pytest.raises(
            MethodError, match=f"takes {sizes[8]} bytes at its smallest rank, 8, but the budget is {sizes[8] - 1}"
        ):
            plan_serving(architecture, changed, most_bytes=sizes[8] - 1)


class TestVerification:
    KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"

    def spoiled(self, pair: Pair, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
        pair.export(folder)
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        change(tensors)
        save_file(tensors, folder / ADAPTER_WEIGHTS)
        return folder

    @pytest.mark.parametrize("forward", [False, True])
    def test_a_wrong_factor_is_told_with_its_module(self, forward: bool, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("llama")
        folder = self.spoiled(pair, tmp_path, lambda tensors: tensors[self.KEY].neg_())
        with pytest.raises(CheckpointError) as caught:
            verify_adapter(folder, pair.architecture, pair.finetuned.read, forward=forward)
        told = [p for p in caught.value.problems if "outputs" not in p]
        assert len(told) == 2
        assert all("model.layers.1.self_attn.q_proj.weight: " in problem for problem in told)
        assert len(caught.value.problems) == (4 if forward else 2)

    def test_a_slightly_wrong_factor_is_told(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("llama")
        folder = self.spoiled(pair, tmp_path, lambda tensors: tensors[self.KEY].mul_(1 + 1e-4))
        with pytest.raises(CheckpointError, match="q_proj"):
            verify_adapter(folder, pair.architecture, pair.finetuned.read)

    def test_a_tensor_that_changes_the_base_is_told(self, pairs: Pairs, tmp_path: Path) -> None:
        """PEFT loads a key that is no adapter's onto the base, where switching the adapter off leaves it."""
        pair, key = pairs("llama"), "model.layers.0.self_attn.q_proj.weight"
        extra = {f"base_model.model.{key.replace('.weight', '.base_layer.weight')}": torch.zeros(32, 32)}
        folder = self.spoiled(pair, tmp_path, lambda tensors: tensors.update(extra))
        with pytest.raises(CheckpointError, match=r"q_proj.weight: with the adapter switched off it differs"):
            verify_adapter(folder, pair.architecture, pair.finetuned.read)

    def test_a_file_that_peft_refuses_is_told(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("llama")
        folder = self.spoiled(pair, tmp_path, lambda tensors: tensors.update({self.KEY: torch.zeros(3, 32)}))
        with pytest.raises(CheckpointError, match="PEFT can't load it"):
            verify_adapter(folder, pair.architecture, pair.finetuned.read)


class TestTold:
    def test_a_planned_tensor_must_be_put(self, pairs: Pairs, tmp_path: Path) -> None:
        pair = pairs("llama")
        plan = plan_adapter(pair.architecture, pair.ranks(2))
        with pytest.raises(ValueError, match="planned and not put"):
            AdapterWriter(tmp_path, plan, pair.base).finish()

    @pytest.mark.parametrize("name", ["NoSuchModel", "pipeline"])
    def test_a_class_that_transformers_has_not(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": [name]}))
        with pytest.raises(CheckpointError, match=f"names '{name}', which is not a model class"):
            read_architecture({}, tmp_path)

    def test_no_configuration(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="transformers can't read this configuration"):
            read_architecture({}, tmp_path)

    def test_a_tensor_that_the_class_has_not_lies_beside(self, pairs: Pairs) -> None:
        pair = pairs("llama")
        headers = pair.headers | {"extra.weight": TensorInfo("extra.weight", (3, 3), "F32")}
        architecture: Architecture = read_architecture(headers, pair.base_folder)
        plan = plan_adapter(architecture, {"extra.weight": DENSE})
        assert plan.left_out == {"extra.weight": "LlamaForCausalLM has no such tensor"}
