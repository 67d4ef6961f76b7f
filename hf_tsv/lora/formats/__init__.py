"""The formats that adapters are written in, and the registry of them.

Another format is a file beside this one, with a function `plan`, and an entry in FORMATS. This module imports neither
torch nor PEFT, so that commands can name the formats at once; a format's own file is imported when it plans.
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
    """A format of adapters.

    Attributes:
        name: What recipes, the command line and records call it: a profile.
        folder: Its folder in the output, in which each task has one. It starts with `adapters`.
        module: The module whose function `plan` plans an adapter.
        contents: What such an adapter holds, for help and cards: a noun phrase.
        is_complete: Whether it is meant to hold all changes. If so, a note reports those left out.
        is_read_by_peft: Whether PEFT loads it, so that the written files are compared with what PEFT loads from them.
        ranks: The ranks that it takes, one of them for the whole adapter; empty if each matrix has its own.
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
        """Decide from headers what an adapter holds.

        Args:
            architecture: The base model.
            ranks: The rank chosen for each tensor of the checkpoint that the fine-tune changed; 0 if nothing of it is
                kept, DENSE if it is stored whole.
            request: What else is asked for.

        Raises:
            CheckpointError: such an adapter can't be made of this model, or PEFT wouldn't read it as planned.
            MethodError: a rank that the format doesn't take, or a budget that it doesn't fit in.
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
