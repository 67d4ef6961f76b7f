"""What a run would do, and where its output would go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_tsv.hub import Hub
from hf_tsv.job.delivery import targets
from hf_tsv.job.inputs import plan_of
from hf_tsv.merging.plan import DEFAULT_SHARD_SIZE, Plan
from hf_tsv.merging.resources import check_disks
from hf_tsv.publish.publishing import Destination, Pushing
from hf_tsv.recipe import Recipe
from hf_tsv.sources.fetching import Stream, bytes_to_download, bytes_to_stream
from hf_tsv.sources.models import open_sources


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        plan: What it would merge.
        download_bytes: What it would have to download.
        stream_bytes: What it would read by byte range.
        targets: Where the output would go, each with what the sources of it say of themselves.
    """

    plan: Plan
    download_bytes: int
    stream_bytes: int
    targets: list[tuple[list[dict[str, Any]], Destination]]


def preview(
    recipe: Recipe,
    pushing: Pushing | None,
    *,
    hub: Hub,
    out: Path,
    tasks: Sequence[str] | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    stream: Stream = "none",
) -> Preview:
    """What a merge, or of these tasks a compression, would do. Nothing is written; errors are those of doing it."""
    sources = open_sources(recipe, hub)
    planned = plan_of(recipe, sources, max_shard_size, hub)
    downloads, streamed = bytes_to_download(sources, hub, stream=stream), bytes_to_stream(sources, hub, stream)
    check_disks([(out.parent, 0 if tasks else planned.bytes_out), (hub.cache_dir, downloads)])
    return Preview(planned, downloads, streamed, targets(pushing, sources, tasks, hub))
