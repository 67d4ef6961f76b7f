"""Which licence a model made of others may carry, by what these say of themselves. A report, no legal advice."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """A licence as a card's header says it.

    Attributes:
        id: The Hub's word for it, such as `apache-2.0`, or `other`.
        name: Its name when it is `other`.
        link: Where it can be read.
    """

    id: str
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Inherited:
    """What follows from the licences of all sources.

    Attributes:
        licence: The one to carry; None when that has to be decided by a person.
        why: How it follows, or why it doesn't.
    """

    licence: Licence | None
    why: str


def inherited(terms: Sequence[Mapping[str, Any]]) -> Inherited:
    """The licence that a model made of these sources may carry.

    One for all is that one; of permissive ones alone Apache-2.0 if it is among them, else the base's; a single
    stricter one wins over permissive ones. Two different stricter ones, or a source that names none, are a conflict.

    Args:
        terms: Of each source, the base first: `license`, `license_name` and `license_link`, None where it says nothing.
    """
    if any(not re.fullmatch(LICENCE_ID, str(term.get("license") or "")) for term in terms):
        return Inherited(None, "some sources name no licence, or several")
    found = {(t["license"], t.get("license_name")): _licence(t) for t in reversed(terms)}
    strict = [licence for (id_, _), licence in found.items() if id_ not in PERMISSIVE]
    if len(found) == 1:
        return Inherited(_licence(terms[0]), "all sources have it")
    if len(strict) == 1:
        return Inherited(strict[0], "the strictest of the sources' licences")
    if strict:
        return Inherited(None, f"{' and '.join(_called(licence) for licence in strict)} can't be joined by rule")
    apache = found.get(("apache-2.0", None))
    return Inherited(apache or _licence(terms[0]), "all of the sources' licences are permissive")


def _licence(term: Mapping[str, Any]) -> Licence:
    return Licence(str(term["license"]), term.get("license_name"), term.get("license_link"))


def _called(licence: Licence) -> str:
    return licence.name or licence.id
