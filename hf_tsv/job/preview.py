"""What a job would do, and where its output would go."""

from dataclasses import dataclass

from hf_tsv.cards import NamedTerms
from hf_tsv.job.job import Job
from hf_tsv.merging.plan import Plan
from hf_tsv.publish.check import Destination


@dataclass(frozen=True)
class Preview:
    """What a job would do.

    Attributes:
        plan: What it would merge.
        download_bytes: Bytes that it would download.
        stream_bytes: Bytes that it would read by byte range.
        targets: Where the output would go, each with what the sources of it say of themselves.
    """

    plan: Plan
    download_bytes: int
    stream_bytes: int
    targets: list[tuple[list[NamedTerms], Destination]]


def preview(job: Job) -> Preview:
    """What a job would do, checked as the job checks it. Nothing is written; errors are those of doing it."""
    opened = job.open()
    job.check_disks(opened)
    return Preview(opened.plan, opened.download_bytes, opened.stream_bytes, job.targets(opened))
