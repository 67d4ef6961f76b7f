"""Sending an output to a repository: files ahead of the commit, while they are made, and the commit itself."""

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
from hf_tsv.record import AdaptersRecord, MergeRecord, Record

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
    """A function that takes finished files, to be uploaded ahead of the commit while the caller goes on.

    Leaving the context waits for the uploads, after a call of `waiting`. A file that can't be uploaded ends the
    sending without an error: `deliver` uploads what is missing, or says why it can't. Without a destination nothing is
    sent.
    """
    if to is None:
        yield lambda path, file: None
        return
    # One thread: shards are large, and a second upload would share the first one's bandwidth.
    pool, sender = ThreadPoolExecutor(1), _Sender(to)

    def send(path: str, file: Path) -> None:
        pool.submit(sender, path, file)

    try:
        yield send
        waiting()
        pool.shutdown()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Sender:
    """Uploads one file after another, until one can't be uploaded."""

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
    """Upload what isn't there yet, and commit.

    Raises:
        PublishError: the Hub would refuse the card.
        HubError: the Hub refuses or fails.
    """
    if problems := check_card(_card(parcel, to, None)):
        raise PublishError(f"{to.repository.repo_id}: {CARD_FILE}: {problem}. Correct it" for problem in problems)
    to.prepare()
    title, _, text = (to.message or _title(parcel.record)).strip().partition("\n")
    return to.repository.commit(
        Commit(
            parcel.files_in(to.repository.repo_id),
            partial(_card, parcel, to),
            _is_stale,
            title,
            f"{text.strip()}\n\n{_sources(parcel.record)}".strip(),
        )
    )


def _card(parcel: Parcel, to: Destination, on_hub: str | None) -> str:
    """The card, around what people wrote into the one on the Hub and the one in the output."""
    olds = [card for card in (on_hub, parcel.old_card) if card]
    return parcel.card(olds=olds, licence=to.licence)


def _is_stale(path: str) -> bool:
    """Whether a file that isn't pushed now is an earlier model's: its weights, or what would be read with them."""
    folder, _, rest = path.partition("/")
    return folder in OWN_FOLDERS if rest else matches(STALE, [path])


def _title(record: MergeRecord | AdaptersRecord) -> str:
    if isinstance(record, AdaptersRecord):
        return f"{some(list(record.adapters))}: adapter by hf_tsv ({record.method})"
    return f"Merge {counted(len(record.sources) - 1, 'model')} with hf_tsv ({record.method})"


def _sources(record: Record) -> str:
    """What it was made of, each model at its commit; folders have none."""
    pinned = [f"{source.model}@{source.revision}" for source in record.sources if source.revision]
    entries = [source.model_dump(mode="json") for source in record.sources]
    digest = sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:12]
    return "\n".join([f"hf_tsv {record.versions.hf_tsv}, sources {digest}", *pinned])
