"""Merge methods that other packages bring, by the entry-point group `hf_tsv.methods`.

A package names a module that registers its methods on import:

    [project.entry-points."hf_tsv.methods"]
    their_word = "their_package.their_module"
"""

import logging
from collections.abc import MutableMapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

GROUP = "hf_tsv.methods"
_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


def load_plugins(methods: MutableMapping[str, _T]) -> None:
    """Import every plug-in, which registers its methods.

    A package that can't be imported must not prevent merging by other methods: it is reported in one line, and the
    methods it had already registered are removed.

    Args:
        methods: The registry's methods, by name.
    """
    entries = sorted(entry_points(group=GROUP), key=lambda entry: (_package(entry), entry.name))
    for entry in entries:
        before = dict(methods)
        try:
            entry.load()
        except Exception as error:  # a third party's module may raise anything
            methods.clear()
            methods.update(before)
            reason = " ".join(str(error).split()) or "no message"
            _LOG.warning(
                "plug-in %s: its merge methods (%s) are left out: %s: %s. Update or uninstall the package",
                _package(entry),
                entry.value,
                type(error).__name__,
                reason,
            )


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module
