"""The card of adapters made by TSV-Compress: one adapter, or a folder of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_tsv.cards._citations import citations
from hf_tsv.cards._licences import Licence
from hf_tsv.cards._loading import read_json
from hf_tsv.cards._markdown import Markdown, sections
from hf_tsv.cards._published import published_lock, published_recipe, without_folders
from hf_tsv.cards._sections import compose
from hf_tsv.cards._sources import (
    have_folders,
    have_licences,
    licence_sentence,
    provenance,
    source_rows,
)
from hf_tsv.checkpoints.modules import group_of
from hf_tsv.errors import counted
from hf_tsv.files.names import LOCK_FILE, Profile
from hf_tsv.lora.format import ADAPTER_CONFIG, SIDECAR_FILE
from hf_tsv.lora.formats import ADAPTERS, FORMATS
from hf_tsv.record import AdaptersRecord

PAPER = "https://arxiv.org/abs/2412.00081"
TASK_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
Places = Mapping[tuple[str, Profile], str]  # each adapter's folder in a repository, by task and profile


@dataclass(frozen=True)
class AdapterRow:
    """A row of the table of adapters.

    Attributes:
        task: The adapter's task.
        folder: The adapter's folder in the repository.
        bytes: The adapter's size.
        share: The size as a share of the task's checkpoint.
        energy: The share of the task matrices' squared singular values that the adapter holds.
        left_out: The share of the whole squared change that the adapter lacks.
    """

    task: str
    folder: str
    bytes: int
    share: str
    energy: str
    left_out: str


@dataclass(frozen=True)
class RankRow:
    """A row of the table of ranks: the module type's `name`, the `count` of its tensors, and their `ranks`."""

    name: str
    count: int
    ranks: str


def of_task(record: AdaptersRecord, task: str) -> AdaptersRecord:
    """Return the part of a compression's record that is about one task."""
    return record.model_copy(
        update={
            "sources": tuple(source for source in record.sources if source.task in (None, task)),
            "checkpoint_bytes": {task: record.checkpoint_bytes[task]},
            "adapters": {task: record.adapters[task]},
        }
    )


def render_adapters(
    record: AdaptersRecord, folder: Path, places: Places, *, olds: Sequence[str], licence: Licence | None
) -> str:
    """Render the card of a record's adapters; what people wrote into earlier cards stays.

    Args:
        record: The record of a compression, or its part about one task.
        folder: The compression's output folder.
        places: The folder of each adapter in the card's repository.
        olds: The earlier cards.
        licence: The chosen licence; None for the licence that follows from the sources.
    """
    common = provenance(record, published_recipe(record, folder), licence)
    # An adapter is related to the base alone, which comes first; a local base has no id to name.
    has_id = common["base_model"] and record.sources[0].revision
    common["base_model"] = common["base_model"][:1] if has_id else None
    header = ModelCardData(
        base_model_relation="adapter" if has_id else None,
        **common,
        library_name="peft",
        tags=["hf_tsv", "tsv-c", "lora"],
    )
    contents = _contents(record, folder, places)
    contents["licence_sentence"] = licence_sentence(record, licence)
    return compose(header, sections("adapters.md.j2", contents), olds)


def _contents(record: AdaptersRecord, folder: Path, places: Places) -> dict[str, Any]:
    """Collect the values that the template shows."""
    sources = source_rows(record)
    (task, profile), place = next(iter(places.items()))
    base = sources[0].places[0]
    is_merge = (folder / ADAPTER_CONFIG).is_file()  # several tasks merged into one adapter, which is the output itself
    adapter = folder if is_merge else folder / ADAPTERS[profile] / task
    config = read_json(adapter / ADAPTER_CONFIG)
    adapters: list[AdapterRow] = []
    in_sidecar = 0
    for (adapter_task, adapter_profile), adapter_folder in places.items():
        report = record.adapters[adapter_task][adapter_profile]
        in_sidecar += len(report.in_sidecar)
        adapters.append(
            AdapterRow(
                adapter_task,
                adapter_folder,
                report.bytes,
                share=f"{report.bytes / record.checkpoint_bytes[adapter_task]:.1%}",
                energy=f"{report.energy:.1%}",
                left_out=f"{report.left_out_share:.2%}",
            )
        )
    profiles = list(dict.fromkeys(profile for _, profile in places))
    # The table of ranks by module type has room for one profile, the first.
    adapters_of_profile = [key for key in places if key[1] == profile]
    # The arguments of `from_pretrained`, as JSON, because Python can read its strings.
    base_in_python = json.dumps(base.name)
    if base.revision:
        base_in_python += f", revision={json.dumps(base.revision)}"
    lie = "lies" if in_sidecar == 1 else "lie"
    return {
        "record": record,
        "base": base,
        "tasks": len(record.adapters),
        "model_class": _model_class(config),
        "base_in_python": Markdown(base_in_python),
        "base_is_folder": not base.url,
        "folder_in_python": Markdown(json.dumps(place)) if place != "." else "",
        "adapters": adapters,
        "formats": [FORMATS[profile] for profile in profiles] if len(profiles) > 1 else [],
        "in_sidecar": f"{counted(in_sidecar, 'changed tensor')} {lie}" if in_sidecar else "",
        "sidecar": SIDECAR_FILE,
        "sources": sources,
        "has_licences": have_licences(sources),
        "has_folders": have_folders(sources),
        "ranks": _rank_rows(record, adapters_of_profile),
        "ranks_of": profile if len(adapters_of_profile) < len(places) else "",
        "warnings": [without_folders(warning) for warning in record.warnings],
        "recipe": published_lock(record, folder),
        "merges": len(sources) - 1 if is_merge else 0,
        "command": f"hf-tsv {'merge' if is_merge else 'compress'} {LOCK_FILE} OUT",
        "citations": citations([PAPER]),
    }


def _model_class(config: Mapping[str, Any]) -> str:
    """Return the Auto class for the adapter's task, else the base's own class, as PEFT has recorded it."""
    if auto_class := TASK_CLASSES.get(str(config.get("task_type"))):
        return auto_class
    mapping = config.get("auto_mapping")
    own = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else ""
    # The card's snippet is code that people run, so only an identifier may get into it.
    return own if own.isidentifier() and own != "None" else "AutoModel"


def _rank_rows(record: AdaptersRecord, adapters: Iterable[tuple[str, Profile]]) -> list[RankRow]:
    """Return, by module type, the number of tensors in these adapters and the range of their ranks."""
    by_module: dict[str, list[int | str]] = {}
    for task, profile in adapters:
        for name, rank in record.adapters[task][profile].ranks.items():
            by_module.setdefault(group_of(name), []).append(rank)
    rows: list[RankRow] = []
    for name, ranks in by_module.items():
        numbers = [rank for rank in ranks if isinstance(rank, int)]  # the others are `dense`
        shown: list[str] = []
        if numbers:
            ends = dict.fromkeys((min(numbers), max(numbers)))
            shown.append(" to ".join(map(str, ends)))
        if len(numbers) < len(ranks):
            shown.append("stored whole")
        rows.append(RankRow(name, len(ranks), ", ".join(shown)))
    return rows
