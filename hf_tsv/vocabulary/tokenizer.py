"""Read a tokenizer's tokens and ids from its files, and add tokens of other models to the base's tokenizer."""

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
_MOST = 2**24  # larger than every real id; larger ids in a file would take unlimited memory


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary.

    Attributes:
        ids: Token to id.
        added: Tokens that are searched for in a text before anything else is done to it; token to flags of the search.
        data: The content of tokenizer.json; None without that file.
    """

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, bool]]
    data: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str | None:
        """The model that cuts words: `BPE`, `Unigram`, `WordPiece` or `WordLevel`; None if it isn't known."""
        return str(self.data["model"].get("type")) if self.data else None


def has_tokenizer(folder: Path) -> bool:
    """Return True if a folder has files of a tokenizer."""
    return any((folder / file).is_file() for file in (TOKENIZER_FILE, *OTHER_FILES))


def same_files(one: Path, other: Path) -> bool:
    """Return True if two folders hold the same tokenizer, byte for byte."""
    return all(_bytes(one / f) == _bytes(other / f) for f in (TOKENIZER_CONFIG, *VOCABULARY_FILES))


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer in a folder. Without a tokenizer.json, transformers reads it; its own code is never run.

    Raises:
        CheckpointError: there is no tokenizer, or it can't be read.
    """
    try:
        if (folder / TOKENIZER_FILE).is_file():
            return _from_file(folder)
        return _by_transformers(folder)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, OSError) as error:
        # A stranger's file may hold anything in any place.
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder}: its tokenizer can't be read ({reason})") from None


def _from_file(folder: Path) -> Tokenizer:
    data = _read(folder / TOKENIZER_FILE)
    vocab = data["model"]["vocab"]
    # A unigram vocabulary is a list of pairs of token and score; the place in the list is the id.
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
    if (folder / ADDED_FILE).is_file():  # older tokenizers have it; it has no flags
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
    except Exception as error:  # a library may raise anything on a stranger's file
        raise ValueError(str(error) or type(error).__name__) from None


def _flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {flag: bool(entry.get(flag, False)) for flag in _FLAGS}


def _checked(ids: Mapping[str, int]) -> Mapping[str, int]:
    """Return the ids after checking that they are natural numbers below a limit, and that the tokens are text."""
    if not ids:
        raise ValueError("it has no tokens")
    for token, i in ids.items():
        if not isinstance(token, str) or type(i) is not int or not 0 <= i < _MOST:  # JSON's true is an int in Python
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
    """Add tokens to the tokenizer in a folder.

    Args:
        folder: The folder of the tokenizer's files.
        base: The tokenizer, as it was read.
        ids: The tokens to add, with their ids, in the order of the ids.
        donors: The tokenizers that have the tokens; a token's flags come from the first with flags for it.
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
    # When the file is read, ids of added tokens are counted up from those of the model proper. If that gives other ids
    # than are written here, all tokens go into the model proper.
    if plain or max(every.values()) >= len(every):
        _put_into_model(data["model"], every, plain, donors)
        for file in OTHER_FILES:  # they match the old tokenizer.json, and would be wrong now
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
    """Put every token into the vocabulary of the model proper, and add the merges that make the new tokens.

    Args:
        model: The part of tokenizer.json that cuts words.
        ids: Every token with its id.
        plain: The new tokens that are found by cutting words.
        donors: The tokenizers with the new tokens' merges and scores.
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
    """Return a unigram vocabulary, a list in which a token's place is its id.

    A token without a score in any vocabulary gets the lowest one.
    """
    scores: dict[str, float] = {}
    for donor in donors:
        theirs = (donor.data or {}).get("model", {}).get("vocab")
        if isinstance(theirs, list):
            for token, score in theirs:
                scores.setdefault(token, score)
    scores |= dict(vocab)  # the base's own scores are kept
    lowest = min(scores.values(), default=0.0)
    tokens = {i: token for token, i in ids.items()}
    scored = []
    unused = count()
    for i in range(max(tokens) + 1):
        token = tokens.get(i) or f"<unused id {next(unused)}>"  # every place must have a token of its own
        scored.append([token, scores.get(token, lowest)])
    return scored


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _write(path: Path, data: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")
