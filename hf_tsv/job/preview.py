"""The preview of a job: its plan, its downloads and its destinations."""

from dataclasses import dataclass

from hf_tsv.cards import NamedTerms
from hf_tsv.job.job import Job
from hf_tsv.merging.plan import Plan
from hf_tsv.publish.check import Destination


@dataclass(frozen=True)
class Preview:
    """The preview of a job.

    Attributes:
        plan: The plan of the job.
        download_bytes: Number of bytes to download.
        stream_bytes: Number of bytes to read by byte range.
        targets: The output's destinations, each with its sources' terms.
    """

    plan: Plan
    download_bytes: int
    stream_bytes: int
    targets: list[tuple[list[NamedTerms], Destination]]


def preview(job: Job) -> Preview:
    """Preview a job: open its models, plan, and check disks and destinations. No output is written.

    Raises:
        HfTsvError: as for `Job.run`.
    """
    opened = job.open()
    job.check_disks(opened)
    return Preview(opened.plan, opened.download_bytes, opened.stream_bytes, job.targets(opened))
