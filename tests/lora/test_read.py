"""LoRA adapters as inputs: whatever PEFT saves merges as what PEFT makes of it, from the factors alone."""

import json
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hf_tsv
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.memory import MemoryCheckpoint
from hf_tsv.checkpoints.protocol import LowRank
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.errors import CheckpointError, MethodError
from hf_tsv.hub import Hub, Pinned, SourceFacts, Weights
from hf_tsv.lora.read.adapter import open_adapter
from hf_tsv.lora.read.changes import Place
from hf_tsv.merging import plan as planner
from hf_tsv.methods import METHODS
from tests.support import models
from tests.support.adapters import adapt, randomize, recipe, save, zoo
from tests.support.oracles import core_space, core_ties
from tests.support.tensors import error
from tests.support.tolerances import CHANGE, WEIGHTS, rounding

ATTENTION = {"target_modules": ["q_proj", "v_proj"]}


class Oddities(nn.Module):
    """Kinds of modules that the small transformers don't have."""

    def __init__(self) -> None:
        super().__init__()
        self.cube = nn.Conv3d(3, 16, (1, 2, 3), bias=False)
        self.line = nn.Conv1d(12, 16, 3)
        self.point = nn.Conv2d(12, 16, 1)
        self.attention = nn.MultiheadAttention(16, 2)
        self.table = nn.Embedding(20, 16)


