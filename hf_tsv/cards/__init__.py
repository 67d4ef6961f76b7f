"""Model cards, `README.md`, made from an output's record; and the published versions of an output's files."""

from hf_tsv.cards._adapters import of_task, render_adapters
from hf_tsv.cards._licences import LICENCE_ID, Inherited, Licence, inherited
from hf_tsv.cards._markdown import code, fence, link, text
from hf_tsv.cards._published import published, published_config
from hf_tsv.cards._render import check_card, is_one_adapter, render_card, write_card
from hf_tsv.cards._sections import licence_in
from hf_tsv.cards._sources import NamedTerms, all_terms, named_terms

__all__ = [
    "LICENCE_ID",
    "Inherited",
    "Licence",
    "NamedTerms",
    "all_terms",
    "check_card",
    "code",
    "fence",
    "inherited",
    "is_one_adapter",
    "licence_in",
    "link",
    "named_terms",
    "of_task",
    "published",
    "published_config",
    "render_adapters",
    "render_card",
    "text",
    "write_card",
]
