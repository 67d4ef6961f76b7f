"""The models that a recipe names: pinned, opened, fetched."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hf_tsv.checkpoint import Checkpoint
from hf_tsv.errors import CheckpointError, HfTsvError
from hf_tsv.hub import Hub, Pinned
from hf_tsv.loaders import aligned, open_checkpoint
from hf_tsv.recipe import ModelRef, Recipe


@dataclass(frozen=True)
class Source:
    """One model of a recipe.

    Attributes:
        ref: What the recipe calls it.
        task: Its task; None for the base.
        checkpoint: Its tensors. From the Hub before `fetch`: read by byte range.
        folder: Where its files lie; None before `fetch`.
        pin: The commit on the Hub; None for a local folder.
    """

    ref: ModelRef
    task: str | None
    checkpoint: Checkpoint
    folder: Path | None
    pin: Pinned | None = None

    @property
    def revision(self) -> str | None:
        """The commit sha it is pinned to; None for a local folder."""
        return self.pin.sha if self.pin else None

    @property
    def identity(self) -> str:
        """What changes when its content does."""
        return self.revision or self.checkpoint.fingerprint()

    @property
    def pinned(self) -> str:
        """The reference that means the same content for ever, as far as it can be said."""
        return f"{self.ref.path}@{self.revision}" if self.revision else self.ref.text

    def describe(self) -> dict[str, Any]:
        """What the record says of it."""
        return {
            "role": "task" if self.task else "base",
            "task": self.task,
            "model": self.ref.path,
            "revision": self.revision,
            "fingerprint": None if self.revision else self.checkpoint.fingerprint(),
        }


def open_sources(recipe: Recipe, hub: Hub) -> list[Source]:
    """Every model of a recipe, the base first: access checked, pinned to a commit, its headers read.

    Nothing is downloaded but headers. Fine-tuned models come under the base's names.

    Raises:
        HfTsvError: models that can't be read, every one of them told.
    """
    asked: list[tuple[ModelRef, str | None]] = [(recipe.base, None), *((m.ref, m.name) for m in recipe.models)]
    remote = [ref for ref, _ in asked if not ref.is_local]
    pins = dict(zip(remote, hub.preflight([(ref.path, ref.revision) for ref in remote]), strict=True))
    opened: dict[ModelRef, Checkpoint] = {}
    problems: list[str] = []
    for ref in dict.fromkeys(ref for ref, _ in asked):
        try:
            opened[ref] = _open(ref, hub, pins.get(ref))
        except HfTsvError as error:
            problems.extend(error.problems)
    if problems:
        raise CheckpointError(problems)
    base = opened[recipe.base]
    return [
        Source(
            ref, task, aligned(opened[ref], base), Path(ref.path).expanduser() if ref.is_local else None, pins.get(ref)
        )
        for ref, task in asked
    ]


def fetch(sources: Sequence[Source], hub: Hub) -> list[Source]:
    """The same sources with their files on this machine.

    Raises:
        HubError: one can't be downloaded.
        ResourceError: the disk is full.
    """
    folders = {source.pin: hub.download(source.pin) for source in sources if source.pin}
    base, *tasks = (_on_disk(source, folders[source.pin]) if source.pin else source for source in sources)
    return [base, *(replace(task, checkpoint=aligned(task.checkpoint, base.checkpoint)) for task in tasks)]


def _open(ref: ModelRef, hub: Hub, pin: Pinned | None) -> Checkpoint:
    if ref.adapter:
        raise CheckpointError(f"{ref.text}: has an adapter on top, expected a full checkpoint. Merge it in and save it")
    return hub.open(pin) if pin else open_checkpoint(Path(ref.path).expanduser(), label=ref.text)


def _on_disk(source: Source, folder: Path) -> Source:
    return replace(source, folder=folder, checkpoint=open_checkpoint(folder, label=source.checkpoint.label))


def lock_text(recipe: Recipe, sources: Sequence[Source]) -> str:
    """The recipe with every Hub model pinned to its commit: a recipe itself, which gives the same bytes."""
    data = yaml.safe_load(recipe.text)
    base, *models = sources
    if "base_model" in data:
        data["base_model"] = base.pinned
    pinned = {source.ref.text: source.pinned for source in (base, *models)}
    for entry in data["models"]:
        entry["model"] = pinned.get(str(entry["model"]), entry["model"])
    if recipe.svd != "exact":
        data["svd"] = recipe.svd
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
