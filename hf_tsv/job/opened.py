"""The first steps of every job: opens a recipe's models, plans the merge from their headers, fetches the files."""

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
        sources: The recipe's models, the base first. Before `fetched`, those on the Hub are read by byte range.
        plan: The plan of the merge.
        hub: The connection to the Hub.
        max_shard_size: Largest size of a weight file in the plan.
        stream: True if weights stay on the Hub and are read by byte range.
    """

    recipe: Recipe
    sources: Sequence[Source]
    plan: Plan
    hub: Hub
    max_shard_size: int | str = DEFAULT_SHARD_SIZE
    stream: bool = False

    @property
    def streamed(self) -> Stream:
        """The models whose weights are streamed, not downloaded."""
        if not self.stream:
            return "none"
        # PEFT loads the base from its files.
        return "tasks" if self.plan.puts_adapters_on_base else "all"

    @property
    def download_bytes(self) -> int:
        """The number of bytes that `fetched` downloads."""
        return bytes_to_download(self.sources, self.hub, stream=self.streamed)

    @property
    def stream_bytes(self) -> int:
        """The number of bytes of weights that are read by byte range."""
        return bytes_to_stream(self.sources, self.hub, self.streamed)

    def fetched(self, progress: Progress) -> "Opened":
        """Download the models' files, except weights that are streamed, and return the recipe opened from them.

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
        # Planned again, because a plan reads tensors from the checkpoints that it was made from.
        plan = _plan_of(self.recipe, sources, self.max_shard_size, self.hub)
        return Opened(self.recipe, sources, plan, self.hub, self.max_shard_size, self.stream)


def load(recipe: Recipe | str | Path) -> Recipe:
    """Return the recipe itself, or load it from a file."""
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def open_recipe(
    recipe: Recipe | str | Path,
    hub: Hub,
    *,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    stream: bool = False,
) -> Opened:
    """Open every model of a recipe, and plan the merge. Only headers and adapters are downloaded.

    Raises:
        HfTsvError: the recipe is wrong, a model can't be read, or models don't fit together; reports every mistake.
    """
    recipe = load(recipe)
    sources = open_sources(recipe, hub)
    plan = _plan_of(recipe, sources, max_shard_size, hub)
    return Opened(recipe, sources, plan, hub, max_shard_size, stream)


def _plan_of(recipe: Recipe, sources: Sequence[Source], max_shard_size: int | str, hub: Hub) -> Plan:
    """Plan the merge of opened models, whose rows are matched by token where their vocabularies differ."""
    base = sources[0].checkpoint
    tasks = [source.checkpoint for source in sources[1:]]
    # Functions, because a tokenizer is downloaded only where vocabularies differ.
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
