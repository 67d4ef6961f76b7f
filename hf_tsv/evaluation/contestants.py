"""The models that are compared on a task, each loaded by transformers, or by PEFT on top of it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.model_files import TOKENIZER, matches
from hf_tsv.checkpoints.protocol import AdapterCheckpoint, Checkpoint
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint
from hf_tsv.errors import CheckpointError, some
from hf_tsv.evaluation.suite import AnyTask, Classification, ImageClassification, LmEval, TextClassification
from hf_tsv.lora.formats import ADAPTERS, DEFAULT
from hf_tsv.lora.skeleton import model_class_of, quiet
from hf_tsv.record import AdapterReports, AdaptersRecord, MergeRecord
from hf_tsv.sources.models import Source

BASE, FINETUNED, MERGED, RESTORED = "base", "finetuned", "merged", "restored"
PROCESSOR = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Contestant:
    """One model on one task.

    Attributes:
        label: What the results call it.
        identity: A value that changes when its weights do.
        body: The checkpoint of the whole model, or of the one its adapter is put on.
        parts: What the task alone has and `body` lacks, such as its head.
        config_folder: Whose config.json says how the model is built.
        input_folders: Where its tokenizer or processor may lie; the first folder that has one counts.
        adapter: The folder of a PEFT adapter on top.
    """

    label: str
    identity: str
    body: Checkpoint
    parts: Checkpoint | None
    config_folder: Path
    input_folders: tuple[Path, ...]
    adapter: Path | None = None


def originals(sources: Sequence[Source], task: str | None) -> list[Contestant]:
    """The models that others are compared with on a task: the base, and the fine-tuned model if there is one.

    Args:
        sources: The recipe's models, fetched, the base first.
        task: The recipe's task; None for a task of the suite that belongs to none, and has no fine-tuned model.
    """
    base = sources[0]
    own: Source | None = None
    if task is not None:  # None is the base's own
        own = next((source for source in sources if source.task == task), None)
    assert base.folder is not None
    config = base.folder
    parts: Checkpoint | None = None
    identity = base.identity
    # An adapter has no configuration and no head of its own: the base's do.
    if own and own.folder and not isinstance(own.checkpoint, AdapterCheckpoint):
        config = own.folder
        base_shapes = {name: base.checkpoint.info(name).shape for name in base.checkpoint.names()}
        own_shapes = {name: own.checkpoint.info(name).shape for name in own.checkpoint.names()}
        # Such as a head that the base lacks, or has for another number of labels.
        if any(shape != base_shapes.get(name) for name, shape in own_shapes.items()):
            parts = own.checkpoint
            identity = f"{base.identity} {own.identity}"
    contestants = [Contestant(BASE, identity, base.checkpoint, parts, config, (base.folder, config))]
    if own:
        contestants.append(Contestant(FINETUNED, own.identity, own.checkpoint, None, config, (config, base.folder)))
    return contestants


def made(
    out: Path,
    record: MergeRecord | AdaptersRecord,
    restored: Callable[[str], Checkpoint],
    base: Contestant,
    task: str | None,
) -> list[Contestant]:
    """An output's models for a task: the merged model, its adapters, or both.

    Where PEFT loads less than an adapter's folder contains, and where the task has a mask, its restored checkpoint too.

    Args:
        out: An output of `merge` or `compress`.
        record: Its record.
        restored: Gives a task's checkpoint as `hf-tsv restore` writes it.
        base: The base model on that task.
        task: The recipe's task, as `originals` takes it.

    Raises:
        CheckpointError: the output's weights can't be read.
    """
    if isinstance(record, AdaptersRecord):
        return list(_adapted(out, record.adapters, restored, base, task))
    merged = open_checkpoint(out)
    identity = merged.fingerprint()
    parts: Checkpoint | None = None
    part = record.task_parts.get(task) if task is not None else None
    if part:
        path = out / part.file
        parts = SafetensorsCheckpoint([path], label=str(path))
        identity = f"{identity} {parts.fingerprint()}"
    # The output's own tokenizer comes first: merging may have changed the vocabulary.
    inputs = (out, *base.input_folders)
    shared = Contestant(MERGED, identity, merged, parts, base.config_folder, inputs)
    contestants = [shared, *_adapted(out, record.adapters, restored, shared, task)]
    if task is not None and record.masks and task in record.masks.tasks:
        # The task's own model is what its mask leaves of the merged one.
        whole = restored(task)
        contestants.append(replace(shared, label=RESTORED, identity=whole.fingerprint(), body=whole, parts=None))
    return contestants


def _adapted(
    out: Path,
    written: AdapterReports,
    restored: Callable[[str], Checkpoint],
    on: Contestant,
    task: str | None,
) -> Iterator[Contestant]:
    """The adapters that were written for a task, by profile, each on its model."""
    if task is None:
        return
    for profile, report in written.get(task, {}).items():
        folder = out / ADAPTERS[profile] / task
        label = "adapter" if profile == DEFAULT else f"adapter ({profile})"
        digest = hashlib.sha256()
        for path in sorted(folder.glob("adapter_*")):  # its weights and its configuration
            digest.update(path.read_bytes())
        identity = f"{on.identity} {digest.hexdigest()}"
        yield replace(on, label=label, identity=identity, parts=None, adapter=folder)
        # PEFT doesn't load the sidecar's tensors, but restoring does: the two models differ.
        if report.in_sidecar:
            whole = restored(task)
            yield replace(on, label=RESTORED, identity=whole.fingerprint(), body=whole, parts=None)


def load_model(contestant: Contestant, task: AnyTask, dtype: str, device: str) -> Any:
    """The model in evaluation mode. A task with a head of its own gets a model without one.

    Raises:
        CheckpointError: transformers can't build it, or weights that it needs are missing; the message names them.
    """
    config, model_class = _class_for(contestant, task)
    if dtype == "auto":
        # One float32 tensor is enough to compute in float32: rounding it would change the scores.
        stored = {contestant.body.info(name).dtype for name in contestant.body.names()}
        if stored & {"F64", "F32"}:
            torch_dtype = torch.float32
        else:
            torch_dtype = torch.bfloat16 if "BF16" in stored else torch.float16
    else:
        torch_dtype = BY_WORD[dtype].torch
    suite_has_head = isinstance(task, Classification) and bool(task.head)
    state = dict(_tensors(contestant.body))
    if contestant.parts and not suite_has_head:
        # Only what the body lacks or has in another shape: its merged tensors must stay.
        shapes = {name: tensor.shape for name, tensor in state.items()}
        state |= {name: tensor for name, tensor in _tensors(contestant.parts) if tensor.shape != shapes.get(name)}
    # Weights that an adapter replaces are drawn at random first; nothing may depend on which numbers they are.
    torch.manual_seed(0)
    try:
        with quiet():
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch_dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=contestant.adapter is not None,
            )
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise CheckpointError(f"{contestant.body.label}: transformers can't load it: {error}") from error
    # Weights that had to be drawn at random, except those of a pooler that the task doesn't use.
    ignores_pooler = isinstance(task, Classification) and suite_has_head and task.pooling != "pooled"
    missing = sorted(key for key in info["missing_keys"] if not (ignores_pooler and "pooler" in key))
    # An adapter may bring the weights that its model lacks, such as a head.
    if missing and not contestant.adapter:
        raise CheckpointError(
            f"{contestant.body.label}: as {type(model).__name__} for '{task.name}' it lacks {some(missing)}. Give the"
            " task a 'head', or choose a kind that fits the model."
        )
    if contestant.adapter:
        from peft import PeftModel

        try:
            with quiet():
                model = PeftModel.from_pretrained(model, str(contestant.adapter)).get_base_model()
        except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{contestant.adapter}: PEFT can't load it: {error}") from error
    return model.to(device).eval()


def _class_for(contestant: Contestant, task: AnyTask) -> tuple[Any, Any]:
    import transformers

    if contestant.adapter:  # its keys are those of the class that it was made for
        return model_class_of(contestant.config_folder)
    auto: Any = transformers.AutoModelForCausalLM
    if isinstance(task, Classification) and task.head:
        auto = transformers.AutoModel
    elif isinstance(task, TextClassification):
        auto = transformers.AutoModelForSequenceClassification
    elif isinstance(task, ImageClassification):
        auto = transformers.AutoModelForImageClassification
    try:
        config = transformers.AutoConfig.from_pretrained(contestant.config_folder, trust_remote_code=False)
        if isinstance(task, LmEval) and config.is_encoder_decoder:
            auto = transformers.AutoModelForSeq2SeqLM
        with quiet(), torch.device("meta"):  # for its class alone: no memory is taken
            return config, type(auto.from_config(config))
    except (ValueError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{contestant.config_folder}: no model for '{task.name}': {reason}") from error


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    return ((name, checkpoint.read(name)) for name in checkpoint.names())


def load_tokenizer(contestant: Contestant) -> Any:
    """The tokenizer of a model.

    Raises:
        CheckpointError: it has none, or it can't be loaded.
    """
    return _inputs(contestant, TOKENIZER, "AutoTokenizer", "tokenizer")


def load_processor(contestant: Contestant) -> Any:
    """The image processor of a model.

    Raises:
        CheckpointError: it has none, or it can't be loaded.
    """
    return _inputs(contestant, PROCESSOR, "AutoImageProcessor", "image processor")


def _inputs(contestant: Contestant, files: Sequence[str], name: str, what: str) -> Any:
    import transformers

    for folder in contestant.input_folders:
        names = [path.name for path in folder.iterdir()]
        if matches(files, names):
            try:
                with quiet():
                    loader = getattr(transformers, name)  # an ImportError where what it needs isn't installed
                    return loader.from_pretrained(folder, local_files_only=True)
            except (ValueError, OSError, ImportError, KeyError) as error:
                raise CheckpointError(f"{folder}: its {what} can't be loaded: {error}") from error
    # The base's folder may be listed twice: as the one of its configuration, too.
    folders = ", ".join(map(str, dict.fromkeys(contestant.input_folders)))
    raise CheckpointError(f"{contestant.body.label}: no {what} in {folders}. Put one beside the base model")


def label_names(model: Any) -> dict[str, int]:
    """The labels of a model with a head, by name."""
    numbers = getattr(model.config, "label2id", None) or {}
    return {str(name): int(number) for name, number in numbers.items()}
