"""The formats that adapters are written in, and their registry.

To add a format, add a file with a function `plan` to this folder, and an entry to FORMATS. This module imports neither
torch nor PEFT, so that commands can list the formats quickly; a format's own file is imported when it plans.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from hf_tsv.files.names import Profile

if TYPE_CHECKING:
    from hf_tsv.linalg.ranks import Dense
    from hf_tsv.lora.architecture import Architecture
    from hf_tsv.lora.write.plan import AdapterPlan, AdapterRequest


@dataclass(frozen=True)
class AdapterFormat:
    """An adapter format.

    Attributes:
        name: The format's name in recipes, on the command line and in records, where it is called a profile.
        folder: Its folder in the output, with a subfolder for each task. The name starts with `adapters`.
        module: The module whose function `plan` plans an adapter.
        contents: A noun phrase for help and cards that describes an adapter's contents.
        is_complete: True if it is meant to hold all changes, so that a note reports those left out.
        is_read_by_peft: True if PEFT loads it, so that the written files are checked by loading them with PEFT.
        ranks: The allowed ranks, one of which applies to the whole adapter; empty if each matrix has its own rank.
    """

    name: Profile
    folder: str
    module: str
    contents: str
    is_complete: bool = False
    is_read_by_peft: bool = True
    ranks: tuple[int, ...] = ()

    def plan(
        self, architecture: "Architecture", ranks: "Mapping[str, int | Dense]", request: "AdapterRequest"
    ) -> "AdapterPlan":
        """Plan an adapter's contents from headers.

        Args:
            architecture: The base model.
            ranks: The rank chosen for each tensor of the checkpoint that the fine-tune changed: 0 to drop the
                change, DENSE to store the tensor whole.
            request: The other options.

        Raises:
            CheckpointError: no such adapter can be made for this model, or PEFT wouldn't read it as planned.
            MethodError: the format doesn't allow the requested rank, or the adapter doesn't fit in the budget.
        """
        planner: Callable[[Architecture, Mapping[str, int | Dense], AdapterRequest], AdapterPlan] = import_module(
            self.module
        ).plan
        return planner(architecture, ranks, request)


_FORMATS = (
    AdapterFormat(
        name="faithful",
        folder="adapters",
        module="hf_tsv.lora.formats.faithful",
        contents="everything that fine-tuning changed, as far as PEFT can hold it",
        is_complete=True,
    ),
    AdapterFormat(
        name="serving",
        folder="adapters-serving",
        module="hf_tsv.lora.formats.serving",
        contents="the linear modules of the layers at one rank, which vLLM, SGLang, LoRAX and llama.cpp also read",
        ranks=(8, 16, 32, 64, 128),
    ),
)
FORMATS: dict[Profile, AdapterFormat] = {one.name: one for one in _FORMATS}
DEFAULT: Profile = _FORMATS[0].name
ADAPTERS: dict[Profile, str] = {one.name: one.folder for one in _FORMATS}  # the folders in an output
