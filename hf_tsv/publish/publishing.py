"""An output folder -> repositories on the Hub: what goes where, whether it may, and in which commit."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from hf_tsv.cards import (
    LICENCE_ID,
    Licence,
    all_terms,
    check_card,
    inherited,
    is_one_adapter,
    licence_in,
    of_task,
    published,
    published_config,
    render_adapters,
    render_card,
)
from hf_tsv.checkpoints.model_files import matches
from hf_tsv.errors import HubError, OutputError, PublishError, counted, some
from hf_tsv.files.names import CARD_FILE, LOCK_FILE, MASKS, PARTS, PICTURES, RECIPE_FILE, RECORD_FILE
from hf_tsv.hub import Commit, Hub, Pushed, Repository, Target
from hf_tsv.lora.format import ADAPTER_CONFIG
from hf_tsv.lora.formats import ADAPTERS
from hf_tsv.record.record import read_record

TASK = "{task}"
CONFIG_MAX_BYTES = 1_000_000  # above every configuration; a tokenizer's vocabulary names no folder
OWN_FOLDERS = (*ADAPTERS.values(), MASKS, PARTS, PICTURES)
STALE = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "adapter_model*.bin",
    ADAPTER_CONFIG,
)


@dataclass(frozen=True)
class Pushing:
    """Where an output is pushed to, and how.

    Attributes:
        repo: `user/name`; for adapters also `user/name-{task}`, a repository each.
        create_pr: Open a pull request instead of committing to the main branch.
        private: Whether a new repository is private; None for private where a source is private or gated, else as its
            owner's settings say.
        license: The licence to carry, in the Hub's word; None for what follows from the sources.
        message: What the commit says in its first line, or more; None for what was done. The sources come below it.
    """

    repo: str
    create_pr: bool = False
    private: bool | None = None
    license: str | None = None
    message: str | None = None

    def repositories(self, tasks: Sequence[str] | None) -> dict[str, tuple[str, ...] | None]:
        """The repositories, each with the tasks that go there; None for a merged model, which is no task's.

        Raises:
            PublishError: `{task}` in the name of a merged model's.
        """
        if TASK not in self.repo:
            return {self.repo: None if tasks is None else tuple(tasks)}
        if tasks is None:
            raise PublishError(f"{self.repo}: a merged model is one repository, expected a name without {TASK}")
        return {self.repo.replace(TASK, task): (task,) for task in tasks}


@dataclass(frozen=True)
class Parcel:
    """What goes into one repository.

    Attributes:
        record: What of the output's record is about it.
        files: By path in the repository: a file, or its content where that is published otherwise than it lies there.
        card: Makes the card from earlier ones, under a chosen licence or None.
        old_card: The card that lies in the output; empty when there is none.
        named: What each model of the recipe, which goes along as a whole, says of itself.
    """

    record: Mapping[str, Any]
    files: Mapping[str, Path | bytes]
    card: Callable[..., str]
    old_card: str
    named: Sequence[Mapping[str, Any]]

    @property
    def nbytes(self) -> int:
        return sum(f.stat().st_size if isinstance(f, Path) else len(f) for f in self.files.values())

    def files_in(self, repo_id: str) -> dict[str, Path | bytes]:
        """The files as they lie in that repository, where adapters on the merged model name it as their base."""
        return dict(self.files) | {
            path: _on(repo_id, file) for path, file in self.files.items() if self._is_on_it(path)
        }

    def _is_on_it(self, path: str) -> bool:
        return "adapters" in self.record and path.endswith(f"/{ADAPTER_CONFIG}")


@dataclass(frozen=True)
class Destination:
    """A repository that was found fit for what is to go there.

    Attributes:
        repository: The way to it.
        target: How it stands.
        private: Whether it is made private, when it has to be made.
        licence: The licence chosen by a person, None for what follows from the sources.
        tasks: The tasks whose adapters go there; None for all that the output is.
        message: What the commit says, None for what was done.
    """

    repository: Repository
    target: Target
    private: bool | None
    licence: Licence | None
    tasks: tuple[str, ...] | None = None
    message: str | None = None

    def prepare(self) -> None:
        """Make the repository if it isn't there."""
        if not self.target.exists:
            self.repository.create(private=self.private)


