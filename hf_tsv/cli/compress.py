"""`hf-tsv compress`: compress every fine-tuned model into an adapter."""

from hf_tsv.cli._flags import with_flags
from hf_tsv.cli._options import Keep, OutFolder, PushOptions, RecipeFile, RunOptions, Talk
from hf_tsv.cli._told import told
from hf_tsv.cli.merge import run_job
from hf_tsv.job.options import Access, AdapterOptions


@told
@with_flags
def compress(
    recipe: RecipeFile,
    adapters: AdapterOptions,
    options: RunOptions,
    push: PushOptions,
    access: Access,
    talk: Talk,
    out_: OutFolder = None,
    keep: Keep = None,
) -> None:
    """Compress every model of a recipe into a PEFT adapter, and check that PEFT loads it correctly. An interrupted
    run resumes where it stopped."""
    from hf_tsv.verbs.compress import compression_of

    compression = compression_of(recipe, keep, adapters)
    run_job(compression, push.out_folder(out_), options, push, access, talk, label="Compressing")
