"""Models with different vocabularies: rows by token, against a plain evaluation of the rule."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers as tk
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_tsv
from hf_tsv.errors import OutputError, PlanError
from hf_tsv.hub import Hub
from hf_tsv.merging import plan as planner
from hf_tsv.verbs.verify import verify
from hf_tsv.vocabulary import rows as vocabulary
from hf_tsv.vocabulary.tokenizer import read_tokenizer, write_with_tokens
from tests.support import models
from tests.support.loopback_hub import LoopbackHub
from tests.support.tokenizers import bpe
from tests.support.tolerances import WEIGHTS

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def save(
    folder: Path,
    tokenizer: Any,
    rows: int | None = None,
    *,
    seed: int,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """A Llama with a row for each token, or so many, and its tokenizer. Its first rows are near those of the others."""
    rows = rows or len(tokenizer)
    torch.manual_seed(0)
    config = tf.LlamaConfig(vocab_size=rows, num_key_value_heads=2, tie_word_embeddings=tied, **models.SMALL)
    model = tf.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name in sorted(state):
        if name not in (EMBEDDING, HEAD):
            state[name].copy_(torch.randn(state[name].shape, generator=generator) * 0.1)
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        state[name].copy_(torch.randn(1000, 32, generator=generator)[:rows])
    models.save(models.perturbed(model, seed) if seed else model, folder, dtype)
    tokenizer.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def recipe(
    folder: Path, source: str | None = None, method: str = "task_arithmetic", tasks: int = 2, more: str = ""
) -> Path:
    line = f"tokenizer_source: {source}\n" if source else ""
    return models.recipe(folder, method, tasks, line + more)


def ids_of(folder: Path) -> Mapping[str, int]:
    return tf.AutoTokenizer.from_pretrained(folder).get_vocab()


def by_hand(folder: Path, ids: Mapping[str, int], rows: int, name: str, tasks: int = 2, scale: float = 1.0) -> Tensor:
    """Task arithmetic by token, row by row, in float64; NaN where no token is."""
    folders = [folder / "base", *(folder / f"t{t}" for t in range(tasks))]
    (base, base_ids), *tuned = [(load_file(f / "model.safetensors")[name].double(), ids_of(f)) for f in folders]
    out = torch.full((rows, base.shape[1]), torch.nan, dtype=torch.float64)
    for token, i in ids.items():
        own = [(w[at[token]] if token in at and at[token] < len(w) else None) for w, at in tuned]
        if token in base_ids and base_ids[token] < len(base):
            ours = base[base_ids[token]]
            out[i] = ours + scale * sum((row - ours for row in own if row is not None), torch.zeros_like(ours))
        else:
            out[i] = torch.stack([row for row in own if row is not None]).mean(dim=0)
    return out


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A base of 37 tokens; a task that adds chat tokens; one that learned words and has the same tokens and another."""
    save(tmp_path / "base", bpe(), seed=0)
    chat = bpe(added=["<|im_start|>", "<|im_end|>"])
    chat.chat_template = CHAT
    save(tmp_path / "t0", chat, seed=1)
    save(tmp_path / "t1", bpe(extra=["storm"], added=["<|im_end|>"], plain=["<tool>"]), seed=2)
    return tmp_path


def merged(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got.double(), want, rtol=0, atol=WEIGHTS)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
@pytest.mark.parametrize("source", ["base", "union", "t0", "t1"])
def test_rows_are_matched_by_token(zoo: Path, source: str, name: str) -> None:
    """Also what mergekit 0.1.5 gives for these models, to 1.2e-7, but for the order of a union's ids."""
    hf_tsv.merge(recipe(zoo, source), zoo / "out")
    ids, rows = ids_of(zoo / "out"), len(merged(zoo / "out")[name])
    assert rows == len(ids) == json.loads((zoo / "out" / "config.json").read_text())["vocab_size"]
    close(merged(zoo / "out")[name], by_hand(zoo, ids, rows, name))
    loaded, told = tf.AutoModelForCausalLM.from_pretrained(zoo / "out", output_loading_info=True)
    assert not told["missing_keys"] | told["unexpected_keys"] | told["mismatched_keys"]
    assert torch.equal(loaded.get_input_embeddings().weight, merged(zoo / "out")[EMBEDDING])


