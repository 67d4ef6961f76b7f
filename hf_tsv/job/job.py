"""The job: all steps that merge, compress and merge --as adapter have in common.

    open the models -> plan -> check place, memory and disk -> fetch -> plan again -> resume or start -> write
    -> check that the models haven't changed -> companions -> record, checksums and card -> publish -> push

The recipe alone determines the output: a shared model, adapters or masks beside it, or adapters on the base.
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

    A launcher that sets RANK and WORLD_SIZE may start a job as several processes, with OUT on a file system that they
    all share. Each process then merges its part of the shared model's tensors; the first does everything else.

    Attributes:
        recipe: The recipe.
        out: The output folder. It appears only when it is complete.
        options: The options besides the recipe.
        push: The output's destination on the Hub; None if the output stays on this machine.
        hub: The connection to the Hub.
        progress: Notified of the work done.
    """

    recipe: Recipe
    out: Path
    options: Options = Options()
    push: Pushing | None = None
    hub: Hub = field(default_factory=Hub)
    progress: Progress = field(default_factory=Silent)

    def open(self) -> Opened:
        """Open the recipe's models, and plan the merge."""
        return open_recipe(
            self.recipe, self.hub, max_shard_size=self.options.max_shard_size, stream=self.options.stream
        )

    def run(self) -> MergeRecord | AdaptersRecord:
        """Carry out the job. If it has a push and OUT is already complete, only push it.

        A stopped job resumes where it was, and gives the same bytes.

        Returns:
            The output's record.

        Raises:
            HfTsvError: a user can correct the problem, or another process of the job has ended. Then no work is lost.
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
                    # Tensors that are read over a network, or uploaded file by file, are taken in the files' order.
                    in_order=self.options.stream or bool(destinations),
                )
                if process.rank:
                    # Only the shared model's tensors are divided; the first process makes all adapters.
                    if fetched.plan.makes_model:
                        help_to_write_shared(fetched.plan, work, team)
                    team.await_output(self.out / RECORD_FILE, stamp_before)
                    return self._record()
                self._make(fetched, work, team, destinations)
        record = self._record()
        if process.rank:
            return record
        # After the working folder's lock is released, because OUT is complete and an upload may take hours.
        return record.with_pushed(delivered(self.out, destinations, self.progress))

    def _record(self) -> MergeRecord | AdaptersRecord:
        """Read the record of the finished output from its file."""
        record = read_record(self.out)
        assert not isinstance(record, RestoredRecord), "a job makes models and adapters"
        return record

    def targets(self, opened: Opened) -> list[tuple[list[NamedTerms], Destination]]:
        """Check the output's destinations, and return each with its sources' terms.

        Raises:
            PublishError, HubError: name, access, privacy or licence forbids the push.
        """
        tasks = opened.plan.tasks if opened.plan.makes_task_adapters else None
        return targets(self.push, opened.sources, tasks, self.hub)

    def check_disks(self, opened: Opened) -> None:
        """Check that output and downloads fit on their disks, as far as headers show.

        Raises:
            ResourceError: a disk is too full.
        """
        check_disks([(self.out.parent, opened.plan.bytes_out), (self.hub.cache_dir, opened.download_bytes)])

    def _check(self, opened: Opened, resources: Resources) -> None:
        """Check everything that can be checked before any weights are read; raise for what is wrong."""
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
        """Write all files into the working folder, and make it the output."""
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
        # The tensors in the weight files have their own checksums already; all other files get theirs now.
        record = record.with_checksums(checksums(work.out, known_files))
        record = record.model_copy(update={"seconds": round(time.monotonic() - started, 1)})
        write_record(record, work.out)
        licence = destinations[0].licence if destinations else None  # the user's choice, the same for all
        write_card(record, work.out, licence=licence)
        work.staging.publish()

    def _make_model(
        self, opened: Opened, work: Workplace, team: Team, destinations: Sequence[Destination]
    ) -> MergeRecord:
        """Write the shared model and the files that single tasks keep beside it; return the record."""
        plan, sources = opened.plan, opened.sources
        destination = destinations[0] if destinations else None  # a merged model goes into one repository
        await_uploads = partial(self.progress.advance, 0.0, UPLOADING)
        with discarded_if_wrong(work.staging):
            with sending(destination, await_uploads) as send:
                tensors = write_shared(plan, work, team, lambda file: send(file, work.out / file))
            parts = write_parts(plan, work.out)
            # After the weights were last read for the model, so that any earlier change is noticed.
            check_unchanged(plan, sources, work.identity)
        copy_companions_of(plan, sources, self.hub, work.out)
        kept = write_kept(plan, work, parts)
        return make_record(plan, described(sources, self.hub), tensors, kept, seconds=0.0, device=work.resources.device)

    def _make_adapters(self, opened: Opened, work: Workplace) -> AdaptersRecord:
        """Write adapters on the base, one per task or one for the merge; return the record."""
        from hf_tsv.kept.on_base import write_on_base

        plan, sources = opened.plan, opened.sources
        with discarded_if_wrong(work.staging):
            reports = write_on_base(plan, sources[0], work)
            check_unchanged(plan, sources, work.identity)
        return make_compression_record(plan, described(sources, self.hub), reports, seconds=0.0)
