"""`hf-tsv card`: the model card, written again."""

from pathlib import Path
from typing import Annotated

import typer

from hf_tsv.cli._options import License
from hf_tsv.cli._told import told


@told
def card(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="An output of hf-tsv.", show_default=False)],
    license_: License = None,
) -> None:
    """Write the card of an output again from its record. What people wrote outside of our marks stays."""
    from hf_tsv.verbs.card import card as write

    print(write(folder, license=license_))