def test_a_union_has_the_bases_ids_then_the_tasks_tokens(zoo: Path) -> None:
    hf_tsv.merge(recipe(zoo, "union"), zoo / "out")
    base, ids = ids_of(zoo / "base"), ids_of(zoo / "out")
    assert {token: ids[token] for token in base} == base
    new = sorted(ids.keys() - base.keys(), key=lambda token: ids[token])
    assert new == ["<|im_start|>", "<|im_end|>", "st", "sto", "stor", "storm", "<tool>"]
    out = tf.AutoTokenizer.from_pretrained(zoo / "out")
    assert out.convert_ids_to_tokens(out("<|im_start|>the storm<tool> cat<|im_end|>")["input_ids"]) == [
        *("<|im_start|>", "the", "storm", "<tool>", "cat", "<|im_end|>")
    ]
    flags = {str(token): token for token in out.added_tokens_decoder.values()}
    assert (flags["<|im_end|>"].special, flags["<tool>"].special, flags["<tool>"].lstrip) == (True, False, True)
    theirs = tf.AutoTokenizer.from_pretrained(zoo / "base")
    text = "the cat sat on the mat far away"
    assert out(text)["input_ids"] == theirs(text)["input_ids"]


def told(folder: Path, source: str | None = None, method: str = "task_arithmetic", more: str = "") -> str:
    with pytest.raises(PlanError) as caught:
        hf_tsv.plan(recipe(folder, source, method, more=more))
    return str(caught.value).replace(str(folder), "DIR")


def test_vocabularies_that_differ_are_refused_with_the_choice(zoo: Path) -> None:
    assert told(zoo) == (
        f'{HEAD}: the vocabularies differ: \'t0\' has 2 tokens ("<|im_start|>", "<|im_end|>") that the base lacks;'
        ' \'t1\' has 6 tokens ("st", "sto", "stor" and 3 more) that the base lacks. Say whose the output gets:'
        " tokenizer_source: base leaves new tokens out, union takes all, a model's name takes that model's; rows are"
        " then matched by token. Or keep the base's embeddings by an override with merge_method: base"
    )


def test_rows_that_mean_other_tokens_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "base", bpe(added=["<a>", "<b>"]), 64, seed=0)
    save(tmp_path / "t0", bpe(added=["<b>", "<a>"]), 64, seed=1)
    save(tmp_path / "t1", bpe(added=["<a>", "<b>", "<c>"]), 64, seed=2)
    problem = told(tmp_path)
    assert '\'t0\' has another id for 2 tokens ("<b>", "<a>") of the base; \'t1\' has 1 token ("<c>") that' in problem
    hf_tsv.merge(recipe(tmp_path, "base"), tmp_path / "out")
    close(
        merged(tmp_path / "out")[HEAD][: len(bpe()) + 2],
        by_hand(tmp_path, ids_of(tmp_path / "base"), 64, HEAD)[: len(bpe()) + 2],
    )


def test_embeddings_that_stay_the_bases_need_no_choice(zoo: Path) -> None:
    more = "overrides:\n" + "".join(f"- {{filter: {{kind: {k}}}, merge_method: base}}\n" for k in ("embedding", "head"))
    record = hf_tsv.merge(recipe(zoo, more=more), zoo / "out")
    assert torch.equal(merged(zoo / "out")[HEAD], load_file(zoo / "base" / "model.safetensors")[HEAD])
    assert record.task_parts.keys() == {"t0", "t1"}
    assert record.vocabulary is None


def test_a_tokenizer_that_lacks_tokens_or_rows_changes_nothing(tmp_path: Path) -> None:
    """The same vocabulary, more tokens than rows, fewer tokens, none: rows are merged as they lie."""
    rows = len(bpe(added=["<a>"]))
    save(tmp_path / "base", bpe(added=["<a>"]), seed=0)
    for task, tokenizer in (("t0", bpe(added=["<a>", "<pad>"])), ("t1", bpe())):
        save(tmp_path / task, tokenizer, rows, seed=int(task[1]) + 1)
    plain = hf_tsv.plan(recipe(tmp_path))
    assert plain.vocabulary is None
    (tmp_path / "t1" / "tokenizer.json").unlink()
    assert hf_tsv.plan(recipe(tmp_path, "base", tasks=2)).vocabulary is not None  # t0 names a token without a row