def parcel(out: Path, tasks: Sequence[str] | None) -> Parcel:
    """What of an output goes into one repository.

    Args:
        out: A merged model, a compression, or the folder of one adapter.
        tasks: Of a compression, those that go there; a single one lies at the repository's root. None for all of it.

    Raises:
        OutputError: the folder wasn't made by hf-tsv, or isn't whole.
    """
    root, adapter = _root(out)
    record = read_record(root)
    if adapter and "tasks" not in record:
        raise OutputError(f"{out}: an adapter on the merged model in {root}, and goes along with that. Push {root}")
    if adapter:
        return _adapter(root, record, out.resolve().name, {adapter: "."})
    if tasks is not None and len(tasks) == 1 and "tasks" in record:
        first, *more = record["tasks"][tasks[0]]
        return _adapter(root, record, tasks[0], {first: ".", **{p: f"{ADAPTERS[p]}/{tasks[0]}" for p in more}})
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    old = _text(root / CARD_FILE)
    return Parcel(record, _published(files, root, record), partial(render_card, record, root), old, all_terms(record))


def tasks_of(out: Path) -> tuple[str, ...] | None:
    """The tasks whose adapters an output holds; None for a merged model, or the folder of one adapter."""
    root, adapter = _root(out)
    if adapter or is_one_adapter(root) or "tasks" not in (record := read_record(root)):
        return None
    return tuple(record["tasks"])


def check(
    pushing: Pushing,
    repo_id: str,
    terms: Sequence[Mapping[str, Any]],
    named: Sequence[Mapping[str, Any]],
    hub: Hub,
    *,
    card: str = "",
    tasks: tuple[str, ...] | None = None,
) -> Destination:
    """Whether something may go where it is to go, before anything is written.

    Args:
        pushing: What was asked for.
        repo_id: The repository.
        terms: What the sources of what goes there say of themselves: the licence follows from it.
        named: The same of all models that the recipe names, which goes along: not all may know of private ones.
        hub: How to reach the Hub.
        card: The output's card, if there is one: a licence that a person wrote into its header counts as chosen.
        tasks: The tasks whose adapters go there; None for all that the output is.

    Raises:
        HubError: the repository can't be written.
        PublishError: licence or privacy forbids it.
    """
    licence = _settled_licence(pushing.license, terms, card)
    repository = Repository(hub, repo_id, create_pr=pushing.create_pr)
    target = repository.check()
    secret = [told for told in named if _is_private(told) and told not in terms]
    private = _privacy(target, pushing.private, [*terms, *secret])
    return Destination(repository, target, private, licence, tasks, pushing.message)


@contextmanager
def sending(to: Destination | None, waiting: Callable[[], None]) -> Iterator[Callable[[str, Path], None]]:
    """A function that takes finished files, to be uploaded ahead of the commit while the caller goes on.

    Leaving the context waits for the uploads, after a call of `waiting`. A file that can't be uploaded ends the
    sending and is nobody's loss: `deliver` uploads what is missing, or tells why it can't. Without a destination
    nothing is sent.
    """
    if to is None:
        yield lambda path, file: None
        return
    pool, sender = ThreadPoolExecutor(1), _Sender(to)
    try:
        yield lambda path, file: _forget(pool.submit(sender, path, file))
        waiting()
        pool.shutdown()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _forget(_: Future[None]) -> None:
    """The sender keeps what goes wrong to itself."""


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
    return parcel.card(olds=[card for card in (on_hub, parcel.old_card) if card], licence=to.licence)


def licence_of_card(option: str | None, terms: Sequence[Mapping[str, Any]], card: str) -> Licence | None:
    """The licence that a person chose, by the option or in a card's header; None when nobody did.

    Raises:
        PublishError: the option is no licence.
    """
    if option and not re.fullmatch(LICENCE_ID, option):
        raise PublishError(f"--license {option}: no word of the Hub's for a licence, expected one like apache-2.0")
    if option:
        return Licence(option)
    following, written = inherited(terms).licence, licence_in(card)
    if not written.get("license") or (following and written["license"] == following.id):
        return None
    return Licence(written["license"], written.get("license_name"), written.get("license_link"))


def _settled_licence(option: str | None, terms: Sequence[Mapping[str, Any]], card: str) -> Licence | None:
    """The licence chosen; None where one follows from the sources.

    Raises:
        PublishError: none follows, and nobody chose one.
    """
    chosen, following = licence_of_card(option, terms, card), inherited(terms)
    if chosen or following.licence:
        return chosen
    named = ", ".join(f"{t['name']}: {t.get('license_name') or t.get('license') or 'none named'}" for t in terms)
    raise PublishError(f"licence: {following.why} ({named}). Look at their terms, then pass --license")


