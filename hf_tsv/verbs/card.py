"""Write the card of an output again."""

from pathlib import Path

from hf_tsv.cards import all_terms, write_card
from hf_tsv.files.names import CARD_FILE
from hf_tsv.publish.check import licence_of_card
from hf_tsv.record import read_record


def card(out: str | Path, *, license: str | None = None) -> Path:
    """Write the card of an output again, and the cards of a compression's adapters.

    Text that people wrote outside our markers stays, and so do their additions to the header.

    Args:
        out: The output folder.
        license: The Hub's identifier of the licence; None for the licence of the card's header or of the sources.

    Returns:
        The path of the output's card.

    Raises:
        OutputError: the folder is not an output, or is a restored checkpoint, which has no card.
        PublishError: there is no such licence.
    """
    out = Path(out)
    record = read_record(out)
    # A licence that a person wrote into the old card's header is kept, so it is read first.
    path = out / CARD_FILE
    old = path.read_text("utf-8") if path.is_file() else ""
    licence = licence_of_card(license, all_terms(record), old)
    write_card(record, out, licence=licence, keep=[old] if old else [])
    return path
