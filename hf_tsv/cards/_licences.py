"""Which licence a model made of others may carry, by what these say of themselves. A report, no legal advice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hf_tsv.record import Terms

LICENCE_ID = r"[a-z0-9][a-z0-9.-]*"  # how the Hub writes one
PERMISSIVE = frozenset(
    {
        *("apache-2.0", "mit", "isc", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "zlib", "ncsa"),
        *("unlicense", "wtfpl", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "pddl", "ms-pl"),
        *("postgresql", "ecl-2.0", "afl-3.0", "artistic-2.0", "bsl-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0"),
    }
)


@dataclass(frozen=True)
class Licence:
    """A licence as a card's header states it.

    Attributes:
        id: The Hub's word for it, such as `apache-2.0`, or `other`.
        name: Its name when it is `other`.
        link: Where it can be read.
    """

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def label(self) -> str:
        """How people call it."""
        return self.name or self.id


@dataclass(frozen=True)
class Inherited:
    """What follows from the licences of all sources.

    Attributes:
        licence: The one to carry; None when a person has to decide.
        why: How it follows, or why it doesn't.
    """

    licence: Licence | None
    why: str


def inherited(terms: Sequence[Terms]) -> Inherited:
    """Find the licence that a model made of these sources may carry.

    If all sources have the same licence, it is that one. Permissive ones alone give Apache-2.0 if it is among them,
    else the base's; a single stricter one wins over permissive ones. Two different stricter ones, or a source that
    names none, are a conflict.

    Args:
        terms: What each source says of itself, the base first.
    """
    licences: list[Licence] = []
    for term in terms:
        if not re.fullmatch(LICENCE_ID, term.license or ""):
            return Inherited(None, "some sources name no licence, or several")
        licences.append(Licence(term.license or "", term.license_name, term.license_link))
    # By id and name, since everything that the Hub has no word for is called 'other'. Of equal ones the base's counts.
    different = {(licence.id, licence.name): licence for licence in reversed(licences)}
    strict = [licence for licence in different.values() if licence.id not in PERMISSIVE]
    if len(different) == 1:
        return Inherited(licences[0], "all sources have it")
    if len(strict) == 1:
        return Inherited(strict[0], "the strictest of the sources' licences")
    if strict:
        labels = " and ".join(licence.label for licence in strict)
        return Inherited(None, f"{labels} can't be combined by a rule")
    apache = different.get(("apache-2.0", None))
    return Inherited(apache or licences[0], "all of the sources' licences are permissive")
