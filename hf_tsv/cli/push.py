"""`hf-tsv push`: an output folder to the Hub."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_tsv.cli._options import CacheDir, CreatePr, DryRun, Json, License, Private, Quiet, Token
from hf_tsv.cli._told import err, out, told
from hf_tsv.errors import size, some

if TYPE_CHECKING:
    from hf_tsv.hub import Pushed
    from hf_tsv.publishing import Destination, Parcel


@told
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="An output of hf-tsv, or one adapter of it.", show_default=False)
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="user/name; for adapters also user/name-{task}.", show_default=False)
    ],
    create_pr: CreatePr = False,
    private: Private = None,
    license_: License = None,
    dry_run: DryRun = False,
    token: Token = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Push an output to the Hub, in one commit. What is there already is not uploaded again."""
    from huggingface_hub.utils import disable_progress_bars

    from hf_tsv import api
    from hf_tsv.hub import Hub
    from hf_tsv.publishing import Pushing, deliver

    if quiet:
        disable_progress_bars()
    pushing = Pushing(repo, create_pr, private, license_)
    prepared = api.prepare_push(folder, pushing, Hub(token=token, cache_dir=cache_dir))
    if not quiet:
        for parcel, destination in prepared:
            show(parcel, destination)
    if not dry_run:
        report((deliver(*one) for one in prepared), json_=json_)


def show(parcel: "Parcel", to: "Destination") -> None:
    """What goes where, and the licences of what it was made of."""
    from rich.table import Table

    from hf_tsv.cards import all_terms, inherited

    how = "private" if (to.target.private if to.target.exists else to.private) else "public"
    if not to.target.exists:
        how = f"new, {'as your settings say' if to.private is None else how}"
    err.print(f"{to.target.repo_id} ({how}): {len(parcel.files) + 1} files, {size(parcel.nbytes)}", markup=False)
    table = Table("source", "licence", "seen by", box=None, pad_edge=False, header_style="bold")
    terms = all_terms(parcel.record)
    for term in terms:
        seen = "its owners" if term.get("private") else "whom it lets in" if term.get("gated") else ""
        table.add_row(term["name"], term.get("license_name") or term.get("license") or "none named", seen)
    err.print(table, markup=False)
    following = inherited(terms)
    licence = to.licence or following.licence
    why = "chosen" if to.licence else following.why
    err.print(f"Licence: {licence.name or licence.id if licence else 'none'} ({why}).", markup=False)


def report(pushed: "Iterable[Pushed]", *, json_: bool) -> None:
    """Print the address of each commit as it is made."""
    found = []
    for one in pushed:
        found.append({"repo_id": one.repo_id, "url": one.url, "changed": list(one.changed)})
        if not json_:
            told_ = f"{some(one.changed)} changed" if one.changed else "everything was there already"
            err.print(f"{one.repo_id}: {told_}.", markup=False)
            out.print(one.url, markup=False)
    if json_:
        print(json.dumps(found))
