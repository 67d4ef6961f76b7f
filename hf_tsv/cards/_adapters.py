"""The card of adapters made by TSV-Compress: of one, or of a folder of them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_tsv.cards._licences import Licence
from hf_tsv.cards._loading import read_json
from hf_tsv.cards._markdown import Markdown, sections
from hf_tsv.cards._merge import citations, licence_said, provenance, source_rows
from hf_tsv.cards._published import published_lock, without_folders
from hf_tsv.cards._sections import compose
from hf_tsv.checkpoints.modules import group_of
from hf_tsv.errors import counted
from hf_tsv.files.names import LOCK_FILE
from hf_tsv.lora.format import ADAPTER_CONFIG, SIDECAR_FILE
from hf_tsv.lora.formats import ADAPTERS, FORMATS

PAPER = "https://arxiv.org/abs/2412.00081"
TASK_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def of_task(record: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The part of a compression's record that is about one task."""
    return {
        **record,
        "sources": [source for source in record["sources"] if source["task"] in (None, task)],
        "checkpoint_bytes": {task: record["checkpoint_bytes"][task]},
        "tasks": {task: record["tasks"][task]},
    }


def render_adapters(
    record: Mapping[str, Any],
    folder: Path,
    places: Mapping[tuple[str, str], str],
    *,
    olds: Sequence[str],
    licence: Licence | None,
) -> str:
    """The card of the adapters of a record; what people wrote into earlier ones stays.

    Args:
        record: A compression's, or the part of it about one task.
        folder: The compression's output.
        places: By task and profile, where an adapter lies in the repository that the card is for.
        olds: Earlier cards.
        licence: The one chosen; None for what follows from the sources.
    """
    common = provenance(record, folder, licence)
    base = common["base_model"][:1] if common["base_model"] and record["sources"][0]["revision"] else None
    header = ModelCardData(
        base_model_relation="adapter" if base else None,
        **{**common, "base_model": base},
        library_name="peft",
        tags=["hf_tsv", "tsv-c", "lora"],
    )
    return compose(header, sections("adapters.md.j2", _contents(record, folder, places, licence)), olds)


def _contents(
    record: Mapping[str, Any], folder: Path, places: Mapping[tuple[str, str], str], licence: Licence | None
) -> dict[str, Any]:
    """What the template shows."""
    sources = source_rows(record)
    (task, profile), place = next(iter(places.items()))
    base = sources[0]["places"][0]
    merges = (folder / ADAPTER_CONFIG).is_file()  # several tasks as one adapter, which is the output itself
    profiles = dict.fromkeys(profile for _, profile in places)
    config = read_json((folder if merges else folder / ADAPTERS[profile] / task) / ADAPTER_CONFIG)
    return {
        "record": record,
        "base": base,
        "tasks": len(record["tasks"]),
        "model_class": _model_class(config),
        "base_in_python": Markdown(_in_python(base)),
        "base_is_folder": not base["url"],
        "folder_in_python": Markdown(json.dumps(place)) if place != "." else "",
        "adapters": [_adapter(record, *key, place) for key, place in places.items()],
        "formats": [FORMATS[profile] for profile in profiles] if len(profiles) > 1 else [],
        "in_sidecar": _in_sidecar(record, places),
        "sidecar": SIDECAR_FILE,
        "sources": sources,
        "has_licences": any(place["licence"] for source in sources for place in source["places"]),
        "licence_said": licence_said(record, licence),
        "has_folders": any(not place["url"] for source in sources for place in source["places"]),
        "ranks": list(_ranks(record, [key for key in places if key[1] == profile])),
        "ranks_of": profile if len(profiles) > 1 else "",
        "warnings": [without_folders(warning) for warning in record["warnings"]],
        "recipe": published_lock(record, folder),
        "merges": len(sources) - 1 if merges else 0,
        "command": " ".join(["hf-tsv", "merge" if merges else "compress", LOCK_FILE, "OUT", *record["flags"]]),
        "citations": citations([PAPER]),
    }


def _in_sidecar(record: Mapping[str, Any], adapters: Iterable[tuple[str, str]]) -> str:
    """How many changed tensors lie beside these adapters, as the beginning of a sentence; empty where none does."""
    number = sum(len(record["tasks"][task][profile].get("in_sidecar", ())) for task, profile in adapters)
    return f"{counted(number, 'changed tensor')} {'lies' if number == 1 else 'lie'}" if number else ""


def _model_class(config: Mapping[str, Any]) -> str:
    """The Auto class by the adapter's task, else the base's own class, as PEFT has noted it."""
    mapping = config.get("auto_mapping")
    own = str(mapping.get("base_model_class")) if isinstance(mapping, dict) else ""
    return TASK_CLASSES.get(str(config.get("task_type"))) or (
        own if own.isidentifier() and own != "None" else "AutoModel"
    )


def _in_python(place: Mapping[str, Any]) -> str:
    revision = f", revision={json.dumps(place['revision'])}" if place["revision"] else ""
    return json.dumps(place["name"]) + revision


def _adapter(record: Mapping[str, Any], task: str, profile: str, place: str) -> dict[str, Any]:
    facts = record["tasks"][task][profile]
    return {
        "task": task,
        "folder": place,
        "bytes": facts["bytes"],
        "share": f"{facts['bytes'] / record['checkpoint_bytes'][task]:.1%}",
        "energy": f"{facts['energy']:.1%}",
        "left_out": f"{facts['left_out_share']:.2%}",
    }


def _ranks(record: Mapping[str, Any], adapters: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """By module type, how many tensors these adapters hold, and between which ranks they lie."""
    found: dict[str, list[int | str]] = {}
    for task, profile in adapters:
        for name, rank in record["tasks"][task][profile]["ranks"].items():
            found.setdefault(group_of(name), []).append(rank)
    for name, ranks in found.items():
        numbers = sorted({rank for rank in ranks if isinstance(rank, int)})
        told = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1])))) if numbers else ""
        whole = "stored whole" if len(numbers) < len(set(ranks)) else ""
        yield {"name": name, "count": len(ranks), "ranks": ", ".join(filter(None, (told, whole)))}
