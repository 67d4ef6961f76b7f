"""`hf-tsv push`: push an output folder to the Hub."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_tsv.cli._flags import flag_of, with_flags
from hf_tsv.cli._options import PushOptions, RunOptions, Talk
from hf_tsv.cli._told import err, out, told
from hf_tsv.errors import size, some
from hf_tsv.job.options import Access

if TYPE_CHECKING:
    from hf_tsv.cards import NamedTerms
    from hf_tsv.hub import Pushed
    from hf_tsv.job.preview import Preview
    from hf_tsv.publish.check import Destination


@dataclass(frozen=True)
class Repository:
    """Options for the repository and its commit."""

    create_pr: bool = flag_of(PushOptions, "create_pr")
    private: bool | None = flag_of(PushOptions, "private")
    license: str | None = flag_of(PushOptions, "license")
    commit_message: str | None = flag_of(PushOptions, "commit_message")
    dry_run: bool = flag_of(RunOptions, "dry_run")


@told
@with_flags
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="An output of hf-tsv, or one adapter of it.", show_default=False)
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="user/name; for adapters also user/name-{task}.", show_default=False)
    ],
    how: Repository,
    access: Access,
    talk: Talk,
) -> None:
    """Push an output to the Hub, in one commit. Files that are already there are not uploaded again."""
    from huggingface_hub.utils import disable_progress_bars

    from hf_tsv.cards import all_terms
    from hf_tsv.hub import Hub
    from hf_tsv.publish.check import Pushing
    from hf_tsv.publish.send import deliver
    from hf_tsv.verbs.push import prepare_push

    # On a terminal, huggingface_hub's bars show the upload; elsewhere each would be hundreds of lines.
    if talk.quiet or not err.is_terminal:
        disable_progress_bars()
    pushing = Pushing(repo, how.create_pr, how.private, how.license, how.commit_message)
    prepared = prepare_push(folder, pushing, Hub(token=access.token, cache_dir=access.cache_dir))
    if not talk.quiet:
        for parcel, to in prepared:
            num_files = len(parcel.files) + 1  # plus the card
            show(all_terms(parcel.record), to, f": {num_files} files, {size(parcel.nbytes)}")
    if not how.dry_run:
        # Lazily, so that each address is printed before the next upload begins.
        report((deliver(*one) for one in prepared), json_=talk.json)


def show_preview(run: "Preview") -> None:
    """Print what a job would do: the plan, the downloads, and where its output would be pushed."""
    from hf_tsv.cli import plan

    plan.show(run.plan)
    if run.download_bytes:
        err.print(f"Downloads {size(run.download_bytes)}.", markup=False)
    if run.stream_bytes:
        err.print(f"Reads {size(run.stream_bytes)} of weights from the Hub, none of which is kept.", markup=False)
    for terms, to in run.targets:
        # The size of the tasks' adapters is known only once they are made.
        uploads = f": {size(run.plan.bytes_out)} of weights" if to.tasks is None else ""
        show(terms, to, uploads)


def show(terms: "list[NamedTerms]", to: "Destination", sizes: str = "") -> None:
    """Print where an output is pushed, and the licences of its sources."""
    from rich.markup import escape
    from rich.table import Table

    from hf_tsv.cards import inherited

    if to.target.exists:
        newness, hidden = "", to.target.private
    else:
        newness, hidden = "new, ", to.private
    how = {True: "private", False: "public", None: "as your settings say"}[hidden]
    err.print(f"{to.target.repo_id} ({newness}{how}){sizes}", markup=False)
    table = Table("source", "licence", "seen by", box=None, pad_edge=False, header_style="bold")
    for named in terms:
        seen = ""
        if named.terms.private:
            seen = "its owners"
        elif named.terms.gated:
            seen = "whom it lets in"
        licence_label = named.terms.license_label or "none named"
        table.add_row(escape(named.name), escape(licence_label), escape(seen))
    err.print(table)
    following = inherited([named.terms for named in terms])
    licence = to.licence or following.licence
    why = "chosen" if to.licence else following.why
    err.print(f"Licence: {licence.label if licence else 'none'} ({why}).", markup=False)


def report(pushed: "Iterable[Pushed]", *, json_: bool) -> None:
    """Print the address of each commit as it is made."""
    found = []
    for one in pushed:
        found.append({"repo_id": one.repo_id, "url": one.url, "changed": list(one.changed)})
        if not json_:
            outcome = f"{some(one.changed)} changed" if one.changed else "everything was there already"
            err.print(f"{one.repo_id}: {outcome}.", markup=False)
            out.print(one.url, markup=False)
    if json_:
        print(json.dumps(found))
