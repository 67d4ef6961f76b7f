"""Pushing an output folder to the Hub."""

from pathlib import Path

from hf_tsv.cards import all_terms
from hf_tsv.hub import Hub, Pushed
from hf_tsv.publish.check import Contents, Destination, Pushing, check, check_replaces_no_source
from hf_tsv.publish.parcel import Parcel, parcel, tasks_of
from hf_tsv.publish.send import deliver
from hf_tsv.recipe import in_repository


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
        commit_message: The commit message: its first line, and maybe more (default: what was done).
        hub: How to reach the Hub.

    Raises:
        OutputError: the folder is not an output.
        PublishError: licence or privacy forbids it.
        HubError: the Hub refuses or fails; says what was done.
    """
    pushing = Pushing(repo, create_pr, private, license, commit_message)
    return [deliver(*prepared) for prepared in prepare_push(Path(out), pushing, hub or Hub())]


def prepare_push(out: Path, pushing: Pushing, hub: Hub) -> list[tuple[Parcel, Destination]]:
    """What `push` would do, checked; nothing is written. Errors are those of `push`."""
    parcels = {repo: parcel(out, tasks) for repo, tasks in pushing.repositories(tasks_of(out)).items()}
    # Before anything is asked of the Hub, for this is known without it.
    for repo, one in parcels.items():
        source_ids = [in_repository(source.model)[0] for source in one.record.sources]
        check_replaces_no_source(pushing, repo, source_ids)
    prepared = []
    for repo, one in parcels.items():
        contents = Contents(all_terms(one.record), one.named, one.old_card)
        prepared.append((one, check(pushing, repo, contents, hub)))
    return prepared