@pytest.mark.parametrize(
    ("source", "more", "rows"),
    [
        ("base", "", 64),
        ("union", "", 64),
        ("t1", "", 70),
        (None, "tokenizer: {source: base, pad_to_multiple_of: 10}\n", 40),
        (None, "tokenizer: {source: union, pad_to_multiple_of: 50}\n", 50),
    ],
)
def test_padding(tmp_path: Path, source: str | None, more: str, rows: int) -> None:
    """A row of padding is no token, and no task changes it."""
    base = save(tmp_path / "base", bpe(), 64, seed=0)
    save(tmp_path / "t0", bpe(added=["<a>"]), 80, seed=1)
    save(tmp_path / "t1", bpe(added=["<a>", "<b>"]), 70, seed=2)
    hf_tsv.merge(recipe(tmp_path, source, more=more), tmp_path / "out")
    ids, got = ids_of(tmp_path / "out"), merged(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == rows == len(got[HEAD])
    for name in (EMBEDDING, HEAD):
        want = by_hand(tmp_path, ids, rows, name)
        padding = want[:, 0].isnan()
        close(got[name][~padding], want[~padding])
        mean = base[name][: len(bpe())].double().mean(dim=0).expand(rows, -1)
        theirs = mean.clone() if source == "t1" else torch.cat([base[name].double(), mean])[:rows]
        close(got[name][padding], theirs[padding])
    tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(("rows", "extra", "padded"), [(64, 40, 128), (48, 40, 80), (40, 3, 48), (39, 3, 42)])
def test_a_union_that_outgrows_the_padding_is_padded_as_the_base(
    tmp_path: Path, rows: int, extra: int, padded: int
) -> None:
    """The base's 39 tokens have so many rows."""
    save(tmp_path / "base", bpe(), rows, seed=0)
    for t in range(2):
        save(tmp_path / f"t{t}", bpe(added=[f"<{i}>" for i in range(extra)]), seed=t + 1)
    steps = {step.name: step for step in hf_tsv.plan(recipe(tmp_path, "union")).steps}
    assert (steps[HEAD].out.shape, steps[EMBEDDING].out.shape) == ((padded, 32), (padded, 32))


def test_only_padding_differs_and_no_choice_is_needed(tmp_path: Path) -> None:
    save(tmp_path / "base", bpe(), 64, seed=0)
    save(tmp_path / "t0", bpe(), 80, seed=1)
    save(tmp_path / "t1", bpe(), seed=2)
    planned = hf_tsv.plan(recipe(tmp_path))
    assert planned.vocabulary is not None
    assert planned.vocabulary.is_bases
    hf_tsv.merge(recipe(tmp_path), tmp_path / "out")
    ids = ids_of(tmp_path / "base")
    close(merged(tmp_path / "out")[EMBEDDING][: len(ids)], by_hand(tmp_path, ids, 64, EMBEDDING)[: len(ids)])


@pytest.mark.parametrize("method", ["tsv_m", "ties", "linear", "model_stock", "karcher"])
def test_a_task_changes_nothing_where_it_has_no_token(zoo: Path, method: str) -> None:
    """A new token's row is the mean of its owners' rows, whatever the method; t1 has no <|im_start|>, t0 no <tool>."""
    hf_tsv.merge(recipe(zoo, "union", method), zoo / "out")
    ids, got = ids_of(zoo / "out"), merged(zoo / "out")
    want = by_hand(zoo, ids, len(ids), HEAD)
    new = [i for token, i in ids.items() if token not in ids_of(zoo / "base")]
    tolerance = 0.05 if method == "karcher" else WEIGHTS  # on the sphere, whose bend is all that moves what is alike
    torch.testing.assert_close(got[HEAD][new].double(), want[new], rtol=tolerance, atol=tolerance)


def test_tsv_merge_sees_the_shared_tokens_alone(zoo: Path) -> None:
    """New rows take no direction for themselves: the shared rows are those of a merge of the shared rows."""
    hf_tsv.merge(recipe(zoo, "union", "tsv_m"), zoo / "out")
    shared = len(ids_of(zoo / "base"))
    for name in ("base", "t0", "t1"):
        path = zoo / name / "model.safetensors"
        state = {k: v[:shared].clone() if k in (EMBEDDING, HEAD) else v for k, v in load_file(path).items()}
        save_file(state, path, metadata={"format": "pt"})
        bpe().save_pretrained(zoo / name)
    hf_tsv.merge(recipe(zoo, method="tsv_m"), zoo / "cut")
    torch.testing.assert_close(merged(zoo / "out")[HEAD][:shared], merged(zoo / "cut")[HEAD], rtol=0, atol=WEIGHTS)


def test_tied_embeddings(tmp_path: Path) -> None:
    save(tmp_path / "base", bpe(), seed=0, tied=True)
    save(tmp_path / "t0", bpe(added=["<a>"]), seed=1, tied=True)
    save(tmp_path / "t1", bpe(added=["<b>"]), seed=2, tied=True)
    hf_tsv.merge(recipe(tmp_path, "union"), tmp_path / "out")
    ids = ids_of(tmp_path / "out")
    close(merged(tmp_path / "out")[EMBEDDING], by_hand(tmp_path, ids, len(ids), EMBEDDING))
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, merged(tmp_path / "out")[EMBEDDING])


