"""The licence that a model made of others may carry, by the terms that they state. A report, not legal advice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hf_tsv.record import Terms

LICENCE_ID = r"[a-z0-9][a-z0-9.-]*"  # as the Hub writes it
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
        id: The licence's id on the Hub, such as `apache-2.0`, or `other`.
        name: The licence's name if the id is `other`.
        link: The address of its text.
    """

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def label(self) -> str:
        """The licence's name for people."""
        return self.name or self.id


@dataclass(frozen=True)
class Inherited:
    """The licence that follows from those of all sources.

    Attributes:
        licence: The licence to carry; None if a person has to decide.
        why: The reason why it follows, or why none does.
    """

    licence: Licence | None
    why: str


def inherited(terms: Sequence[Terms]) -> Inherited:
    """Find the licence that a model made of these sources may carry.

    If all sources have the same licence, it is that one. Permissive ones alone give Apache-2.0 if it is among them,
    else the base's; a single stricter one takes precedence over permissive ones. Two different stricter ones, or a
    source that names none, are a conflict.

    Args:
        terms: The terms that each source states, the base first.
    """
    licences: list[Licence] = []
    for term in terms:
        if not re.fullmatch(LICENCE_ID, term.license or ""):
            return Inherited(None, "some sources name no licence, or several")
        licences.append(Licence(term.license or "", term.license_name, term.license_link))
    # By id and name, because every licence without an id on the Hub is 'other'. Among equal ones, the first is kept.
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
