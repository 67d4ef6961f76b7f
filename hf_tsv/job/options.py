"""The options of a job besides the recipe. The command line's flags are made from these classes.

A field's metadata has `help` for the flag's description and, where needed, `metavar`, `flag` (the flag's spelling) and
`least` (the smallest value).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_tsv.errors import OutputError, parse_bytes
from hf_tsv.lora.formats import FORMATS

if TYPE_CHECKING:  # --help must not wait for torch
    from hf_tsv.merging.resources import Resources


def option(default: Any, help_: str, **more: Any) -> Any:
    """Make a field of an option class."""
    return field(default=default, metadata={"help": help_, **more})


@dataclass(frozen=True)
class Limits:
    """The part of the machine's resources that a job may use.

    Attributes:
        workers: Number of tensors in work at once in each process, one processor core each; None for all cores.
        max_memory: Maximum memory for all tensors in work together, in bytes or as `4GB`; None for most of the free
            memory. By default, the processes on one machine get equal shares of cores and memory.
        device: Device on which methods compute: `cpu`, `cuda`, or one of several as `cuda:1`. With `cuda`, the
            processes on one machine take its GPUs in turn. Another kind of device rounds differently.
    """

    workers: int | None = option(None, "Tensors in work at once. Default: one for each core.", least=1)
    max_memory: int | str | None = option(None, "Memory for the tensors in work, such as 4GB.", metavar="SIZE")
    device: str = option("cpu", "Where methods compute: cpu, cuda or cuda:1.")

    @property
    def max_bytes(self) -> int | None:
        """`max_memory` in bytes.

        Raises:
            OutputError: it is not a size.
        """
        if not isinstance(self.max_memory, str):
            return self.max_memory
        try:
            return parse_bytes(self.max_memory)
        except ValueError as error:
            raise OutputError(f"max_memory: {error}. Write a size such as 4GB") from None

    def resources(self, *, local_rank: int = 0, local_count: int = 1) -> "Resources":
        """Return the resources of one process on this machine, with defaults filled in."""
        from hf_tsv.merging.resources import Resources, device_named

        return Resources.of(self.workers, self.max_bytes, local_count, device_named(self.device, local_rank))


@dataclass(frozen=True)
class Options(Limits):
    """The options for how a job is done; the recipe says what is done.

    Attributes:
        overwrite: True to replace an earlier output.
        restart: True to throw away the work of an unfinished job instead of resuming it.
        max_shard_size: Largest size of a weight file, in bytes or as `5GB`.
        stream: True to read weights from the Hub tensor by tensor instead of downloading their files. The base's files
            are still downloaded where PEFT has to load the base.
    """

    overwrite: bool = option(False, "Replace an earlier output of hf-tsv.")
    restart: bool = option(False, "Throw away the work of an unfinished run.")
    max_shard_size: int | str = option("5GB", "Largest file of weights.", metavar="SIZE")
    stream: bool = option(False, "Read models from the Hub tensor by tensor, with no copy on disk.")


@dataclass(frozen=True)
class Access:
    """Access to the Hub.

    Attributes:
        token: The Hub token; None for the token that `hf auth login` has stored, or HF_TOKEN.
        cache_dir: The folder for downloads; None for the Hub's own cache.
    """

    token: str | None = option(None, "Hub token. Better: `hf auth login`, or the variable HF_TOKEN.")
    cache_dir: Path | None = option(None, "Folder for downloads.", metavar="DIR")


@dataclass(frozen=True)
class AdapterOptions:
    """The options for writing adapters. None keeps the recipe's setting.

    Attributes:
        profile: Names of the formats to write, separated by commas: `faithful` holds all that PEFT can hold, `serving`
            what servers of many adapters can read.
        serving_rank: Rank of all factors in formats with one rank (default: the largest that fits into the budget or,
            without a budget, the smallest that holds what the rules chose).
        factor_dtype: Dtype of the factors (default: `bfloat16` under a budget, else each tensor's own dtype).
        together: True if the adapters share their budgets, so that a task that changed more gets more bytes.
        verify: The check of PEFT's reading of an adapter: by its `weights`, or also by a `forward` pass.
    """

    # Every default is None because an option that isn't given must not overrule the recipe.
    profile: str | None = option(
        None,
        "Formats to write. faithful: all that PEFT holds; serving: what vLLM and other servers read.",
        metavar=",".join(FORMATS),
    )
    serving_rank: int | None = option(None, "Rank of all factors in the serving format.", metavar="8|16|32|64|128")
    factor_dtype: Literal["float32", "bfloat16", "float16"] | None = option(
        None, "Dtype of the factors. Default: bfloat16 under a budget, else the model's own."
    )
    together: bool | None = option(
        None, "Let the adapters share their budgets: more for tasks that need more.", flag="--together"
    )
    verify: Literal["weights", "forward"] | None = option(None, "How PEFT's reading is checked. Default: by weights.")

    @property
    def settings(self) -> dict[str, Any]:
        """The given options, under their names in a recipe's `adapters`."""
        settings = {
            "profiles": self.profile.split(",") if self.profile else None,
            "rank": self.serving_rank,
            "factor_dtype": self.factor_dtype,
            "together": self.together,
            "verify": self.verify,
        }
        return {key: value for key, value in settings.items() if value is not None}