def test_a_row_that_a_task_lacks_stays_exactly_whatever_the_dtypes(tmp_path: Path) -> None:
    save(tmp_path / "base", bpe(added=["<a>"]), seed=0, dtype=torch.bfloat16)
    save(tmp_path / "t0", bpe(), seed=1, dtype=torch.float16)
    save(tmp_path / "t1", bpe(), seed=2, dtype=torch.float32)
    hf_tsv.merge(recipe(tmp_path, "base"), tmp_path / "out")
    assert torch.equal(merged(tmp_path / "out")[HEAD][-1], load_file(tmp_path / "base" / "model.safetensors")[HEAD][-1])


def test_ids_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose vocabulary is shuffled, merged in small pieces."""
    names = [f"w{i}" for i in range(200)]
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()
    for folder, words, seed in (
        ("base", names, 0),
        ("t0", [names[i] for i in order], 1),
        ("t1", [*names[::-1], "new"], 2),
    ):
        model = tk.Tokenizer(
            tk.models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>")
        )
        save(tmp_path / folder, tf.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"), seed=seed)
    whole = recipe(tmp_path, "union")
    hf_tsv.merge(whole, tmp_path / "whole", options=hf_tsv.Options(workers=1))
    ids = ids_of(tmp_path / "whole")
    close(merged(tmp_path / "whole")[HEAD], by_hand(tmp_path, ids, len(ids), HEAD))
    monkeypatch.setattr(planner, "PIECE", 32 * 7)
    monkeypatch.setattr(vocabulary, "PIECE", 32 * 7)
    hf_tsv.merge(whole, tmp_path / "pieces", options=hf_tsv.Options(workers=3))
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "pieces" / "model.safetensors"
    ).read_bytes()


def test_record_lock_card_and_verify(zoo: Path) -> None:
    record = hf_tsv.merge(recipe(zoo, "union", "tsv_m"), zoo / "out")
    vocabulary = record.vocabulary
    assert vocabulary is not None
    assert (vocabulary.source, vocabulary.new, vocabulary.rows[HEAD]) == ("union", 7, vocabulary.tokens)
    assert any("added to the base's: 7 tokens (" in warning for warning in record.warnings)
    assert "tokenizer_source: union" in (zoo / "out" / "recipe.lock.yaml").read_text()
    assert "matched by token" in (zoo / "out" / "README.md").read_text()
    found = verify(zoo / "out", sample=None)
    assert not found.differs + found.not_checked
    assert HEAD in found.recomputed
    bpe(added=["<|im_end|>", "<|im_start|>"]).save_pretrained(zoo / "t0")  # which changes no weight file
    assert any(HEAD in line for line in verify(zoo / "out", sample=None).differs)


def test_an_unfinished_run_is_not_gone_on_with_under_another_vocabulary(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hf_tsv.job.job.write_parts", stop)
        with pytest.raises(KeyboardInterrupt):
            hf_tsv.merge(recipe(zoo, "union"), zoo / "out")
    tokenizer = zoo / "t0" / "tokenizer.json"
    before = tokenizer.read_text()
    tokenizer.write_text(before.replace("<|im_end|>", "<|end|>"))
    with pytest.raises(OutputError, match="another vocabulary"):
        hf_tsv.merge(recipe(zoo, "union"), zoo / "out")
    tokenizer.write_text(before)
    hf_tsv.merge(recipe(zoo, "union"), zoo / "out")
    hf_tsv.merge(recipe(zoo, "union"), zoo / "again")
    assert (zoo / "out" / "model.safetensors").read_bytes() == (zoo / "again" / "model.safetensors").read_bytes()


def test_a_models_vocabulary_brings_its_template_and_the_ids_of_its_ends(zoo: Path) -> None:
    for name, end in (("base", 2), ("t0", 38)):
        config = json.loads((zoo / name / "config.json").read_text()) | {"eos_token_id": end}
        (zoo / name / "config.json").write_text(json.dumps(config))
        (zoo / name / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    hf_tsv.merge(recipe(zoo, "t0"), zoo / "out")
    hf_tsv.merge(recipe(zoo, "union"), zoo / "union")
    for out, end, template in (("out", 38, CHAT), ("union", 2, None)):
        assert json.loads((zoo / out / "config.json").read_text())["eos_token_id"] == end
        assert tf.GenerationConfig.from_pretrained(zoo / out).eos_token_id == end
        assert tf.AutoTokenizer.from_pretrained(zoo / out).chat_template == template
    hf_tsv.merge(recipe(zoo, "union", more="chat_template: auto\n"), zoo / "auto")
    talk = tf.AutoTokenizer.from_pretrained(zoo / "auto").apply_chat_template([{"content": "the cat"}], tokenize=False)
    assert talk == "<|im_start|>the cat<|im_end|>"


def test_the_vocabulary_of_a_model_without_a_tokenizer_is_the_bases(zoo: Path) -> None:
    shutil.copytree(zoo / "base", zoo / "t0", dirs_exist_ok=True)
    for file in (zoo / "t0").glob("tokenizer*"):
        file.unlink()
    (zoo / "t0" / "generation_config.json").write_text('{"eos_token_id": 2, "max_length": 9}')
    hf_tsv.merge(recipe(zoo, "t0"), zoo / "out")
    for file in (zoo / "base").glob("tokenizer*"):
        assert (zoo / "out" / file.name).read_bytes() == file.read_bytes()
    assert tf.GenerationConfig.from_pretrained(zoo / "out").max_length == 9


@pytest.mark.parametrize("source", [None, "base", "union"])
def test_no_tokenizer_is_told_with_the_way_out(zoo: Path, source: str | None) -> None:
    (zoo / "t0" / "tokenizer.json").write_text("{}")
    problem = told(zoo, source)
    assert "DIR/t0: its tokenizer can't be read ('model'), but rows are matched by it. Put a tokenizer.json" in problem
    for file in (zoo / "t0").glob("tokenizer*"):
        file.unlink()
    assert "DIR/t0: no tokenizer in it" in told(zoo, source)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "[" * 10000, '{"model": {"vocab": [["a"], 3]}}'),
        *(f'{{"model": {{"vocab": {{"a": {i}}}}}}}' for i in ("-1", "1e9", "99999999999", "true", '"b"')),
    ],
)
def test_hostile_tokenizers_are_told(zoo: Path, content: str) -> None:
    (zoo / "t0" / "tokenizer.json").write_text(content)
    assert "its tokenizer can't be read" in told(zoo, "union")


@pytest.mark.parametrize("method", ["tall_mask", "emr", "tsv_c"])
def test_what_tasks_keep_needs_the_bases_rows(zoo: Path, method: str) -> None:
    assert f"{method} keeps what is a task's own by the base's rows" in told(zoo, "union", method)
    assert hf_tsv.plan(recipe(zoo, "base", method)).vocabulary is not None


def test_adapters_of_tasks_are_on_the_bases_rows(zoo: Path) -> None:
    with pytest.raises(PlanError, match="tsv_c keeps what is a task's own by the base's rows"):
        hf_tsv.compress(recipe(zoo, "union"), zoo / "no", "rank=2")
    record = hf_tsv.compress(recipe(zoo, "base"), zoo / "out", "rank=2")
    assert any("left out of what 't1' has: 6 tokens" in warning for warning in record.warnings)
    assert hf_tsv.load_task(zoo / "out", "t0").get_input_embeddings().weight.shape == (39, 32)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # PEFT's, of resized embeddings
@pytest.mark.parametrize("source", ["base", "union", "t1", "adapter"])
@pytest.mark.parametrize("is_saved", [True, False])
def test_adapters_with_rows_of_their_own(tmp_path: Path, is_saved: bool, source: str) -> None:
    """An adapter on a resized model, its embeddings trained whole or by factors, as PEFT applies it."""
    peft = pytest.importorskip("peft")
    save(tmp_path / "base", bpe(), seed=0)
    save(tmp_path / "t1", bpe(added=["<b>"]), seed=2)
    tokenizer = bpe(added=["<a>"])

    def resized() -> Any:
        model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return model

    both = ["embed_tokens", "lm_head"]
    layers = (
        {"target_modules": ["q_proj"], "modules_to_save": both} if is_saved else {"target_modules": ["q_proj", *both]}
    )
    adapted = peft.get_peft_model(resized(), peft.LoraConfig(r=2, task_type="CAUSAL_LM", **layers))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, adapted.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    path = recipe(tmp_path, source)
    path.write_text(path.read_text().replace(f"{tmp_path}/t0", f"{tmp_path}/base+{tmp_path}/adapter"))
    hf_tsv.merge(path, tmp_path / "out")
    full = peft.PeftModel.from_pretrained(resized(), tmp_path / "adapter").merge_and_unload()
    models.save(full, tmp_path / "t0")
    tokenizer.save_pretrained(tmp_path / "t0")
    ids = ids_of(tmp_path / "out")
    assert ("<a>" in ids, "<b>" in ids) == (source in ("union", "adapter"), source in ("union", "t1"))
    for name in (EMBEDDING, HEAD):
        close(merged(tmp_path / "out")[name], by_hand(tmp_path, ids, len(ids), name))


def spelled(words: Iterable[str], letters: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of words spelled out of letters, and the merges that make them."""
    vocab, merges = {letter: i for i, letter in enumerate(letters)}, []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    return vocab, merges


