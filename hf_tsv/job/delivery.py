"""Delivery of a finished output to the Hub, and the checks before it."""

from collections.abc import Sequence
from pathlib import Path

from hf_tsv.cards import NamedTerms, named_terms
from hf_tsv.errors import HubError, OutputError, PublishError
from hf_tsv.files.names import LOCK_FILE
from hf_tsv.hub import Hub
from hf_tsv.merging.plan import Plan
from hf_tsv.merging.progress import Progress
from hf_tsv.publish.check import Contents, Destination, Pushing, check, check_replaces_no_source
from hf_tsv.publish.parcel import parcel
from hf_tsv.publish.send import deliver
from hf_tsv.recipe import in_repository
from hf_tsv.record import MergeRecord, PushedTo, RestoredRecord, read_record
from hf_tsv.sources.description import described, lock_text
from hf_tsv.sources.models import Source

UPLOADING = "uploading"


def targets(
    pushing: Pushing | str | None, sources: Sequence[Source], tasks: Sequence[str] | None, hub: Hub
) -> list[tuple[list[NamedTerms], Destination]]:
    """Check the destinations of an output made from these sources, and return each with its sources' terms.

    Args:
        pushing: The requested push; None for an output that stays on this machine.
        sources: The recipe's models.
        tasks: The tasks that get one adapter each; None for a merged model, or a merge as one adapter.
        hub: The connection to the Hub.

    Raises:
        HubError: a repository can't be written.
        PublishError: licence or privacy forbids the push, or it would replace a source.
    """
    if pushing is None:
        return []
    pushing = Pushing(pushing) if isinstance(pushing, str) else pushing
    entries = described(sources, hub)
    named = named_terms(entries)
    source_ids = [in_repository(source.ref.path)[0] for source in sources]
    checked = []
    for repo, chosen in pushing.repositories(tasks).items():
        check_replaces_no_source(pushing, repo, source_ids)
        # Only the base and the chosen tasks are part of this destination's files.
        own_entries = [entry for entry in entries if chosen is None or entry.task in (None, *chosen)]
        terms = named_terms(own_entries)
        contents = Contents(terms, named, tasks=chosen)
        checked.append((terms, check(pushing, repo, contents, hub)))
    return checked


def delivered(out: Path, destinations: Sequence[Destination], progress: Progress) -> list[PushedTo]:
    """Push a finished output to each destination, and return its new places on the Hub.

    Raises:
        HubError, PublishError: as for `deliver`, adding how to resume.
    """
    if not destinations:
        return []
    progress.advance(0.0, UPLOADING)  # counts no work; it only shows that uploading has begun
    try:
        pushed = [deliver(parcel(out, to.tasks), to) for to in destinations]
    except (HubError, PublishError) as error:
        problems = [*error.problems, f"{out} is complete. The same command goes on with the push"]
        raise type(error)(problems) from error
    return [PushedTo(one.repo_id, one.url) for one in pushed]


def is_made(out: Path, plan: Plan, sources: Sequence[Source]) -> bool:
    """Return whether OUT is what a job would make from these sources: with the same lock and, for a model, files."""
    try:
        record = read_record(out)
        lock = (out / LOCK_FILE).read_text("utf-8")
    except (OutputError, OSError):
        return False
    if isinstance(record, RestoredRecord) or lock != lock_text(plan.recipe, sources):
        return False
    # Terms may have changed on the Hub since then, but that changes no weights.
    made_of = [source.model_copy(update={"terms": ()}) for source in record.sources]
    if made_of != [source.describe() for source in sources]:
        return False
    files = record.files if isinstance(record, MergeRecord) else ()
    return files == tuple(shard.file for shard in plan.shards)
