"""The verbs of the Hub: push and card, and what merges and compressions need of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_tsv.addresses import in_repository
from hf_tsv.cards import all_terms, write_card
from hf_tsv.errors import HubError, OutputError, PublishError
from hf_tsv.hub import Hub, Pushed
from hf_tsv.inputs import plan_of
from hf_tsv.outputs import CARD_FILE, LOCK_FILE
from hf_tsv.planner import DEFAULT_SHARD_SIZE, Plan
from hf_tsv.publishing import (
    Destination,
    Parcel,
    Pushing,
    check,
    deliver,
    licence_of_card,
    parcel,
    tasks_of,
)
from hf_tsv.recipe import Recipe
from hf_tsv.record import read_record
from hf_tsv.resources import check_disks
from hf_tsv.run import Progress
from hf_tsv.sources import Source, Stream, bytes_to_download, bytes_to_stream, described, lock_text, open_sources

UPLOADING = "uploading"


def push(
    out: str | Path,
    repo: str,
    *,
    create_pr: bool = False,
    private: bool | None = None,
    license: str | None = None,
    commit_message: str | None = None,
    hub: Hub | None = None,
) -> list[Pushed]:
    """Push an output folder to the Hub: a merged model, adapters, or one adapter.

    Access, name, privacy and licence are checked before a byte is uploaded. Each repository gets one commit, or none
    when it holds everything; what the Hub has is not uploaded again.

    Args:
        out: The folder.
        repo: `user/name`; for adapters also `user/name-{task}`, a repository each.
        create_pr: Open a pull request instead of committing to the main branch.
        private: Whether a new repository is private; None for private where a source is private or gated, else as its
            owner's settings say. False says that such sources may go public.
        license: The licence to carry, in the Hub's word; None for what follows from the sources.
        commit_message: What the commit says in its first line, or more; what was done unless given.
        hub: How to reach the Hub.

    Raises:
        OutputError: the folder is no output.
        PublishError: licence or privacy forbids it.
        HubError: the Hub refuses or fails; says what was done.
    """
    pushing = Pushing(repo, create_pr, private, license, commit_message)
    return [deliver(*prepared) for prepared in prepare_push(Path(out), pushing, hub or Hub())]


def prepare_push(out: Path, pushing: Pushing, hub: Hub) -> list[tuple[Parcel, Destination]]:
    """What `push` would do, checked; nothing is written. Errors are those of `push`."""
    parcels = {repo: parcel(out, tasks) for repo, tasks in pushing.repositories(tasks_of(out)).items()}
    for repo, found in parcels.items():
        _check_replaces_no_source(pushing, repo, [source["model"] for source in found.record["sources"]])
    destinations = [
        check(pushing, repo, all_terms(found.record), found.named, hub, card=found.old_card)
        for repo, found in parcels.items()
    ]
    return list(zip(parcels.values(), destinations, strict=True))


def card(out: str | Path, *, license: str | None = None) -> Path:
    """Write the card of an output again, and of a compression those of its adapters; the path of the first.

    What people wrote outside of our marks stays, and so does what they added to the header.

    Args:
        out: The output folder.
        license: The licence to carry, in the Hub's word; None for what its header or the sources say.

    Raises:
        OutputError: the folder is no output.
        PublishError: no such licence.
    """
    out = Path(out)
    record, path = read_record(out), out / CARD_FILE
    old = path.read_text("utf-8") if path.is_file() else ""
    write_card(record, out, licence=licence_of_card(license, all_terms(record), old), keep=[old] if old else [])
    return path


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        plan: What it would merge.
        download_bytes: What it would have to download.
        stream_bytes: What it would read by byte range.
        targets: Where the output would go, each with what the sources of it say of themselves.
    """

    plan: Plan
    download_bytes: int
    stream_bytes: int
    targets: list[tuple[list[dict[str, Any]], Destination]]


def preview(
    recipe: Recipe,
    pushing: Pushing | None,
    *,
    hub: Hub,
    out: Path,
    tasks: Sequence[str] | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    stream: Stream = "none",
) -> Preview:
    """What a merge, or of these tasks a compression, would do. Nothing is written; errors are those of doing it."""
    sources = open_sources(recipe, hub)
    planned = plan_of(recipe, sources, max_shard_size, hub)
    downloads, streamed = bytes_to_download(sources, hub, stream=stream), bytes_to_stream(sources, hub, stream)
    check_disks([(out.parent, 0 if tasks else planned.bytes_out), (hub.cache_dir, downloads)])
    return Preview(planned, downloads, streamed, targets(pushing, sources, tasks, hub))


def targets(
    pushing: Pushing | str | None, sources: Sequence[Source], tasks: Sequence[str] | None, hub: Hub
) -> list[tuple[list[dict[str, Any]], Destination]]:
    """Where an output of these sources is to go, checked, each with what the sources of it say of themselves."""
    if pushing is None:
        return []
    pushing = Pushing(pushing) if isinstance(pushing, str) else pushing
    told, found = described(sources, hub), []
    named = all_terms({"sources": told})
    for repo, chosen in pushing.repositories(tasks).items():
        _check_replaces_no_source(pushing, repo, [source.ref.path for source in sources])
        terms = all_terms({"sources": [s for s in told if chosen is None or s["task"] in (None, *chosen)]})
        found.append((terms, check(pushing, repo, terms, named, hub, tasks=chosen)))
    return found


def _check_replaces_no_source(pushing: Pushing, repo: str, models: Sequence[str]) -> None:
    if repo in {in_repository(model)[0] for model in models} and not pushing.create_pr:
        raise PublishError(
            f"{repo}: is one of the recipe's models, which the push would replace. Choose another name, or pass"
            " --create-pr"
        )


def delivered(out: Path, destinations: Sequence[Destination], progress: Progress) -> dict[str, Any]:
    """Push a finished output; what the record says of that, nothing where nothing was to be pushed."""
    if not destinations:
        return {}
    progress.advance(0.0, UPLOADING)
    try:
        pushed = [deliver(parcel(out, to.tasks), to) for to in destinations]
    except (HubError, PublishError) as error:
        raise type(error)([*error.problems, f"{out} is complete. The same command goes on with the push"]) from error
    return {"pushed": [{"repo_id": one.repo_id, "url": one.url} for one in pushed]}


def is_made(out: Path, recipe: Recipe, sources: Sequence[Source], how: Sequence[str]) -> bool:
    """Whether OUT is what a run would make of these sources: of a merge the same files, of a compression the flags."""
    try:
        record = read_record(out)
        lock = (out / LOCK_FILE).read_text("utf-8")
    except (OutputError, OSError):
        return False
    made_of = [{key: value for key, value in source.items() if key != "terms"} for source in record["sources"]]
    same = lock == lock_text(recipe, sources) and made_of == [source.describe() for source in sources]
    return same and list(how) == record.get("flags", record.get("files"))
