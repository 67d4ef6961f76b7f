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
        added: The tokens that are looked for in a text before anything else is done to it, and how: the flags of each.
        data: What tokenizer.json holds; None without that file.
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
        if (folder / TOKENIZER_FILE).is_file():
            return _from_file(folder)
        return _by_transformers(folder)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, OSError) as error:
        # A stranger's file may hold anything where something else is looked for.
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder}: its tokenizer can't be read ({reason})") from None


def _from_file(folder: Path) -> Tokenizer:
    data = _read(folder / TOKENIZER_FILE)
    vocab = data["model"]["vocab"]
    # A unigram model's are pairs of token and score, whose place is the id.
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    entries = list(data.get("added_tokens") or ())
    config = folder / TOKENIZER_CONFIG
    if config.is_file():
        decoder = _read(config).get("added_tokens_decoder") or {}
        entries += [entry | {"id": int(i)} for i, entry in decoder.items()]
    added: dict[str, Mapping[str, bool]] = {}
    for entry in entries:
        if entry["content"] not in added:
            ids.setdefault(entry["content"], entry["id"])
            added[entry["content"]] = _flags(entry)
    if (folder / ADDED_FILE).is_file():  # of older tokenizers; it has no flags
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
        added: dict[str, Mapping[str, bool]] = {}
        for token in read.added_tokens_decoder.values():
            added[str(token)] = _flags({flag: getattr(token, flag, False) for flag in _FLAGS})
        return Tokenizer(_checked(read.get_vocab()), added)
    except Exception as error:  # whatever a library makes of a stranger's file
        raise ValueError(str(error) or type(error).__name__) from None


def _flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {flag: bool(entry.get(flag, False)) for flag in _FLAGS}


def _checked(ids: Mapping[str, int]) -> Mapping[str, int]:
    """The ids, when they are natural numbers of a size that makes sense, and the tokens are text."""
    if not ids:
        raise ValueError("it has no tokens")
    for token, i in ids.items():
        if not isinstance(token, str) or type(i) is not int or not 0 <= i < _MOST:  # JSON's true is an int, too
            raise ValueError(f"token {token!r:.40} has no id")
    return ids


def _read(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text("utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is not a mapping")
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
    added: dict[str, Mapping[str, bool]] = {}
    for token in ids:
        for donor in donors:
            if token in donor.added:
                added[token] = donor.added[token]
                break
    plain = [token for token in ids if token not in added]
    data: dict[str, Any] = deepcopy(dict(base.data))  # the base's tokenizer itself stays as it was read
    new_entries = [{"id": ids[token], "content": token, **flags} for token, flags in added.items()]
    data["added_tokens"] = [*(data.get("added_tokens") or ()), *new_entries]
    every = {**base.ids, **ids}
    # Ids of added tokens are counted up from those of the model proper when the file is read. Where that gives others
    # than are written here, all tokens go into the model proper.
    if plain or max(every.values()) >= len(every):
        _put_into_model(data["model"], every, plain, donors)
        for file in OTHER_FILES:  # they say what tokenizer.json said before, and would be wrong now
            (folder / file).unlink(missing_ok=True)
    _write(folder / TOKENIZER_FILE, data)
    if (folder / TOKENIZER_CONFIG).is_file():
        config = _read(folder / TOKENIZER_CONFIG)
        if isinstance(config.get("added_tokens_decoder"), dict):
            new_decoder = {str(ids[token]): {"content": token, **flags} for token, flags in added.items()}
            config["added_tokens_decoder"] |= new_decoder
            _write(folder / TOKENIZER_CONFIG, config)
    if (folder / ADDED_FILE).is_file():
        new_ids = {token: ids[token] for token in added}
        _write(folder / ADDED_FILE, _read(folder / ADDED_FILE) | new_ids)


def _put_into_model(
    model: dict[str, Any], ids: Mapping[str, int], plain: Sequence[str], donors: Sequence[Tokenizer]
) -> None:
    """Put every token into the vocabulary of the model proper, and the merges that make the new ones of others.

    Args:
        model: The part of tokenizer.json that cuts words.
        ids: Every token.
        plain: The new tokens that are found by cutting words.
        donors: Who knows how.
    """
    if isinstance(model["vocab"], dict):
        model["vocab"] = dict(sorted(ids.items(), key=lambda item: item[1]))
    else:
        model["vocab"] = _scored(model["vocab"], ids, donors)
    if not isinstance(model.get("merges"), list):
        return
    new = set(plain)
    as_text = isinstance(next(iter(model["merges"]), None), str)  # "a b" in older files, ["a", "b"] in newer ones
    known = {_pair(merge) for merge in model["merges"]}
    for donor in donors:
        merges = (donor.data or {}).get("model", {}).get("merges") or ()
        for pair in map(_pair, merges):
            makes_new_token = "".join(pair) in new and all(part in ids for part in pair)
            if makes_new_token and pair not in known:
                known.add(pair)
                model["merges"].append(" ".join(pair) if as_text else list(pair))


def _scored(vocab: Sequence[Any], ids: Mapping[str, int], donors: Sequence[Tokenizer]) -> list[list[Any]]:
    """A unigram vocabulary, where a token's place is its id; one that is in no such vocabulary scores lowest."""
    scores: dict[str, float] = {}
    for donor in donors:
        theirs = (donor.data or {}).get("model", {}).get("vocab")
        if isinstance(theirs, list):
            for token, score in theirs:
                scores.setdefault(token, score)
    scores |= dict(vocab)  # the base's own stay what they are
    lowest = min(scores.values(), default=0.0)
    tokens = {i: token for token, i in ids.items()}
    scored = []
    unused = count()
    for i in range(max(tokens) + 1):
        token = tokens.get(i) or f"<unused id {next(unused)}>"  # every place must be taken, by another token each
        scored.append([token, scores.get(token, lowest)])
    return scored


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _write(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