def gpt_oss() -> nn.Module:
    """Experts in one tensor, stored (in, out), and square."""
    return tf.GptOssForCausalLM(
        tf.GptOssConfig(
            vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
        )
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "linear": (models.llama, ATTENTION),
    "patterns": (
        models.llama,
        {
            "target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, r"^model\.layers\.1\.mlp\.(gate|down)_proj": 6},
            "alpha_pattern": {".*v_proj": 3, "1.self_attn.v_proj": 100},
        },
    ),
    "rslora": (models.llama, {**ATTENTION, "use_rslora": True, "rank_pattern": {"v_proj": 7}}),
    "conv1d of transformers": (models.gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "embedding and head": (models.llama, {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "embedding alone": (models.bert, {"target_modules": ["word_embeddings", "dense"]}),
    "conv2d": (models.clip, {"target_modules": ["patch_embedding", "visual_projection", "k_proj"]}),
    "conv1d": (models.whisper, {"target_modules": ["conv1", "conv2", "fc1"]}),
    "oddities": (Oddities, {"target_modules": ["cube", "line", "point", "attention", "table"]}),
    "biases": (models.bert, {"target_modules": ["query", "value", "dense"], "lora_bias": True}),
    "all biases trained": (models.bert, {"target_modules": ["query"], "bias": "all"}),
    "biases of its own": (models.bert, {"target_modules": ["query", "key"], "bias": "lora_only"}),
    "modules to save": (models.bert, {"target_modules": ["query"], "modules_to_save": ["LayerNorm", "pooler"]}),
    "tokens": (models.bert, {"target_modules": ["query"], "trainable_token_indices": {"word_embeddings": [3, 1, 8]}}),
    "experts": (
        models.mixtral,
        {**ATTENTION, "target_parameters": ["experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]},
    ),
    "down of the experts": (
        models.mixtral,
        {"target_modules": [], "target_parameters": ["experts.down_proj"], "rank_pattern": {"experts.down_proj": 2}},
    ),
    # So PEFT writes what it makes of `target_modules: [q_proj, down_proj]` where the experts are stacked.
    "down of the experts by its last name": (
        models.mixtral,
        {"target_modules": ["q_proj"], "target_parameters": ["down_proj"]},
    ),
    "experts in one tensor": (
        gpt_oss,
        {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "square experts alone": (gpt_oss, {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    "a square parameter": (models.gpt2, {"target_modules": [], "target_parameters": ["attn.c_proj.weight"]}),
    "names of transformers 5": (models.vit, {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["classifier"]}),
}


def merged(folder: Path, tasks: list[str], out: str, more: str = "", method: str = "tsv_m") -> dict[str, Tensor]:
    """Every tensor of the merge."""
    hf_tsv.merge(recipe(folder, tasks, more, method), folder / out)
    checkpoint = open_checkpoint(folder / out)
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def assert_same_change(
    folder: Path, got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = CHANGE
) -> None:
    base = open_checkpoint(folder / "base")
    assert got.keys() == want.keys()
    changed = [name for name in want if not torch.equal(want[name], base.read(name))]
    assert changed
    for name in want:
        if name in changed:
            origin = base.read(name).double()
            assert error(got[name].double() - origin, want[name].double() - origin) < tolerance, name
        else:
            assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("case", CASES)
def test_merges_as_what_peft_makes_of_it(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    folder = zoo(tmp_path, make, **config)
    got = merged(folder, ["DIR/base+DIR/a1", "DIR/a2"], "got")
    assert_same_change(folder, got, merged(folder, ["DIR/t1", "DIR/t2"], "want"))


QUICK_CASES = ["linear", "conv2d", "experts"]
FURTHER_CASES = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in QUICK_CASES]


@pytest.mark.parametrize("case", [*QUICK_CASES, *FURTHER_CASES])
def test_pieces_do_not_show(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors are merged some rows at a time, where each entry is merged by itself."""
    make, config = CASES[case]
    folder = zoo(tmp_path, make, **config)
    whole = merged(folder, ["DIR/a1", "DIR/a2"], "whole", method="task_arithmetic")
    monkeypatch.setattr(planner, "PIECE", 50)
    assert_same_change(folder, merged(folder, ["DIR/a1", "DIR/a2"], "in_pieces", method="task_arithmetic"), whole)


# Core Space is defined by an adapter's B and A, which what PEFT merges it to no longer shows.
@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("base", "tsv_c", "core_space")])
def test_every_method_takes_adapters(method: str, tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"])
    most = METHODS[method].max_tasks
    got = merged(folder, ["DIR/a1", "DIR/base+DIR/a2"][:most], "got", method=method)
    assert_same_change(folder, got, merged(folder, ["DIR/t1", "DIR/t2"][:most], "want", method=method), 1e-3)


def test_core_space_goes_by_the_factors_that_are_stored(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, target_modules=["q_proj"])
    got = merged(folder, ["DIR/a1", "DIR/base+DIR/a2"], "got", method="core_space")
    name = "model.layers.1.self_attn.q_proj.weight"
    adapters = [load_file(folder / f"a{seed}" / "adapter_model.safetensors") for seed in (1, 2)]
    keys = [f"base_model.model.{name.replace('weight', f'lora_{side}.weight')}" for side in "BA"]
    products = [(adapter[keys[0]], 6 / 4 * adapter[keys[1]]) for adapter in adapters]  # alpha / r
    want = core_space(products, lambda cores: core_ties(cores, 0.2))
    change = got[name].double() - open_checkpoint(folder / "base").read(name).double()
    assert error(change, want) < CHANGE


def test_adapters_merge_with_full_checkpoints(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, target_modules=["q_proj", "up_proj"])
    full = type(models.llama()).from_pretrained(folder / "base")
    save(models.perturbed(full, 7, 0.3), folder / "full")
    got = merged(folder, ["DIR/base+DIR/a1", "DIR/full", "DIR/a2"], "got")
    assert_same_change(folder, got, merged(folder, ["DIR/t1", "DIR/full", "DIR/t2"], "want"))


def test_an_adapter_padded_with_zeros_is_the_same_adapter(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, target_modules=["q_proj", "down_proj"], r=8, lora_alpha=8)
    want = merged(folder, ["DIR/a1", "DIR/a2"], "want")
    for seed in (1, 2):
        change_config(folder / f"a{seed}", r=32, lora_alpha=32)
        change_tensors(folder / f"a{seed}", padded)
    assert_same_change(folder, merged(folder, ["DIR/a1", "DIR/a2"], "got"), want, 1e-6)


def padded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rank 8 as rank 32."""
    pads = {"A.weight": (0, 0, 0, 24), "B.weight": (0, 24)}
    return {key: nn.functional.pad(value, pads[key[-8:]]) for key, value in tensors.items()}


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_no_delta_is_formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zoo(tmp_path, models.llama, target_modules=["q_proj", "embed_tokens"], **{})
    # PEFT saves an embedding beside its factors; as long as it is the base's, the factors are all there is.
    assert "base_model.model.model.embed_tokens.base_layer.weight" in load_file(folder / "a1/adapter_model.safetensors")

    def product(self: object, dtype: object) -> None:
        raise AssertionError("multiplied out")

    monkeypatch.setattr(LowRank, "product", product)
    merged(folder, ["DIR/a1", "DIR/a2"], "out")


def test_a_plan_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zoo(tmp_path, models.mixtral, **CASES["experts"][1])

    def read(self: object, *args: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(SafetensorsCheckpoint, "read", read)
    planned = hf_tsv.plan(recipe(folder, ["DIR/a1", "DIR/a2"]))
    size = sum((folder / f"a{t}" / "adapter_model.safetensors").stat().st_size for t in (1, 2))
    base = sum(step.info.nbytes for step in planned.steps)
    assert base < planned.bytes_in <= base + 2 * size


def test_a_plan_says_what_no_adapter_changes(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, **ATTENTION)
    why = {step.name: step.why for step in hf_tsv.plan(recipe(folder, ["DIR/a1", "DIR/a2"])).steps}
    assert {name.split(".")[-2] for name in why if not why[name]} == {"q_proj", "v_proj"}
    assert set(why.values()) == {"", "no adapter changes it"}


def test_the_change_is_not_rounded_to_the_bases_dtype(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, **ATTENTION)
    state = load_file(folder / "base/model.safetensors")
    save_file({n: t.bfloat16() for n, t in state.items()}, folder / "base/model.safetensors", metadata={"format": "pt"})
    got = merged(folder, ["DIR/a1"], "out", "dtype: float64\nout_dtype: float64\n", "task_arithmetic")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (
        load_file(folder / "a1/adapter_model.safetensors")[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB"
    )
    want = 1.5 * b.double() @ a.double()
    tolerance = rounding(torch.float64, terms=4, condition=100)  # as CHANGE, but stored in float64
    assert error(got[f"{name}.weight"] - state[f"{name}.weight"].bfloat16().double(), want) < tolerance


def test_read_gives_the_fine_tuned_weights(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.bert, **CASES["biases"][1])
    checkpoint = open_adapter(folder / "a1").on(open_checkpoint(folder / "base"))
    want = open_checkpoint(folder / "t1")
    assert set(checkpoint.names()) == set(want.names())
    for name in want.names():
        assert checkpoint.info(name) == want.info(name)
        torch.testing.assert_close(checkpoint.read(name), want.read(name), rtol=WEIGHTS, atol=WEIGHTS)
    assert (
        sum(map(checkpoint.is_changed, checkpoint.names()))
        == len(load_file(folder / "a1/adapter_model.safetensors")) // 3 * 2
    )


def test_a_head_and_a_prefix_that_the_base_lacks(tmp_path: Path) -> None:
    folder = tmp_path
    torch.manual_seed(0)
    save(models.bert(), folder / "base")
    for seed in (1, 2):
        head_on_top(folder, seed)
    record = hf_tsv.merge(recipe(folder, ["DIR/a1", "DIR/a2"]), folder / "got")
    parts = load_file(folder / "got" / record.task_parts["n1"].file)
    saved = load_file(folder / "a2/adapter_model.safetensors")
    assert parts.keys() == {"classifier.weight", "classifier.bias"}
    assert torch.equal(parts["classifier.weight"], saved["base_model.model.classifier.weight"])
    got = open_checkpoint(folder / "got")
    want = merged(folder, ["DIR/t1", "DIR/t2"], "want")
    assert_same_change(folder, {name: got.read(name) for name in want}, want)


def head_on_top(folder: Path, seed: int) -> None:
    """An adapter of a class with a head, on a base without one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tf.BertForSequenceClassification.from_pretrained(folder / "base", num_labels=3)
        config = peft.LoraConfig(
            r=4, task_type="SEQ_CLS", target_modules=["query", "dense"], exclude_modules=".*pooler.*"
        )
        adapted = peft.get_peft_model(model, config)
        randomize(adapted, seed)
        adapted.save_pretrained(folder / f"a{seed}")
        save(adapted.merge_and_unload(), folder / f"t{seed}")


def test_an_embedding_that_was_trained_and_adapted(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, target_modules=["embed_tokens", "v_proj"])
    key, name = "base_model.model.model.embed_tokens.base_layer.weight", "model.embed_tokens.weight"
    for seed in (1, 2):
        change_tensors(folder / f"a{seed}", lambda tensors: tensors | {key: tensors[key] + 0.1})
        path = folder / f"t{seed}/model.safetensors"
        state = load_file(path)
        save_file(state | {name: state[name] + 0.1}, path, metadata={"format": "pt"})
    got = merged(folder, ["DIR/a1", "DIR/a2"], "got")
    assert_same_change(folder, got, merged(folder, ["DIR/t1", "DIR/t2"], "want"))


def test_the_copy_of_a_tied_embeddings_factors_is_not_added_again(tmp_path: Path) -> None:
    """PEFT itself merges it twice: what counts is the model that was trained."""
    folder = zoo(tmp_path, lambda: models.llama(tied=True), target_modules=["embed_tokens"], ensure_weight_tying=True)
    saved = load_file(folder / "a1/adapter_model.safetensors")
    assert "base_model.model.lm_head.lora_A.weight" in saved
    a, b = (saved[f"base_model.model.model.embed_tokens.lora_embedding_{x}"] for x in "AB")
    got = merged(folder, ["DIR/a1"], "got")["model.embed_tokens.weight"]
    base = load_file(folder / "base/model.safetensors")["model.embed_tokens.weight"]
    assert error(got - base, 1.5 * (b @ a).T) < CHANGE


def test_an_adapter_of_another_fine_tune(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, **ATTENTION)
    adapt(folder, models.llama, 3, **ATTENTION)
    a3 = load_file(folder / "a3/adapter_model.safetensors")
    state = load_file(folder / "t1/model.safetensors")
    for layer in range(2):
        for leaf in ("q_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{leaf}"
            a, b = (a3[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            state[f"{name}.weight"] += 1.5 * b @ a
    (folder / "both").mkdir()
    save_file(state, folder / "both/model.safetensors", metadata={"format": "pt"})
    got = merged(folder, ["DIR/t1+DIR/a3", "DIR/a2"], "got")
    assert_same_change(folder, got, merged(folder, ["DIR/both", "DIR/a2"], "want"))


def test_a_base_with_an_adapter_on_top(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, **ATTENTION)
    path = recipe(folder, ["DIR/t2"])
    path.write_text(path.read_text().replace(f"{folder}/base", f"{folder}/base+{folder}/a1"))
    hf_tsv.merge(path, folder / "got")
    path.write_text(path.read_text().replace(f"{folder}/base+{folder}/a1", f"{folder}/t1"))
    hf_tsv.merge(path, folder / "want")
    got, want = (load_file(folder / out / "model.safetensors") for out in ("got", "want"))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=WEIGHTS, atol=WEIGHTS)


def test_the_lock_gives_the_same_bytes_and_the_record_names_the_adapter(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, **ATTENTION)
    record = hf_tsv.merge(recipe(folder, ["DIR/base+DIR/a1", "DIR/a2"]), folder / "out")
    hf_tsv.merge(folder / "out/recipe.lock.yaml", folder / "again")
    assert (folder / "out/model.safetensors").read_bytes() == (folder / "again/model.safetensors").read_bytes()
    assert record.sources[1].adapter == f"{folder}/a1"
    assert record.sources[2].adapter is None


def test_a_weight_that_the_files_hold_in_parts(tmp_path: Path) -> None:
    """As transformers 5 joins some on loading; where they lie, it says."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, generator=generator), torch.randn(6, 2, generator=generator)
    folder = by_hand(tmp_path, {"mlp.joined.lora_A.weight": a, "mlp.joined.lora_B.weight": b})
    parts = [Place("out.weight", None, 0, 3), Place("mlp.up.weight", None, 3, 3)]
    base = {"out.weight": torch.zeros(3, 4), "mlp.up.weight": torch.zeros(3, 4)}
    adapter = open_adapter(folder / "a1").on(
        MemoryCheckpoint(base, label="the base"), places=lambda: {"mlp.joined.weight": parts}
    )
    assert torch.equal(torch.cat([adapter.read("out.weight"), adapter.read("mlp.up.weight")]), b @ a)


def test_a_change_of_its_configuration_is_a_change(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, **ATTENTION)
    base = open_checkpoint(folder / "base")
    before = open_adapter(folder / "a1").on(base).fingerprint()
    assert open_adapter(folder / "a1").on(base).fingerprint() == before
    change_config(folder / "a1", lora_alpha=7)
    assert open_adapter(folder / "a1").on(base).fingerprint() != before


class FoldersAsHub(Hub):
    """Folders that pass for repositories: `user/NAME` is the folder NAME."""

    def __init__(self, folder: Path) -> None:
        self.folder = self.cache_dir = folder
        self.downloaded: list[str] = []

    def preflight(self, sources: Iterable[tuple[str, str | None]]) -> list[Pinned]:
        return [Pinned(repo_id, revision, repo_id[-1] * 40) for repo_id, revision in sources]

    def weights(self, pinned: Pinned) -> Weights:
        return Weights("adapter" if pinned.repo_id.startswith("user/a") else "model")

    def files(self, pinned: Pinned) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self._folder_of(pinned).iterdir()}

    def facts(self, pinned: Pinned) -> SourceFacts:
        return SourceFacts()

    def bytes_to_download(self, pinned: Pinned, *, weights: bool = True) -> int:
        return 0

    def open(self, pinned: Pinned) -> SafetensorsCheckpoint:
        return open_checkpoint(self._folder_of(pinned), label=pinned.label)

    def download(self, pinned: Pinned, *, weights: bool = True, progress: object = None) -> Path:
        self.downloaded.append(pinned.repo_id)
        return self._folder_of(pinned)

    def _folder_of(self, pinned: Pinned) -> Path:
        return self.folder / pinned.repo_id.removeprefix("user/")


def test_adapters_come_from_the_hub_and_are_pinned(tmp_path: Path) -> None:
    folder, hub = zoo(tmp_path, models.llama, **ATTENTION), FoldersAsHub(tmp_path)
    want = merged(folder, ["DIR/base+DIR/a1", "DIR/a2"], "want")
    path = recipe(folder, ["user/base@v1+user/a1", "user/a2@x"])
    path.write_text(path.read_text().replace(f"base_model: {folder}/base", "base_model: user/base@v1"))
    hf_tsv.plan(path, hub=hub)
    assert hub.downloaded == ["user/a1", "user/a2"]  # and the base not: its headers do
    record = hf_tsv.merge(path, folder / "got", hub=hub)
    lock = (folder / "got/recipe.lock.yaml").read_text()
    assert f"model: user/base@{'e' * 40}+user/a1@{'1' * 40}," in lock
    assert f"model: user/a2@{'2' * 40}," in lock
    assert record.sources[1].adapter == f"user/a1@{'1' * 40}"
    assert all(torch.equal(value, want[name]) for name, value in load_file(folder / "got/model.safetensors").items())


# ------------------------------------------------------------------------------------------------- what it is told


def by_hand(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    """A base of a few tensors, and an adapter on it."""
    base = {"mlp.up.weight": torch.ones(6, 4), "mlp.up.bias": torch.ones(6), "out.weight": torch.ones(3, 4)}
    for name in ("base", "a1"):
        (folder / name).mkdir(exist_ok=True)
    save_file(base, folder / "base/model.safetensors")
    save_file(
        {f"base_model.model.{key}": value for key, value in tensors.items()}, folder / "a1/adapter_model.safetensors"
    )
    written = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
    text = json.dumps({key: value for key, value in written.items() if value != "absent"})
    (folder / "a1/adapter_config.json").write_text(text)
    return folder


def lora(module: str, m: int = 6, n: int = 4, r: int = 2) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": torch.ones(r, n), f"{module}.lora_B.weight": torch.ones(m, r)}


def told(folder: Path, task: str = "DIR/base+DIR/a1", kind: type[Exception] = CheckpointError) -> list[str]:
    with pytest.raises(kind) as caught:
        hf_tsv.merge(recipe(folder, [task]), folder / "out")
    assert not (folder / "out").exists()
    return str(caught.value).replace(str(folder), "DIR").splitlines()


MERGE_IT = "Merge it into its base with PEFT's merge_and_unload, and use the model that this makes"
NAME_IT = "Name the model that it was trained on as its base"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, f"an adapter of type 'LOHA', expected LORA. {MERGE_IT}"),
        ({"peft_type": "absent"}, f"an adapter of type None, expected LORA. {MERGE_IT}"),
        ({"use_dora": True}, f"uses DoRA (use_dora in adapter_config.json), expected a plain LoRA. {MERGE_IT}"),
        (
            {"layer_replication": [[0, 2], [1, 3]]},
            f"uses layer replication (layer_replication in adapter_config.json), expected a plain LoRA. {MERGE_IT}",
        ),
        (
            {"megatron_config": {"a": 1}},
            "uses Megatron's parallel layers (megatron_config in adapter_config.json), expected a plain LoRA."
            f" {MERGE_IT}",
        ),
        (
            {"alora_invocation_tokens": [1, 2]},
            "uses aLoRA, which acts on some tokens only, (alora_invocation_tokens in adapter_config.json), expected a"
            f" plain LoRA. {MERGE_IT}",
        ),
        (
            {"init_lora_weights": "pissa_niter_16"},
            "init_lora_weights is 'pissa_niter_16', which changes the base's weights, expected a plain LoRA. Save it"
            " with path_initial_model_for_weight_conversion, as PEFT's documentation says",
        ),
        (
            {"lora_alpha": "absent"},
            "its adapter_config.json has no 'lora_alpha', without which the size of its change is unknown",
        ),
        ({"r": 0}, "r in adapter_config.json is 0. Input should be greater than 0"),
        (
            {"rank_pattern": {"(a+)+": 2}},
            "the key '(a+)+' of rank_pattern in adapter_config.json is too costly a pattern. Write the module's name",
        ),
        (
            {"alpha_pattern": {"up[": 2}},
            "the key 'up[' of alpha_pattern in adapter_config.json is not a regular expression: unterminated character"
            " set at position 2. Write the module's name",
        ),
        ({"r": 3}, "mlp.up has rank 2, expected 3 by adapter_config.json. Take both files from one adapter"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configurations_that_mean_something_else(config: dict[str, object], message: str, tmp_path: Path) -> None:
    assert told(by_hand(tmp_path, lora("mlp.up"), **config)) == [f"DIR/a1: {message}"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            lora("mlp.up") | {"mlp.up.lora_magnitude_vector": torch.ones(6)},
            f"uses DoRA (base_model.model.mlp.up.lora_magnitude_vector), expected a plain LoRA. {MERGE_IT}",
        ),
        (
            lora("mlp.up") | {"mlp.up.lora_diag": torch.ones(2)},
            f"holds base_model.model.mlp.up.lora_diag, expected the keys of a plain LoRA. {MERGE_IT}",
        ),
        (
            lora("mlp.up") | lora("mlp.gate") | lora("mlp.down"),
            f"changes what DIR/base doesn't have: mlp.down.weight, mlp.gate.weight. {NAME_IT}",
        ),
        (lora("mlp.up", n=5), f"doesn't fit DIR/base: mlp.up.weight (6, 4) would change by (6, 5). {NAME_IT}"),
        (
            {"mlp.up.lora_A.weight": torch.ones(2, 4)},
            "base_model.model.mlp.up.lora_A.weight has no partner, expected lora_A and lora_B. Download it again",
        ),
        (
            {"mlp.up.lora_A.weight": torch.ones(2, 4), "mlp.up.lora_B.weight": torch.ones(6, 3)},
            "mlp.up has factors of shapes (2, 4) and (6, 3), expected (r, in) and (out, r). Download it again",
        ),
    ],
    ids=["dora", "unknown key", "lost", "misfit", "no partner", "no product"],
)
def test_tensors_that_do_not_fit(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    lines = told(by_hand(tmp_path, tensors))
    assert lines[0] == f"DIR/a1: {message}"
    assert all("other names for them can't be looked up" in line for line in lines[1:])


def test_a_bias_that_the_base_lacks(tmp_path: Path) -> None:
    folder = by_hand(tmp_path, lora("out", m=3) | {"out.lora_B.bias": torch.ones(3)}, lora_bias=True)
    assert told(folder) == [f"DIR/a1: changes what DIR/base doesn't have: out.bias. {NAME_IT}"]


def test_rows_without_indices(tmp_path: Path) -> None:
    tokens = {"out.token_adapter.trainable_tokens_delta": torch.ones(2, 4)}
    folder = by_hand(tmp_path, tokens, trainable_token_indices=[1, 3])
    assert told(folder) == [
        "DIR/a1: out has 2 rows of its own, expected as many trainable_token_indices in adapter_config.json, each"
        " below 3. Download it again"
    ]


def test_pickles_and_empty_folders(tmp_path: Path) -> None:
    folder = by_hand(tmp_path, lora("mlp.up"))
    (folder / "a1/adapter_model.safetensors").rename(folder / "a1/adapter_model.bin")
    assert told(folder) == [
        "DIR/a1: only pickled weights (adapter_model.bin), which can run code when they are read. Convert them: load"
        " the adapter with PEFT and call save_pretrained, which writes safetensors"
    ]
    (folder / "a1/adapter_config.json").unlink()
    assert told(folder) == ["DIR/a1: no adapter_config.json in it, expected an adapter as PEFT saves it"]


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    folder = by_hand(tmp_path, lora("mlp.up"))
    path = recipe(folder, ["DIR/base"])
    path.write_text(path.read_text().replace(f"base_model: {folder}/base", f"base_model: {folder}/a1"))
    with pytest.raises(CheckpointError, match=r"a1: an adapter, expected a model as the base\. Write MODEL\+"):
        hf_tsv.merge(path, folder / "out")


@pytest.mark.parametrize(("sick", "at_fault"), [("a1/adapter_model", "task 'n0'"), ("base/model", "DIR/base")])
@pytest.mark.parametrize("method", ["tsv_m", "task_arithmetic"])
def test_nan(method: str, sick: str, at_fault: str, tmp_path: Path) -> None:
    folder = by_hand(tmp_path, lora("mlp.up"))
    path = folder / f"{sick}.safetensors"
    state = load_file(path)
    next(value for key, value in sorted(state.items()) if "mlp.up" in key and "weight" in key)[0, 0] = math.nan
    save_file(state, path)
    with pytest.raises(MethodError) as caught:
        hf_tsv.merge(recipe(folder, ["DIR/a1"], method=method), folder / "out")
    assert str(caught.value).replace(str(folder), "DIR") == (
        f"mlp.up.weight (6, 4), {method}: the weights of {at_fault} hold NaN or infinity. Get them again, or leave"
        " them out"
    )


def test_what_peft_saves_by_default_is_worth_no_note(tmp_path: Path) -> None:
    folder = zoo(tmp_path, models.llama, **ATTENTION)
    assert json.loads((folder / "a1/adapter_config.json").read_text())["init_lora_weights"] is True
    assert not hf_tsv.plan(recipe(folder, ["DIR/a1"])).warnings


def test_what_is_worth_a_note(tmp_path: Path) -> None:
    biased = lora("mlp.up") | {"mlp.up.lora_B.bias": torch.ones(6)}
    folder = by_hand(tmp_path, biased, base_model_name_or_path="org/other", use_news=True, inference_mode=True)
    planned = hf_tsv.plan(recipe(folder, ["DIR/a1"]))
    assert [warning.replace(str(folder), "DIR") for warning in planned.warnings if "n0" in warning] == [
        "'n0': its adapter_config.json names 'org/other' as its base, here it is put on 'DIR/base'. The shapes fit",
        "'n0': adapter_config.json has no lora_bias: true, so the biases that the adapter holds are left out, as PEFT"
        " does: mlp.up",
        "'n0': adapter_config.json turns on what isn't known here and has no effect: 'use_news'",
    ]