def made(kind: str, words: list[str]) -> Any:
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    if kind in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        vocab, merges = spelled(words, "".join(sorted(tk.pre_tokenizers.ByteLevel.alphabet())))
        return getattr(tf, kind)(vocab=vocab, merges=merges)
    if kind == "LlamaTokenizer":
        vocab, merges = spelled([f"▁{word}" for word in words], letters)
        first = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>"])}
        return tf.LlamaTokenizer(vocab=first | {token: i + 3 for token, i in vocab.items()}, merges=merges)
    if kind == "BertTokenizer":
        first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        return tf.BertTokenizer(vocab={word: i for i, word in enumerate([*first, *words])})
    pieces = [("<unk>", 0.0), *((letter, -9.0) for letter in letters), *((f"▁{word}", -1.0) for word in words)]
    unigram = tk.Tokenizer(tk.models.Unigram(pieces, unk_id=0))
    unigram.pre_tokenizer = tk.pre_tokenizers.Metaspace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "BertTokenizer", "Unigram"])
def test_tokens_are_added_to_tokenizers_of_every_kind(tmp_path: Path, kind: str, learns: bool) -> None:
    """transformers gives every token the id of its row, and cuts the words that were learned as their model does."""
    words = ["the", "cat"]
    for name, known, added in (("base", words, "<a>"), ("other", [*words, "storm"] if learns else words, "<b>")):
        tokenizer = made(kind, known)
        tokenizer.add_tokens([tk.AddedToken(added, special=True)])
        tokenizer.save_pretrained(tmp_path / name)
        assert read_tokenizer(tmp_path / name).ids == tokenizer.get_vocab()
    base, other = read_tokenizer(tmp_path / "base"), read_tokenizer(tmp_path / "other")
    new = {token: i for i, token in enumerate(sorted(other.ids.keys() - base.ids.keys()), start=len(base.ids))}
    shutil.copytree(tmp_path / "base", tmp_path / "out")
    write_with_tokens(tmp_path / "out", base, new, [other])
    out = tf.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert out.get_vocab() == {**base.ids, **new}
    cut = out.tokenize("the<a> storm<b> cat")
    assert {"<a>", "<b>"} < set(cut)
    assert any(token.endswith("storm") for token in cut) == learns


