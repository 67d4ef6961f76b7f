"""Push an output folder to the Hub."""

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

    Access, name, privacy and licence are checked before anything is uploaded. Each repository gets one commit, or none
    if it already holds everything; files that the Hub has are not uploaded again.

    Args:
        out: The output folder.
        repo: The repository, `user/name`; for adapters also `user/name-{task}`, one repository per task.
        create_pr: Open a pull request instead of committing to the main branch.
        private: True for a private new repository. None: private if a source is private or gated, otherwise as its
            owner's settings say. False also allows publishing what was made from such sources.
        license: The Hub's identifier of the licence; None for the licence that follows from the sources.
        commit_message: The commit message, of one or more lines (default: what was done).
        hub: The connection to the Hub.

    Returns:
        The outcome for each repository.

    Raises:
        OutputError: the folder is not an output.
        PublishError: licence or privacy forbids it.
        HubError: the Hub refused or failed; the message says what was done.
    """
    pushing = Pushing(repo, create_pr, private, license, commit_message)
    return [deliver(*prepared) for prepared in prepare_push(Path(out), pushing, hub or Hub())]


def prepare_push(out: Path, pushing: Pushing, hub: Hub) -> list[tuple[Parcel, Destination]]:
    """Check what `push` would do, and return each parcel with its destination; nothing is written.

    Raises the errors of `push`.
    """
    parcels = {repo: parcel(out, tasks) for repo, tasks in pushing.repositories(tasks_of(out)).items()}
    # Checked before any request to the Hub, because it needs none.
    for repo, one in parcels.items():
        source_ids = [in_repository(source.model)[0] for source in one.record.sources]
        check_replaces_no_source(pushing, repo, source_ids)
    prepared = []
    for repo, one in parcels.items():
        contents = Contents(all_terms(one.record), one.named, one.old_card)
        prepared.append((one, check(pushing, repo, contents, hub)))
    return prepared
