"""The models that a recipe names: pinned, opened, fetched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hf_tsv.checkpoints.aligned import aligned
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.errors import CheckpointError, HfTsvError
from hf_tsv.hub import Hub, Pinned, facts_of_folder
from hf_tsv.lora.read.adapter import Adapter, is_adapter, open_adapter
from hf_tsv.lora.read.changes import Place, Places
from hf_tsv.recipe import ModelRef, Recipe, is_local, pinned_text
from hf_tsv.sources.companions import Companions
from hf_tsv.vocabulary.tokenizer import VOCABULARY_FILES, has_tokenizer


@dataclass(frozen=True)
class Parts:
    """What a reference names: a model, an adapter, or one on the other.

    Attributes:
        model: The model's tensors as its own files name them; None for an adapter alone.
        folder: Where its files, or those of an adapter alone, lie; None before `fetch`.
        pin: Their commit on the Hub; None for a local folder.
        adapter: The adapter. From the Hub, too, it lies on this machine from the start: it is small.
        adapter_pin: Its commit on the Hub where it is on top of a model.
        adapter_folder: Where it lies then.
    """

    model: Checkpoint | None
    folder: Path | None
    pin: Pinned | None
    adapter: Adapter | None = None
    adapter_pin: Pinned | None = None
    adapter_folder: Path | None = None


@dataclass(frozen=True)
class Source:
    """One model of a recipe.

    Attributes:
        ref: What the recipe calls it.
        task: Its task; None for the base.
        checkpoint: Its tensors. From the Hub before `fetch`: read by byte range.
        parts: What it is made of.
    """

    ref: ModelRef
    task: str | None
    checkpoint: Checkpoint
    parts: Parts

    @property
    def folder(self) -> Path | None:
        return self.parts.folder

    @property
    def pin(self) -> Pinned | None:
        return self.parts.pin

    @property
    def revision(self) -> str | None:
        """The commit sha it is pinned to; None for a local folder."""
        return self.pin.sha if self.pin else None

    @property
    def identity(self) -> str:
        """What changes when its content does."""
        is_pinned = self.pin and (self.parts.adapter_pin or not self.ref.adapter)
        return self.pinned if is_pinned else self.checkpoint.fingerprint()

    @property
    def pinned(self) -> str:
        """The reference that means the same content for ever, as far as it can be said."""
        if not self.pin and not self.parts.adapter_pin:
            return self.ref.text
        return "+".join(filter(None, (_at(self.ref.path, self.pin), _at(self.ref.adapter, self.parts.adapter_pin))))

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        return {
            "role": "task" if self.task else "base",
            "task": self.task,
            "model": self.ref.path,
            "revision": self.revision,
            "fingerprint": None if self.revision else self.checkpoint.fingerprint(),
            **({"adapter": _at(self.ref.adapter, self.parts.adapter_pin)} if self.ref.adapter else {}),
        }


def described(sources: Sequence[Source], hub: Hub) -> list[dict[str, Any]]:
    """What the record says of each source; as `terms`, what its model and its adapter say of themselves."""
    return [source.describe() | {"terms": [_terms(*place, hub) for place in _places_of(source)]} for source in sources]


def _places_of(source: Source) -> list[tuple[str, Pinned | None]]:
    on_top = [(source.ref.adapter, source.parts.adapter_pin)] if source.ref.adapter else []
    return [(source.ref.path, source.pin), *on_top]


def _terms(path: str, pin: Pinned | None, hub: Hub) -> dict[str, Any]:
    """Licence, languages, datasets; and of a model on the Hub, whether all may see it (None: not known offline)."""
    facts = hub.facts(pin) if pin else facts_of_folder(Path(path).expanduser())
    return {
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "language": list(facts.languages),
        "datasets": list(facts.datasets),
        **({"private": facts.private, "gated": facts.gated} if pin else {}),
    }


def open_sources(recipe: Recipe, hub: Hub) -> list[Source]:
    """Every model of a recipe, the base first: access checked, pinned to a commit, its headers read.

    Nothing is downloaded but headers, and adapters. Fine-tuned models come under the base's names.

    Raises:
        HfTsvError: models that can't be read, every one of them told.
    """
    return _opened([(recipe.base, None), *((m.ref, m.name) for m in recipe.models)], hub)


def open_model(ref: ModelRef, hub: Hub) -> Source:
    """One model by itself, on this machine, with the adapter that the reference puts on it.

    Raises:
        HfTsvError: it can't be had or read.
    """
    return fetch(_opened([(ref, None)], hub), hub)[0]


def _opened(asked: list[tuple[ModelRef, str | None]], hub: Hub) -> list[Source]:
    pins = _pinned([ref for ref, _ in asked], hub)
    opened: dict[ModelRef, Parts] = {}
    problems: list[str] = []
    for ref in dict.fromkeys(ref for ref, _ in asked):
        try:
            opened[ref] = _open(ref, hub, pins)
        except HfTsvError as error:
            problems.extend(error.problems)
    if problems:
        raise CheckpointError(problems)
    return _joined(asked, opened, hub)


Stream = Literal["none", "tasks", "all"]


def fetch(
    sources: Sequence[Source], hub: Hub, *, stream: Stream = "none", came: Callable[[int], None] | None = None
) -> list[Source]:
    """The same sources with their files on this machine, but for the weights of those that are streamed.

    `came` is told how many bytes have come since it was last called, from several threads.

    Raises:
        HubError: one can't be downloaded.
        ResourceError: the disk is full.
    """
    whole = _whole_by_pin(sources, stream)
    folders = {pin: hub.download(pin, weights=weights, progress=came) for pin, weights in whole.items()}
    asked = [(source.ref, source.task) for source in sources]
    fetched = {s.ref: _on_disk(s.parts, folders[s.pin], whole[s.pin]) if s.pin else s.parts for s in sources}
    return _joined(asked, fetched, hub)


def _whole_by_pin(sources: Sequence[Source], stream: Stream) -> dict[Pinned, bool]:
    """Whether the weights come along, for everything that comes from the Hub."""
    wanted = [(s.pin, stream == "none" or (stream == "tasks" and s.task is None)) for s in sources if s.pin]
    return {pin: any(weights for other, weights in wanted if other == pin) for pin, _ in wanted}


def _pinned(refs: Sequence[ModelRef], hub: Hub) -> dict[tuple[str, str | None], Pinned]:
    """The commits of all models and adapters that are on the Hub, by path and revision."""
    addresses = [(ref.path, ref.revision) for ref in refs]
    addresses += [(ref.adapter, ref.adapter_revision) for ref in refs if ref.adapter]
    remote = [address for address in dict.fromkeys(addresses) if not is_local(address[0])]
    return dict(zip(remote, hub.preflight(remote), strict=True))


def _open(ref: ModelRef, hub: Hub, pins: Mapping[tuple[str, str | None], Pinned]) -> Parts:
    pin, place = pins.get((ref.path, ref.revision)), Path(ref.path).expanduser()
    if not ref.adapter and (hub.weights(pin).kind == "adapter" if pin else is_adapter(place)):
        folder = hub.download(pin) if pin else place
        return Parts(None, folder, pin, open_adapter(folder, label=pin.label if pin else ref.text))
    model = hub.open(pin) if pin else open_checkpoint(place, label=ref.path if ref.adapter else ref.text)
    if not ref.adapter:
        return Parts(model, None if pin else place, pin)
    adapter_pin = pins.get((ref.adapter, ref.adapter_revision))
    folder = hub.download(adapter_pin) if adapter_pin else Path(ref.adapter).expanduser()
    adapter = open_adapter(folder, label=adapter_pin.label if adapter_pin else ref.adapter)
    return Parts(model, None if pin else place, pin, adapter, adapter_pin, folder)


def _on_disk(parts: Parts, folder: Path, whole: bool) -> Parts:
    model = open_checkpoint(folder, label=parts.model.label) if whole and parts.model else parts.model
    return replace(parts, folder=folder, model=model)


def _joined(asked: Sequence[tuple[ModelRef, str | None]], opened: Mapping[ModelRef, Parts], hub: Hub) -> list[Source]:
    """Every source under the base's names, adapters on the model that each belongs to.

    Raises:
        CheckpointError: adapters that don't fit, every one of them told.
    """
    base_ref = asked[0][0]
    base_parts = opened[base_ref]
    if base_parts.model is None:
        raise CheckpointError(f"{base_ref}: an adapter, expected a model as the base. Write MODEL+{base_ref}")
    if base_parts.pin and base_parts.pin.folder:
        raise CheckpointError(
            f"{base_ref}: a folder in a repository, expected a whole one as the base, which others load by its name."
            " Download it and name the folder on this machine"
        )
    base = _whole(base_parts.model, base_parts, hub)
    found = {base_ref: base}
    problems: list[str] = []
    for ref, parts in opened.items():
        try:
            is_on_base = not base_parts.adapter and _is_same(ref, parts, base_ref, base_parts)
            if parts.adapter and (is_on_base or not parts.model):
                notes = _note_on_base(parts.adapter, ref.path if ref.adapter else base_ref.path)
                found[ref] = parts.adapter.on(base, notes=notes, places=_places(base, base_parts, hub))
            elif parts.model and ref != base_ref:
                found[ref] = aligned(_whole(parts.model, parts, hub), base)
        except CheckpointError as error:
            problems.extend(error.problems)
    if problems:
        raise CheckpointError(problems)
    return [Source(ref, task, found[ref], opened[ref]) for ref, task in asked]


def _whole(model: Checkpoint, parts: Parts, hub: Hub) -> Checkpoint:
    """A model with the adapter that is on top of it, if one is."""
    return parts.adapter.applied_to(model, places=_places(model, parts, hub)) if parts.adapter else model


def _is_same(ref: ModelRef, parts: Parts, other_ref: ModelRef, other: Parts) -> bool:
    """Whether two references name the same model, whatever adapters are on top."""
    if parts.pin and other.pin:
        return replace(parts.pin, requested_revision=None) == replace(other.pin, requested_revision=None)
    return not parts.pin and not other.pin and Path(ref.path).expanduser().samefile(Path(other_ref.path).expanduser())


def _places(model: Checkpoint, parts: Parts, hub: Hub) -> Callable[[], Places]:
    """Where a model's files hold the parameters that adapters are put on, found out when it is asked."""

    def find() -> Places:
        from hf_tsv.lora.architecture import read_architecture

        folder = parts.folder or (hub.download(parts.pin, weights=False) if parts.pin else None)
        if folder is None:
            return {}
        architecture = read_architecture({name: model.info(name) for name in model.names()}, folder)
        found: dict[str, list[Place]] = {}
        for tensor, pieces in architecture.located.pieces.items():
            if len(pieces) == 1 and not pieces[0].first:
                piece = pieces[0]
                found.setdefault(piece.parameter, []).append(Place(tensor, piece.expert, piece.row, piece.rows))
        tied = {name: names for name, names in architecture.aliases.items() if name not in found}
        for name, names in tied.items():
            held = [place for other in names for place in found.get(other, ()) if not place.is_tied]
            found |= {name: [replace(place, is_tied=True) for place in held]}
        return found

    return find


