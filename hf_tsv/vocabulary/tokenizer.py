"""A model's tokenizer as its files have it: which token has which id. And the base's with tokens of others added."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from hf_tsv.errors import CheckpointError
from hf_tsv.files.disk import write_text

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_FILE = "added_tokens.json"
OTHER_FILES = ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
VOCABULARY_FILES = (TOKENIZER_FILE, ADDED_FILE, *OTHER_FILES)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MOST = 2**24  # above every id; what a file says beyond it would take memory without end


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary.

    Attributes:
        ids: Token to id.
        added: Of the tokens that are looked for in a text before anything else is done to it, by token, how.
        data: What tokenizer.json holds; None where there is none.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, bool]]
    data: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str | None:
        """How it cuts words: `BPE`, `Unigram`, `WordPiece`, `WordLevel`; None where that isn't known."""
        return str(self.data["model"].get("type")) if self.data else None


def has_tokenizer(folder: Path) -> bool:
    """Whether files of a tokenizer lie in a folder."""
    return any((folder / file).is_file() for file in (TOKENIZER_FILE, *OTHER_FILES))


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tokenizer, byte for byte."""
    return all(_bytes(one / f) == _bytes(other / f) for f in (TOKENIZER_CONFIG, *VOCABULARY_FILES))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder. One without a tokenizer.json is read by transformers; no code of its own is run.

    Raises:
        CheckpointError: there is none, or it can't be read.
    """
    try:
        return _from_file(folder) if (folder / TOKENIZER_FILE).is_file() else _by_transformers(folder)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, OSError) as error:
        told = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder}: no tokenizer that can be read ({told})") from None


def _from_file(folder: Path) -> Tokenizer:
    data = _read(folder / TOKENIZER_FILE)
    vocab = data["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    added: dict[str, Mapping[str, bool]] = {}
    config = folder / TOKENIZER_CONFIG
    decoder = _read(config).get("added_tokens_decoder") or {} if config.is_file() else {}
    told = [*(data.get("added_tokens") or ()), *(entry | {"id": int(i)} for i, entry in decoder.items())]
    for entry in told:
        if entry["content"] not in added:
            ids.setdefault(entry["content"], entry["id"])
            added[entry["content"]] = _flags(entry)
    if (folder / ADDED_FILE).is_file():
        for token, i in _read(folder / ADDED_FILE).items():
            ids.setdefault(token, i)
            added.setdefault(token, _flags({}))
    return Tokenizer(_checked(ids), added, data)


def _by_transformers(folder: Path) -> Tokenizer:
    if not has_tokenizer(folder):
        raise ValueError(f"there is no {TOKENIZER_FILE}")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError(f"there is no {TOKENIZER_FILE}, and others need pip install tokenizers transformers") from None
    try:
        read = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        added = {str(t): {f: bool(getattr(t, f, False)) for f in _FLAGS} for t in read.added_tokens_decoder.values()}
        return Tokenizer(_checked(read.get_vocab()), added)
    except Exception as error:  # whatever a library makes of a stranger's file
        raise ValueError(str(error) or type(error).__name__) from None


def _flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {flag: bool(entry.get(flag, False)) for flag in _FLAGS}


def _checked(ids: Mapping[str, int]) -> Mapping[str, int]:
    odd = next((t for t, i in ids.items() if not isinstance(t, str) or type(i) is not int or not 0 <= i < _MOST), None)
    if odd is not None or not ids:
        raise ValueError(f"token {odd!r:.40} has no id" if ids else "it has no tokens")
    return ids


def _read(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text("utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} holds no tokenizer")
    return data


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def write_with_tokens(folder: Path, base: Tokenizer, ids: Mapping[str, int], donors: Sequence[Tokenizer]) -> None:
    """Add tokens to the tokenizer whose files lie in a folder.

    Args:
        folder: Where they lie.
        base: It, as it was read.
        ids: The tokens to add, with their ids, in the order of these.
        donors: Who has them; the first that has a token says how it is looked for.
    """
    assert base.data is not None, "checked when the vocabularies were matched"
    added = {t: next(d.added[t] for d in donors if t in d.added) for t in ids if any(t in d.added for d in donors)}
    plain = [token for token in ids if token not in added]
    data: dict[str, Any] = deepcopy(dict(base.data))
    data["added_tokens"] = [
        *(data.get("added_tokens") or ()),
        *({"id": ids[token], "content": token, **flags} for token, flags in added.items()),
    ]
    every = {**base.ids, **ids}
    if plain or max(every.values()) >= len(every):  # ids would else be counted up from those of the model proper
        _put_into_model(data["model"], every, plain, donors)
        for file in OTHER_FILES:
            (folder / file).unlink(missing_ok=True)
    _write(folder / TOKENIZER_FILE, data)
    if (folder / TOKENIZER_CONFIG).is_file():
        config = _read(folder / TOKENIZER_CONFIG)
        if isinstance(config.get("added_tokens_decoder"), dict):
            config["added_tokens_decoder"] |= {str(ids[t]): {"content": t, **flags} for t, flags in added.items()}
            _write(folder / TOKENIZER_CONFIG, config)
    if (folder / ADDED_FILE).is_file():
        _write(folder / ADDED_FILE, _read(folder / ADDED_FILE) | {token: ids[token] for token in added})


def _put_into_model(
    model: dict[str, Any], ids: Mapping[str, int], plain: Sequence[str], donors: Sequence[Tokenizer]
) -> None:
    """Every token in the vocabulary proper, where it has the id that is written there; with what makes the new ones."""
    if isinstance(model["vocab"], dict):
        model["vocab"] = dict(sorted(ids.items(), key=lambda item: item[1]))
    else:
        model["vocab"] = _scored(model["vocab"], ids, donors)
    if not isinstance(model.get("merges"), list):
        return
    new, as_text = set(plain), isinstance(next(iter(model["merges"]), None), str)
    known = {_pair(merge) for merge in model["merges"]}
    for donor in donors:
        for pair in map(_pair, (donor.data or {}).get("model", {}).get("merges") or ()):
            if pair not in known and "".join(pair) in new and all(part in ids for part in pair):
                known.add(pair)
                model["merges"].append(" ".join(pair) if as_text else list(pair))


def _scored(vocab: Sequence[Any], ids: Mapping[str, int], donors: Sequence[Tokenizer]) -> list[list[Any]]:
    """A unigram vocabulary, where a token's place is its id; one that is in no such vocabulary scores lowest."""
    scores: dict[str, float] = {}
    for donor in donors:
        theirs = (donor.data or {}).get("model", {}).get("vocab")
        scores |= {t: score for t, score in theirs if t not in scores} if isinstance(theirs, list) else {}
    scores |= dict(vocab)
    lowest = min(scores.values(), default=0.0)
    tokens = {i: token for token, i in ids.items()}
    last = max(tokens)
    unused = (f"<unused id {i}>" for i in count())
    return [[t, scores.get(t, lowest)] for i in range(last + 1) for t in [tokens.get(i) or next(unused)]]


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _write(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
