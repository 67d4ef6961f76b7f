"""Sending an output to a repository: files are uploaded while others are written, then everything is committed."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

from hf_tsv.cards import check_card
from hf_tsv.checkpoints.model_files import matches
from hf_tsv.errors import HubError, PublishError, counted, some
from hf_tsv.files.names import CARD_FILE, MASKS, PARTS, PICTURES
from hf_tsv.hub import Commit, Pushed
from hf_tsv.lora.format import ADAPTER_CONFIG
from hf_tsv.lora.formats import ADAPTERS
from hf_tsv.publish.check import Destination
from hf_tsv.publish.parcel import Parcel
from hf_tsv.record import AdaptersRecord

OWN_FOLDERS = (*ADAPTERS.values(), MASKS, PARTS, PICTURES)
STALE = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "adapter_model*.bin",
    ADAPTER_CONFIG,
)


@contextmanager
def sending(to: Destination | None, waiting: Callable[[], None]) -> Iterator[Callable[[str, Path], None]]:
    """Yield a function that uploads finished files in the background, before the commit.

    Leaving the context calls `waiting`, then waits for the uploads. If a file can't be uploaded, sending stops without
    an error: `deliver` uploads the missing files, or reports why it can't. Without a destination nothing is sent.
    """
    if to is None:
        yield lambda path, file: None
        return
    # One thread: shards are large, and a second upload would share the first one's bandwidth.
    pool = ThreadPoolExecutor(1)
    sender = _Sender(to)

    def send(path: str, file: Path) -> None:
        pool.submit(sender, path, file)

    try:
        yield send
        waiting()
        pool.shutdown()
    finally:
        # After an error, pending uploads are cancelled. After the shutdown above, this does nothing.
        pool.shutdown(wait=False, cancel_futures=True)


class _Sender:
    """Uploads one file after another, until an upload fails."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        self._works = True

    def __call__(self, path: str, file: Path) -> None:
        if not self._works:
            return
        try:
            self._to.prepare()
            self._to.repository.send(path, file)
        except HubError:
            self._works = False


def deliver(parcel: Parcel, to: Destination) -> Pushed:
    """Upload the files that are still missing, and commit.

    Raises:
        PublishError: the Hub would refuse the card.
        HubError: the Hub refuses or fails.
    """
    repo_id = to.repository.repo_id
    problems = check_card(_card(parcel, to, None))
    if problems:
        raise PublishError(f"{repo_id}: {CARD_FILE}: {problem}. Correct it" for problem in problems)
    to.prepare()
    record = parcel.record
    if isinstance(record, AdaptersRecord):
        done = f"{some(list(record.adapters))}: adapter by hf_tsv ({record.method})"
    else:
        num_models = len(record.sources) - 1  # excluding the base
        done = f"Merge {counted(num_models, 'model')} with hf_tsv ({record.method})"
    title, _, text = (to.message or done).strip().partition("\n")
    # The sources: the Hub models at their commits, and a digest of all, because folders have no commit.
    entries = [source.model_dump(mode="json") for source in record.sources]
    digest = sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:12]
    lines = [f"hf_tsv {record.versions.hf_tsv}, sources {digest}"]
    lines += [f"{source.model}@{source.revision}" for source in record.sources if source.revision]
    sources = "\n".join(lines)
    description = f"{text.strip()}\n\n{sources}".strip()
    commit = Commit(parcel.files_in(repo_id), partial(_card, parcel, to), _is_stale, title, description)
    return to.repository.commit(commit)


def _card(parcel: Parcel, to: Destination, on_hub: str | None) -> str:
    """Make the card, keeping what people wrote into the one on the Hub and the one in the output."""
    olds = [card for card in (on_hub, parcel.old_card) if card]
    return parcel.card(olds=olds, licence=to.licence)


def _is_stale(path: str) -> bool:
    """Return True if a file that isn't pushed now is an earlier model's: its weights, or files read with them."""
    folder, _, rest = path.partition("/")
    # Of subfolders, only those that hf_tsv writes: others may be a person's.
    return folder in OWN_FOLDERS if rest else matches(STALE, [path])