def _note_on_base(adapter: Adapter, base: str) -> list[str]:
    """Whether an adapter says it was trained on another model. Copies of one model go by the last part of its name."""
    said = adapter.config.base_model_name_or_path
    if not said or Path(said).name.lower() == Path(base).name.lower():
        return []
    return [f"its adapter_config.json names {said[:100]!r} as its base, here it is put on {base!r}. The shapes fit"]


def _at(path: str | None, pin: Pinned | None) -> str | None:
    return f"{path}@{pin.sha}" if path and pin else path


def bytes_to_download(sources: Sequence[Source], hub: Hub, *, stream: Stream = "none") -> int:
    """How much `fetch` would have to bring."""
    return sum(hub.bytes_to_download(pin, weights=weights) for pin, weights in _whole_by_pin(sources, stream).items())


def bytes_to_stream(sources: Sequence[Source], hub: Hub, stream: Stream) -> int:
    """How many bytes of weights would be read by range."""
    pins = [pin for pin, whole in _whole_by_pin(sources, stream).items() if not whole]
    return sum(hub.files(pin)[file] for pin in pins for file in hub.weights(pin).files)


def folders_of(sources: Sequence[Source]) -> dict[str | None, Path]:
    """Where those lie that are on this machine, by task; the base under None."""
    return {source.task: source.folder for source in sources if source.folder}


