"""A fine-tune's change as a PEFT adapter: planned from headers, written tensor by tensor, checked by PEFT itself."""

from hf_tsv.adapters._architecture import Architecture, Place, read_architecture
from hf_tsv.adapters._changes import Change, LowRankChange, WholeChange
from hf_tsv.adapters._faithful import Misfits, plan_adapter
from hf_tsv.adapters._plan import ADAPTER_FILE, CONFIG_FILE, AdapterPlan, BaseRef
from hf_tsv.adapters._serving import SERVING_RANKS, plan_serving
from hf_tsv.adapters._skeleton import check_installed, model_class_of, quiet
from hf_tsv.adapters._verify import Verification, verify_adapter
from hf_tsv.adapters._writer import AdapterReport, AdapterWriter

__all__ = [
    "ADAPTER_FILE",
    "CONFIG_FILE",
    "SERVING_RANKS",
    "AdapterPlan",
    "AdapterReport",
    "AdapterWriter",
    "Architecture",
    "BaseRef",
    "Change",
    "LowRankChange",
    "Misfits",
    "Place",
    "Verification",
    "WholeChange",
    "check_installed",
    "model_class_of",
    "plan_adapter",
    "plan_serving",
    "quiet",
    "read_architecture",
    "verify_adapter",
]
