"""Byte-pair tokenizers of a few words."""

from collections.abc import Iterable

import tokenizers as tk
import transformers as tf

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "ran", "far", "away", "home"]
SPECIAL = ["<unk>", "<s>", "</s>"]


def bpe(extra: Iterable[str] = (), added: Iterable[str] = (), plain: Iterable[str] = ()) -> tf.PreTrainedTokenizerFast:
    """A byte-pair tokenizer of the words, whose ids are the same whatever comes behind them.

    extra: further words to learn; added: special tokens; plain: added tokens that aren't special.
    """
    letters = sorted(set("".join(WORDS)))
    vocab = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    merges: list[tuple[str, str]] = []
    for word in [*WORDS, *extra]:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append(pair)
    model = tk.Tokenizer(tk.models.BPE(vocab, merges, unk_token="<unk>"))
    model.pre_tokenizer = tk.pre_tokenizers.Whitespace()
    made = tf.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.add_tokens([tk.AddedToken(token, special=True) for token in added])
    made.add_tokens([tk.AddedToken(token, lstrip=True) for token in plain])
    return made
