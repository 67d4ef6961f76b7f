"""The BibTeX entries of papers, from `cards/citations.bib`."""

import re
from collections.abc import Iterable

from hf_tsv.files.bundled import bundled


def citations(papers: Iterable[str]) -> str:
    """Return the BibTeX entries of these papers, each once.

    Args:
        papers: The papers' addresses, on arXiv or as a DOI; an empty or unknown one has no entry.
    """
    text = (bundled("cards") / "citations.bib").read_text("utf-8")
    entries = re.split(r"\n{2,}", text.strip())
    cited: list[str] = []
    for paper in dict.fromkeys(papers):  # each once, because several methods may come from one paper
        number = re.sub(r"https://(arxiv\.org/abs|doi\.org)/", "", paper)
        field = re.compile(f"(eprint|doi) = {{{re.escape(number)}}}")
        cited += [entry for entry in entries if number and field.search(entry)]
    return "\n\n".join(cited)
