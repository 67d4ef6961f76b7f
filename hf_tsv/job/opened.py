"""The first third of every job: a recipe's models opened, and the plan that follows from their headers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hf_tsv.errors import DOWNLOADING
from hf_tsv.hub import Hub
from hf_tsv.merging.plan import DEFAULT_SHARD_SIZE, Plan
from hf_tsv.merging.planner import make_plan
from hf_tsv.merging.progress import Progress
from hf_tsv.recipe import Recipe, load_recipe
from hf_tsv.sources.fetching import Stream, bytes_to_download, bytes_to_stream, fetch
from hf_tsv.sources.models import Source, open_sources
from hf_tsv.sources.tokenizers import tokenizer_folder, tokenizers_look_alike
from hf_tsv.vocabulary.matching import match_vocabularies


@dataclass(frozen=True)
class Opened:
    """A recipe with its models opened.

    Attributes:
        recipe: The recipe.
        sources: Its models, the base first. Before `fetched`, those on the Hub are read by byte range.
        plan: What is done with them.
        hub: How they were reached.
        max_shard_size: Largest file of weights in the plan.
        stream: Whether weights stay on the Hub and are read by byte range.
    """

    recipe: Recipe
    sources: Sequence[Source]
    plan: Plan
    hub: Hub
    max_shard_size: int | str = DEFAULT_SHARD_SIZE
    stream: bool = False

    @property
    def streamed(self) -> Stream:
        """Whose weights are not downloaded."""
        if not self.stream:
            return "none"
        # PEFT loads the base from its files.
        return "tasks" if self.plan.puts_adapters_on_base else "all"

    @property
    def download_bytes(self) -> int:
        """Bytes that `fetched` downloads."""
        return bytes_to_download(self.sources, self.hub, stream=self.streamed)

    @property
    def stream_bytes(self) -> int:
        """Bytes of weights that are read by byte range."""
        return bytes_to_stream(self.sources, self.hub, self.streamed)

    def fetched(self, progress: Progress) -> "Opened":
        """The same with the models' files on this machine, except for weights that are streamed.

        Raises:
            HfTsvError: a model can't be downloaded, or isn't the one whose headers were read.
        """
        total = self.download_bytes
        if total:
            progress.begin(total)
        sources = fetch(
            self.sources,
            self.hub,
            stream=self.streamed,
            progress=lambda nbytes: progress.advance(nbytes, DOWNLOADING),
        )
        # Planned again, for the plan reads tensors by the checkpoints that it was made of.
        plan = _plan_of(self.recipe, sources, self.max_shard_size, self.hub)
        return Opened(self.recipe, sources, plan, self.hub, self.max_shard_size, self.stream)


def load(recipe: Recipe | str | Path) -> Recipe:
    """The recipe itself, or that of a file."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def open_recipe(
    recipe: Recipe | str | Path,
    hub: Hub,
    *,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    stream: bool = False,
) -> Opened:
    """Open every model of a recipe and plan what is done with them. Only headers, and adapters, are downloaded.

    Raises:
        HfTsvError: the recipe is wrong, a model can't be read, or they don't fit together; every mistake is reported.
    """
    recipe = load(recipe)
    sources = open_sources(recipe, hub)
    plan = _plan_of(recipe, sources, max_shard_size, hub)
    return Opened(recipe, sources, plan, hub, max_shard_size, stream)


def _plan_of(recipe: Recipe, sources: Sequence[Source], max_shard_size: int | str, hub: Hub) -> Plan:
    """The plan of opened models, their rows matched by token where their vocabularies differ."""
    base = sources[0].checkpoint
    tasks = [source.checkpoint for source in sources[1:]]
    # Functions, as a tokenizer is downloaded only where vocabularies differ.
    folders: list[Callable[[], Path | None]] = [partial(tokenizer_folder, source, hub) for source in sources]
    look_alike = partial(tokenizers_look_alike, sources, hub)
    matched = match_vocabularies(recipe, base, tasks, folders, look_alike=look_alike)
    return make_plan(
        recipe,
        matched.base,
        matched.finetuned,
        max_shard_size=max_shard_size,
        vocabulary=matched.vocabulary,
        clashes=matched.clashes,
    )