def test_a_tokenizer_in_older_files_is_read_by_transformers(tmp_path: Path) -> None:
    vocab, merges = spelled(["the"], "".join(sorted(tk.pre_tokenizers.ByteLevel.alphabet())))
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    ids = read_tokenizer(tmp_path).ids
    assert {token: ids[token] for token in vocab} == vocab


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_models_on_the_hub(zoo: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    """Told before any weights are downloaded; streamed to the same bytes."""
    hf_tsv.merge(recipe(zoo, "union"), zoo / "local")
    for name in ("base", "t0", "t1"):
        hub.publish(f"bob/{name}", {path.name: path.read_bytes() for path in (zoo / name).iterdir()})
    alice = Hub(token="hf_alice", cache_dir=tmp_path / "cache")
    path = recipe(zoo)
    path.write_text(path.read_text().replace(f"{zoo}/", "bob/"))
    with pytest.raises(PlanError, match="the vocabularies differ"):
        hf_tsv.merge(path, zoo / "out", hub=alice)
    path.write_text(path.read_text() + "tokenizer_source: union\n")
    hf_tsv.merge(path, zoo / "out", hub=alice, options=hf_tsv.Options(stream=True))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert (zoo / "out" / "model.safetensors").read_bytes() == (zoo / "local" / "model.safetensors").read_bytes()


def bart(rows: int) -> Any:
    sizes = {
        f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 2))
    }
    config = tf.BartConfig(
        vocab_size=rows, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=rows, **sizes
    )
    return tf.BartForConditionalGeneration(config)


