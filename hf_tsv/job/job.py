"""One job: everything that merge, compress and merge --as adapter do around their work, once.

    open the models -> plan -> check place, memory and disk -> fetch -> plan again -> go on or start -> write
    -> check that the models stayed -> companions -> record, checksums and card -> publish -> push

What is written follows from the recipe alone: a shared model, adapters or masks beside it, or adapters on the base.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hf_tsv.cards import NamedTerms, write_card
from hf_tsv.files.checksums import checksums
from hf_tsv.files.disk import write_text
from hf_tsv.files.names import LOCK_FILE, RECIPE_FILE, RECORD_FILE
from hf_tsv.hub import Hub
from hf_tsv.job.delivery import UPLOADING, delivered, is_made, targets
from hf_tsv.job.identity import check_place, check_unchanged, discarded_if_wrong, go_on_or_start, identity_on
from hf_tsv.job.opened import Opened, open_recipe
from hf_tsv.job.options import Options
from hf_tsv.job.processes import Process, Team, stamp
from hf_tsv.job.recording import make_compression_record, make_record
from hf_tsv.job.writing import (
    copy_companions_of,
    help_to_write_shared,
    write_kept,
    write_parts,
    write_shared,
)
from hf_tsv.kept.workplace import Workplace
from hf_tsv.merging.engine import check_memory
from hf_tsv.merging.plan import check_on_base, leaves_residuals
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources, check_disks
from hf_tsv.publish.check import Destination, Pushing
from hf_tsv.publish.send import sending
from hf_tsv.recipe import Recipe
from hf_tsv.record import AdaptersRecord, MergeRecord, RestoredRecord, read_record, write_record
from hf_tsv.sources.description import described, lock_text
from hf_tsv.sources.models import folders_of
from hf_tsv.staging.folder import Staging


@dataclass(frozen=True)
class Job:
    """A recipe to carry out, and where its output goes.

    Started as several processes by a launcher that sets RANK and WORLD_SIZE, with OUT on a file system that all of them
    share, each process merges its part of the shared model's tensors; the first does everything else.

    Attributes:
        recipe: What to do.
        out: The output folder. It appears when it is complete.
        options: How to do it.
        push: Where the output goes on the Hub; None if it stays here.
        hub: How to reach the Hub.
        progress: Notified of the work done.
    """

    recipe: Recipe
    out: Path
    options: Options = Options()
    push: Pushing | None = None
    hub: Hub = field(default_factory=Hub)
    progress: Progress = field(default_factory=Silent)

    def open(self) -> Opened:
        """Open the recipe's models, and plan."""
        return open_recipe(
            self.recipe, self.hub, max_shard_size=self.options.max_shard_size, stream=self.options.stream
        )

    def run(self) -> MergeRecord | AdaptersRecord:
        """Do it, unless OUT is what would be made and only has to be pushed.

        A job that was stopped goes on where it was, to the same bytes.

        Returns:
            The record.

        Raises:
            HfTsvError: anything a person can correct, and the end of another process of the job; no work is lost by it.
        """
        process = Process.launched()
        resources = self.options.resources(
            local_rank=process.rank % process.local_count, local_count=process.local_count
        )
        stamp_before = stamp(self.out / RECORD_FILE)
        with Staging(self.out, leads=not process.rank) as staging, Team(staging.root, process) as team:
            opened = self.open()
            # Checked before any work: a push that would be refused at the end is refused now.
            destinations = [destination for _, destination in self.targets(opened)]
            if not destinations or not is_made(self.out, opened.plan, opened.sources):
                self._check(opened, resources)
                fetched = opened.fetched(self.progress)
                work = Workplace(
                    staging,
                    identity_on(resources.device, fetched.plan, fetched.sources),
                    folders_of(fetched.sources),
                    resources,
                    self.progress,
                    # Bytes that come over a network, or are uploaded file by file, are wanted in the files' order.
                    in_order=self.options.stream or bool(destinations),
                )
                if process.rank:
                    # Only the shared model's tensors are divided; of adapters the first process makes all.
                    if fetched.plan.makes_model:
                        help_to_write_shared(fetched.plan, work, team)
                    team.await_output(self.out / RECORD_FILE, stamp_before)
                    return self._record()
                self._make(fetched, work, team, destinations)
        record = self._record()
        if process.rank:
            return record
        # Outside of the working folder's lock: OUT is complete, and an upload may take hours.
        return record.with_pushed(delivered(self.out, destinations, self.progress))

    def _record(self) -> MergeRecord | AdaptersRecord:
        """The record of the finished output, read from its file."""
        record = read_record(self.out)
        assert not isinstance(record, RestoredRecord), "a job makes models and adapters"
        return record

    def targets(self, opened: Opened) -> list[tuple[list[NamedTerms], Destination]]:
        """Where the output goes, each with what its sources say of themselves.

        Raises:
            PublishError, HubError: name, access, privacy or licence forbid it.
        """
        tasks = opened.plan.tasks if opened.plan.makes_task_adapters else None
        return targets(self.push, opened.sources, tasks, self.hub)

    def check_disks(self, opened: Opened) -> None:
        """Check that output and downloads fit on their disks, as far as headers tell.

        Raises:
            ResourceError: a disk is too full.
        """
        check_disks([(self.out.parent, opened.plan.bytes_out), (self.hub.cache_dir, opened.download_bytes)])

    def _check(self, opened: Opened, resources: Resources) -> None:
        """Raise for everything that can be known to be wrong before any weights are read."""
        plan = opened.plan
        check_place(self.out, opened.sources, overwrite=self.options.overwrite)
        check_memory(plan, resources)
        self.check_disks(opened)
        if plan.puts_adapters_on_base:
            check_on_base(plan, "adapters are put on")
        if leaves_residuals(plan):
            from hf_tsv.kept.settings import read_rules

            read_rules(plan)  # raises for budgets that contradict each other

    def _make(self, opened: Opened, work: Workplace, team: Team, destinations: Sequence[Destination]) -> None:
        """Write everything into the working folder, and make it the output."""
        started = time.monotonic()
        go_on_or_start(work.staging, work.identity, restart=self.options.restart)
        record: MergeRecord | AdaptersRecord
        if opened.plan.makes_model:
            record = self._make_model(opened, work, team, destinations)
            known_files = record.files
        else:
            record = self._make_adapters(opened, work)
            known_files = ()
        write_text(work.out / RECIPE_FILE, self.recipe.text)
        write_text(work.out / LOCK_FILE, lock_text(self.recipe, opened.sources))
        # The weight files' tensors have checksums of their own; all other files get theirs now.
        record = record.with_checksums(checksums(work.out, known_files))
        record = record.model_copy(update={"seconds": round(time.monotonic() - started, 1)})
        write_record(record, work.out)
        licence = destinations[0].licence if destinations else None  # a person's choice, the same for all
        write_card(record, work.out, licence=licence)
        work.staging.publish()

    def _make_model(
        self, opened: Opened, work: Workplace, team: Team, destinations: Sequence[Destination]
    ) -> MergeRecord:
        """Write the shared model, and what single tasks keep beside it; returns the record."""
        plan, sources = opened.plan, opened.sources
        destination = destinations[0] if destinations else None  # a merged model goes into one repository
        await_uploads = partial(self.progress.advance, 0.0, UPLOADING)
        with discarded_if_wrong(work.staging):
            with sending(destination, await_uploads) as send:
                tensors = write_shared(plan, work, team, lambda file: send(file, work.out / file))
            parts = write_parts(plan, work.out)
            # After the last reading of weights, so that a change at any time before it is noticed.
            check_unchanged(plan, sources, work.identity)
        copy_companions_of(plan, sources, self.hub, work.out)
        kept = write_kept(plan, work, parts)
        return make_record(plan, described(sources, self.hub), tensors, kept, seconds=0.0, device=work.resources.device)

    def _make_adapters(self, opened: Opened, work: Workplace) -> AdaptersRecord:
        """Write adapters on the base, one a task or one for the merge; returns the record."""
        from hf_tsv.kept.on_base import write_on_base

        plan, sources = opened.plan, opened.sources
        with discarded_if_wrong(work.staging):
            reports = write_on_base(plan, sources[0], work)
            check_unchanged(plan, sources, work.identity)
        return make_compression_record(plan, described(sources, self.hub), reports, seconds=0.0)