def _is_private(terms: Mapping[str, Any]) -> bool:
    return terms.get("private", False) is not False


def _privacy(target: Target, wish: bool | None, terms: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether to make it private, if it has to be made.

    Raises:
        PublishError: what not all may see would be seen by all, or the repository is otherwise than it was asked for.
    """
    hidden = [t["name"] for t in terms if t.get("gated") or _is_private(t)]
    if target.exists and wish is not None and target.private != wish:
        how, flag = ("public", "--private") if wish else ("private", "--public")
        raise PublishError(
            f"{target.repo_id}: exists and is {how}, but {flag} was given. Change that in its settings on the Hub, or"
            " choose another repository"
        )
    if target.exists and hidden and not target.private and wish is None:
        raise PublishError(
            f"{target.repo_id}: is public, but not everyone may see {some(hidden)}. Pass --public if its owner allows"
            " that, or choose a private repository"
        )
    return True if hidden and wish is None else wish


def _root(out: Path) -> tuple[Path, str | None]:
    """The output that a folder is, or that it is an adapter of, and that adapter's profile."""
    profiles = {folder: profile for profile, folder in ADAPTERS.items()}
    place = out.resolve()
    if (place / ADAPTER_CONFIG).is_file() and place.parent.name in profiles:
        return place.parent.parent, profiles[place.parent.name]
    return out, None


def _adapter(root: Path, record: Mapping[str, Any], task: str, places: Mapping[str, str]) -> Parcel:
    """Adapters of one task, by profile, with where each lies in the repository."""
    part = of_task(record, task)
    files = {name: root / name for name in (RECORD_FILE, RECIPE_FILE, LOCK_FILE)}
    for profile, place in places.items():
        folder = root / ADAPTERS[profile] / task
        files |= {_joined(place, p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    by_task = {(task, profile): place for profile, place in places.items()}
    old = _text(root / ADAPTERS[next(iter(places))] / task / CARD_FILE)
    card = partial(render_adapters, part, root, by_task)
    return Parcel(part, _published(files, root, part), card, old, all_terms(record))


def _joined(place: str, path: Path) -> str:
    return path.as_posix() if place == "." else f"{place}/{path.as_posix()}"


def _published(files: Mapping[str, Path], root: Path, record: Mapping[str, Any]) -> dict[str, Path | bytes]:
    """The files as they are published: hidden ones not at all, and none with a folder of this machine in it."""
    shown = {path: file for path, file in files.items() if path != CARD_FILE and not _is_hidden(path)}
    return {path: _config(file) for path, file in shown.items()} | dict(published(root, record))


def _config(file: Path) -> Path | bytes:
    if file.suffix != ".json" or file.stat().st_size > CONFIG_MAX_BYTES:
        return file
    try:
        text = file.read_text("utf-8")
        shown = published_config(text)
    except (ValueError, RecursionError):
        return file
    return file if shown == text else shown.encode()


def _on(repo_id: str, config: Path | bytes) -> bytes:
    """An adapter's configuration with another base."""
    text = config.read_bytes() if isinstance(config, Path) else config
    told = json.loads(text) | {"base_model_name_or_path": repo_id}
    return (json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in Path(path).parts)


def _is_stale(path: str) -> bool:
    """Whether a file that isn't pushed now is of an earlier model: its weights, or what would be read with them."""
    folder, _, rest = path.partition("/")
    return folder in OWN_FOLDERS if rest else matches(STALE, [path])


def _title(record: Mapping[str, Any]) -> str:
    if "tasks" in record:
        return f"{some(list(record['tasks']))}: adapter by hf_tsv ({record['method']})"
    return f"Merge {counted(len(record['sources']) - 1, 'model')} with hf_tsv ({record['method']})"


def _sources(record: Mapping[str, Any]) -> str:
    """What it was made of, each at its commit; folders have none."""
    sources = [f"{source['model']}@{source['revision']}" for source in record["sources"] if source["revision"]]
    digest = sha256(json.dumps(record["sources"], sort_keys=True).encode()).hexdigest()[:12]
    return "\n".join([f"hf_tsv {record['versions']['hf_tsv']}, sources {digest}", *sources])


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""