def companions(source: Source, hub: Hub) -> Companions:
    """What lies beside a fetched source's weights. A folder of the Hub's cache may hold other programs' files too."""
    if source.folder is None:
        raise ValueError(f"{source.ref} is not fetched")
    return Companions(source.folder, hub.side_files(source.pin)) if source.pin else Companions.of(source.folder)


def tokenizer_folder(source: Source, hub: Hub) -> Path | None:
    """Where a model's tokenizer lies: its adapter's own, or its own; None where it has none. Fetched if need be."""
    own = source.parts.adapter_folder
    if own and has_tokenizer(own):
        return own
    folder = source.folder or (hub.download(source.pin, weights=False) if source.pin else None)
    return folder if folder and has_tokenizer(folder) else None


def tokenizer_companions(source: Source, hub: Hub) -> Companions:
    """What lies beside a fetched source's tokenizer."""
    own = source.parts.adapter_folder
    return Companions.of(own) if own and has_tokenizer(own) else companions(source, hub)


def tokenizers_look_alike(sources: Sequence[Source], hub: Hub) -> bool:
    """Whether no model's tokenizer shows that it isn't the base's, which is on the Hub: told by the files' sizes."""

    def sizes(pin: Pinned) -> dict[str, int]:
        return {file: size for file, size in hub.files(pin).items() if file in VOCABULARY_FILES}

    def looks_like(source: Source, base: Pinned) -> bool:
        here = source.parts.adapter_folder or source.folder
        if here and has_tokenizer(here):
            return False
        own = None if source.folder else source.pin
        return source.parts.model is None or (own is not None and (own == base or sizes(own) == sizes(base)))

    pin = None if sources[0].folder else sources[0].pin
    return pin is not None and all(looks_like(source, pin) for source in sources)


def lock_text(recipe: Recipe, sources: Sequence[Source]) -> str:
    """The recipe with every Hub model pinned to its commit: a recipe itself, which gives the same bytes."""
    return pinned_text(recipe, {source.ref.text: source.pinned for source in sources})
