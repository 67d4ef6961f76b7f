"""The models that a recipe names: access checked, pinned to commits, opened under the base's names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_tsv.checkpoints.aligned import aligned
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.errors import CheckpointError, HfTsvError
from hf_tsv.hub import Hub, Pinned
from hf_tsv.lora.read.adapter import Adapter, is_adapter, open_adapter
from hf_tsv.lora.read.changes import Place, Places
from hf_tsv.recipe import ModelRef, Recipe, is_local
from hf_tsv.record import SourceEntry


@dataclass(frozen=True)
class Parts:
    """The parts that a reference names: a model, an adapter, or an adapter on a model.

    Attributes:
        model: The model's tensors under the names in its own files; None for an adapter alone.
        folder: The folder of the model, or of an adapter alone; None for a model on the Hub before `fetch`.
        pin: The commit of these files on the Hub; None for a local folder.
        adapter: The adapter, or None. Adapters on the Hub are downloaded from the start, because they are small.
        adapter_pin: The adapter's commit on the Hub if it is on top of a model; None for a local folder.
        adapter_folder: The adapter's folder if it is on top of a model.
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
        ref: The recipe's reference to the model.
        task: The model's task; None for the base.
        checkpoint: The model's tensors. For a model on the Hub before `fetch`, they are read by byte range.
        parts: The model and the adapter that it consists of.
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
        """The commit sha that the model is pinned to; None for a local folder."""
        return self.pin.sha if self.pin else None

    @property
    def identity(self) -> str:
        """A value that changes when the source's content does."""
        # A commit never changes. A local folder, or a local adapter on a pinned model, needs a look at its content.
        is_pinned = self.pin and (self.parts.adapter_pin or not self.ref.adapter)
        return self.pinned if is_pinned else self.checkpoint.fingerprint()

    @property
    def pinned(self) -> str:
        """The reference with commits pinned, so that it always means the same content; local paths stay as they are."""
        if not self.pin and not self.parts.adapter_pin:
            return self.ref.text
        model = pinned_path(self.ref.path, self.pin)
        if not self.ref.adapter:
            return model
        adapter = pinned_path(self.ref.adapter, self.parts.adapter_pin)
        return f"{model}+{adapter}"

    def describe(self) -> SourceEntry:
        """Return the source's entry in the record, without its terms."""
        return SourceEntry(
            role="task" if self.task else "base",
            task=self.task,
            model=self.ref.path,
            revision=self.revision,
            fingerprint=None if self.revision else self.checkpoint.fingerprint(),
            adapter=pinned_path(self.ref.adapter, self.parts.adapter_pin) if self.ref.adapter else None,
        )


def pinned_path(path: str, pin: Pinned | None) -> str:
    """Return a path with the commit that it is pinned to; a local path unchanged."""
    return f"{path}@{pin.sha}" if pin else path


def open_sources(recipe: Recipe, hub: Hub) -> list[Source]:
    """Open every model of a recipe, the base first: check access, pin it to a commit and read its headers.

    Only headers and adapters are downloaded. Fine-tuned models get the base's names.

    Raises:
        HfTsvError: models can't be read; one error reports all of them.
    """
    named: list[tuple[ModelRef, str | None]] = [(recipe.base, None)]
    named += [(model.ref, model.name) for model in recipe.models]
    return join(named, open_parts(named, hub), hub)


def open_parts(named: Sequence[tuple[ModelRef, str | None]], hub: Hub) -> dict[ModelRef, Parts]:
    """Open the parts of each reference, once even if it occurs several times.

    Args:
        named: References, each with its task; None for the base, which comes first.
        hub: The connection to the Hub.

    Raises:
        HfTsvError: models can't be read; one error reports all of them.
    """
    refs = list(dict.fromkeys(ref for ref, _ in named))
    addresses = [(ref.path, ref.revision) for ref in refs]
    addresses += [(ref.adapter, ref.adapter_revision) for ref in refs if ref.adapter]
    on_hub = [address for address in dict.fromkeys(addresses) if not is_local(address[0])]
    # All in one call, so that it reports every model without access.
    pins = dict(zip(on_hub, hub.preflight(on_hub), strict=True))
    opened: dict[ModelRef, Parts] = {}
    problems: list[str] = []
    for ref in refs:
        try:
            opened[ref] = _open(ref, hub, pins)
        except HfTsvError as error:
            problems.extend(error.problems)
    if problems:
        raise CheckpointError(problems)
    return opened


def _open(ref: ModelRef, hub: Hub, pins: Mapping[tuple[str, str | None], Pinned]) -> Parts:
    pin = pins.get((ref.path, ref.revision))
    local = Path(ref.path).expanduser()
    if not ref.adapter:
        # A reference without a `+` may still name an adapter, which its files show.
        is_lone_adapter = hub.weights(pin).kind == "adapter" if pin else is_adapter(local)
        if is_lone_adapter:
            folder = hub.download(pin) if pin else local
            label = pin.label if pin else ref.text
            return Parts(None, folder, pin, open_adapter(folder, label=label))
    label = ref.path if ref.adapter else ref.text
    model = hub.open(pin) if pin else open_checkpoint(local, label=label)
    folder_of_model = None if pin else local
    if not ref.adapter:
        return Parts(model, folder_of_model, pin)
    adapter_pin = pins.get((ref.adapter, ref.adapter_revision))
    # Adapters are small, so they are downloaded at once: a plan needs to know what they change.
    adapter_folder = hub.download(adapter_pin) if adapter_pin else Path(ref.adapter).expanduser()
    label = adapter_pin.label if adapter_pin else ref.adapter
    adapter = open_adapter(adapter_folder, label=label)
    return Parts(model, folder_of_model, pin, adapter, adapter_pin, adapter_folder)


