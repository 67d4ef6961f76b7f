"""The models that are compared on a task, each loaded by transformers, adapters by PEFT on top of it."""

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
        label: The model's name in the results.
        identity: A value that changes when the model's weights do.
        body: The checkpoint of the whole model, or of the model under its adapter.
        parts: The checkpoint of the task's own tensors that `body` lacks, such as its head; None if there are none.
        config_folder: The folder whose config.json says how the model is built.
        input_folders: Folders to search for its tokenizer or processor; the first one found is used.
        adapter: The folder of a PEFT adapter on top; None without one.
    """

    label: str
    identity: str
    body: Checkpoint
    parts: Checkpoint | None
    config_folder: Path
    input_folders: tuple[Path, ...]
    adapter: Path | None = None


def originals(sources: Sequence[Source], task: str | None) -> list[Contestant]:
    """List the models that others are compared with on a task: the base, and the fine-tuned model if there is one.

    Args:
        sources: The recipe's models, fetched, the base first.
        task: The recipe's task; None for a task of the suite that has no fine-tuned model.
    """
    base = sources[0]
    own: Source | None = None
    if task is not None:  # the base's own task is None
        own = next((source for source in sources if source.task == task), None)
    assert base.folder is not None
    config = base.folder
    parts: Checkpoint | None = None
    identity = base.identity
    # An adapter has no configuration and no head of its own: it uses the base's.
    if own and own.folder and not isinstance(own.checkpoint, AdapterCheckpoint):
        config = own.folder
        base_shapes = {name: base.checkpoint.info(name).shape for name in base.checkpoint.names()}
        own_shapes = {name: own.checkpoint.info(name).shape for name in own.checkpoint.names()}
        # For example, a head that the base lacks, or has for another number of labels.
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
    """List an output's models for a task: the merged model, its adapters, or both.

    If PEFT loads less than an adapter's folder contains, or the task has a mask, its restored checkpoint is added.

    Args:
        out: An output of `merge` or `compress`.
        record: The output's record.
        restored: A function that returns a task's checkpoint as `hf-tsv restore` writes it.
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
        # The task's own model is the part of the merged one that its mask keeps.
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
    """Yield the adapters that were written for a task, by profile, each on its model."""
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
    """Load the model in evaluation mode, without a head if the task has its own.

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
        # Add only tensors that the body lacks or has in another shape: its merged tensors must stay.
        shapes = {name: tensor.shape for name, tensor in state.items()}
        state |= {name: tensor for name, tensor in _tensors(contestant.parts) if tensor.shape != shapes.get(name)}
    # Weights that an adapter replaces are random first. The fixed seed makes these numbers the same each time.
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
    # Missing weights were initialized at random. Those of a pooler that the task doesn't use are harmless.
    ignores_pooler = isinstance(task, Classification) and suite_has_head and task.pooling != "pooled"
    missing = sorted(key for key in info["missing_keys"] if not (ignores_pooler and "pooler" in key))
    # An adapter can contain the weights that its model lacks, such as a head.
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
    """Return the model's configuration, and the transformers class that the task needs."""
    import transformers

    if contestant.adapter:  # its keys fit only the class that it was made for
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
        with quiet(), torch.device("meta"):  # built only to learn its class: takes no memory
            return config, type(auto.from_config(config))
    except (ValueError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{contestant.config_folder}: no model for '{task.name}': {reason}") from error


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    return ((name, checkpoint.read(name)) for name in checkpoint.names())


def load_tokenizer(contestant: Contestant) -> Any:
    """Load the tokenizer of a model.

    Raises:
        CheckpointError: the model has none, or it can't be loaded.
    """
    return _inputs(contestant, TOKENIZER, "AutoTokenizer", "tokenizer")


def load_processor(contestant: Contestant) -> Any:
    """Load the image processor of a model.

    Raises:
        CheckpointError: the model has none, or it can't be loaded.
    """
    return _inputs(contestant, PROCESSOR, "AutoImageProcessor", "image processor")


def _inputs(contestant: Contestant, files: Sequence[str], name: str, what: str) -> Any:
    """Load the tokenizer or processor by its Auto class `name`; messages call it `what`."""
    import transformers

    for folder in contestant.input_folders:
        names = [path.name for path in folder.iterdir()]
        if matches(files, names):
            try:
                with quiet():
                    loader = getattr(transformers, name)  # ImportError if a package that it needs isn't installed
                    return loader.from_pretrained(folder, local_files_only=True)
            except (ValueError, OSError, ImportError, KeyError) as error:
                raise CheckpointError(f"{folder}: its {what} can't be loaded: {error}") from error
    # The base's folder may be listed twice, because it may also be the configuration's folder.
    folders = ", ".join(map(str, dict.fromkeys(contestant.input_folders)))
    raise CheckpointError(f"{contestant.body.label}: no {what} in {folders}. Put one beside the base model")


def label_names(model: Any) -> dict[str, int]:
    """Return the label numbers of a model with a head, by label name."""
    numbers = getattr(model.config, "label2id", None) or {}
    return {str(name): int(number) for name, number in numbers.items()}
