"""Checks a plan against the tensors that PEFT creates for its adapter_config.json, on the model without weights."""

from dataclasses import dataclass

from hf_tsv.errors import CheckpointError
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.skeleton import make_skeleton, quiet
from hf_tsv.lora.write.plan import AdapterPlan
from hf_tsv.lora.write.slots import LoraSlot


@dataclass(frozen=True)
class Unlike:
    """The differences between PEFT and a plan.

    Attributes:
        keys: Keys of the tensors that only one of them has, or whose shapes differ.
        parameters: The planned parameters that PEFT adds no factors to.
    """

    keys: frozenset[str]
    parameters: frozenset[str]


def unlike_peft(architecture: Architecture, plan: AdapterPlan) -> Unlike:
    """Compare a plan with the tensors that PEFT would look for in the adapter's file.

    Raises:
        CheckpointError: PEFT refuses the configuration.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    expected: dict[str, tuple[int, ...]] = {}
    for slot in plan.slots:
        for info in slot.infos:
            expected[info.name] = info.shape
    options = plan.config.written()
    del options["peft_type"]  # LoraConfig sets it itself
    with quiet():
        model = make_skeleton(architecture.config_folder)
        try:
            adapted = get_peft_model(model, LoraConfig(**options), low_cpu_mem_usage=True)
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{architecture.folder}: PEFT refuses the adapter that was planned: {error}"
            ) from error
        state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    of_peft = {key: tuple(tensor.shape) for key, tensor in state.items()}
    missing = expected.keys() - of_peft.keys()
    unplanned = of_peft.keys() - expected.keys()
    reshaped = {key for key in expected.keys() & of_peft.keys() if of_peft[key] != expected[key]}
    unfit = set()
    for slot in plan.slots:
        keys = {info.name for info in slot.infos}
        if isinstance(slot, LoraSlot) and keys & missing:
            unfit.add(slot.parameter)
    return Unlike(frozenset(missing | unplanned | reshaped), frozenset(unfit))