def join(named: Sequence[tuple[ModelRef, str | None]], opened: Mapping[ModelRef, Parts], hub: Hub) -> list[Source]:
    """Make every source from its parts, under the base's names, with each adapter on its model.

    Args:
        named: As in `open_parts`, in the order of the result.
        opened: The parts of each reference.
        hub: The connection to the Hub.

    Raises:
        CheckpointError: models or adapters don't fit the base; one error reports all of them.
    """
    base_ref = named[0][0]
    base_parts = opened[base_ref]
    if base_parts.model is None:
        raise CheckpointError(f"{base_ref}: an adapter, expected a model as the base. Write MODEL+{base_ref}")
    if base_parts.pin and base_parts.pin.folder:
        # Outputs name their base in adapter_config.json and in the card, where a folder can't be written.
        raise CheckpointError(
            f"{base_ref}: a folder in a repository, expected a whole one as the base, which others load by its name."
            " Download it and name the folder on this machine"
        )
    base = _whole(base_parts.model, base_parts, hub)
    checkpoints = {base_ref: base}
    problems: list[str] = []
    for ref, parts in opened.items():
        try:
            is_on_base = not base_parts.adapter and _is_same(ref, parts, base_ref, base_parts)
            if parts.adapter and (is_on_base or not parts.model):
                # On the merge's own base, the change is known as factors: no full delta is ever made.
                put_on = ref.path if ref.adapter else base_ref.path
                made_for = parts.adapter.config.base_model_name_or_path
                notes = []
                # Only the last parts are compared: copies of one model, here and on the Hub, share that of their names.
                if made_for and Path(made_for).name.lower() != Path(put_on).name.lower():
                    notes.append(
                        f"its adapter_config.json names {made_for[:100]!r} as its base, here it is put on {put_on!r}."
                        " The shapes fit"
                    )
                places = _places(base, base_parts, hub)
                checkpoints[ref] = parts.adapter.on(base, notes=notes, places=places)
            elif parts.model and ref != base_ref:
                checkpoints[ref] = aligned(_whole(parts.model, parts, hub), base)
        except CheckpointError as error:
            problems.extend(error.problems)
    if problems:
        raise CheckpointError(problems)
    return [Source(ref, task, checkpoints[ref], opened[ref]) for ref, task in named]


def _whole(model: Checkpoint, parts: Parts, hub: Hub) -> Checkpoint:
    """Return a model with its adapter applied, if it has one."""
    return parts.adapter.applied_to(model, places=_places(model, parts, hub)) if parts.adapter else model


def _is_same(ref: ModelRef, parts: Parts, other_ref: ModelRef, other: Parts) -> bool:
    """Return True if two references name the same model, whatever adapters are on top."""
    if parts.pin and other.pin:
        # The same commit may have two names: `main` and its sha.
        return replace(parts.pin, requested_revision=None) == replace(other.pin, requested_revision=None)
    if parts.pin or other.pin:
        return False
    return Path(ref.path).expanduser().samefile(Path(other_ref.path).expanduser())


def _places(model: Checkpoint, parts: Parts, hub: Hub) -> Callable[[], Places]:
    """Return a function that finds the places of parameters in a model's files. It is lazy: few models need it."""

    def find() -> Places:
        from hf_tsv.lora.architecture import read_architecture

        folder = parts.folder
        if folder is None and parts.pin:
            folder = hub.download(parts.pin, weights=False)
        if folder is None:
            return {}
        infos = {name: model.info(name) for name in model.names()}
        architecture = read_architecture(infos, folder)
        places: dict[str, list[Place]] = {}
        for tensor, pieces in architecture.located.pieces.items():
            # A tensor that is spread over several parameters, or holds one only from a later row on, gives no place.
            if len(pieces) == 1 and not pieces[0].first:
                piece = pieces[0]
                place = Place(tensor, piece.expert, piece.row, piece.rows)
                places.setdefault(piece.parameter, []).append(place)
        # A tied parameter has no tensor of its own: its places are those of its twins.
        tied = {name: twins for name, twins in architecture.aliases.items() if name not in places}
        for name, twins in tied.items():
            own: list[Place] = []
            for twin in twins:
                own += [replace(place, is_tied=True) for place in places.get(twin, ()) if not place.is_tied]
            places[name] = own
        return places

    return find


def folders_of(sources: Sequence[Source]) -> dict[str | None, Path]:
    """Return the folders of the sources that are on this machine, by task; the base's under None."""
    return {source.task: source.folder for source in sources if source.folder}