def test_a_bias_with_one_column_a_token(tmp_path: Path) -> None:
    """BART's final_logits_bias is (1, rows). Its positions, of which there are as many, are no tokens."""
    for name, tokenizer in (("base", bpe()), ("t0", bpe(added=["<a>"])), ("t1", bpe(added=["<b>", "<a>"]))):
        torch.manual_seed(0)
        model = bart(len(bpe()))
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        models.save(models.perturbed(model, len(tokenizer)), tmp_path / name)
        state = load_file(tmp_path / name / "model.safetensors")
        state["final_logits_bias"] = torch.arange(float(len(tokenizer)))[None] * len(tokenizer)
        save_file(state, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(tmp_path / name)
    record = hf_tsv.merge(recipe(tmp_path, "union"), tmp_path / "out")
    assert record.vocabulary is not None
    assert record.vocabulary.rows == {"model.shared.weight": 41, "final_logits_bias": 41}
    ids = torch.arange(39.0)
    want = [*(39 * ids + (40 - 39) * ids + (41 - 39) * ids), (39 * 40 + 40 * 41) / 2, 39 * 41]
    torch.testing.assert_close(merged(tmp_path / "out")["final_logits_bias"], torch.tensor(want)[None])
    close(
        merged(tmp_path / "out")["model.shared.weight"],
        by_hand(tmp_path, ids_of(tmp_path / "out"), 41, "model.shared.weight"),
    )
    tf.BartForConditionalGeneration.from_pretrained(tmp_path / "out")
