"""`hf-tsv card`: write the model card again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hf_tsv.cli._flags import flag_of, with_flags
from hf_tsv.cli._options import PushOptions
from hf_tsv.cli._told import told


@dataclass(frozen=True)
class Terms:
    """The terms on a card."""

    license: str | None = flag_of(PushOptions, "license")


@told
@with_flags
def card(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="An output of hf-tsv.", show_default=False)],
    terms: Terms,
) -> None:
    """Write an output's card again from its record. Text that people wrote outside our markers stays."""
    from hf_tsv.verbs.card import card as write

    print(write(folder, license=terms.license))
