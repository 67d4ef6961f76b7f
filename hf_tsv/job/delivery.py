"""Where an output goes when it is made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_tsv.cards import all_terms
from hf_tsv.errors import HubError, OutputError, PublishError
from hf_tsv.files.names import LOCK_FILE
from hf_tsv.hub import Hub
from hf_tsv.merging.progress import Progress
from hf_tsv.publish.publishing import Destination, Pushing, check, deliver, parcel
from hf_tsv.recipe import Recipe, in_repository
from hf_tsv.record.record import read_record
from hf_tsv.sources.description import described, lock_text
from hf_tsv.sources.models import Source

UPLOADING = "uploading"


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
