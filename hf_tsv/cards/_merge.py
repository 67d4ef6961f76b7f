"""The card of a merged model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData

from hf_tsv.cards._citations import citations
from hf_tsv.cards._licences import Licence
from hf_tsv.cards._loading import loading
from hf_tsv.cards._markdown import Markdown, one_line, sections
from hf_tsv.cards._published import published_lock, published_recipe, without_folders
from hf_tsv.cards._sections import compose
from hf_tsv.cards._sources import base_name, have_folders, have_licences, licence_sentence, provenance, source_rows
from hf_tsv.cards._tensors import tensor_tables
from hf_tsv.files.names import PICTURES
from hf_tsv.lora.formats import ADAPTERS
from hf_tsv.record import MergeRecord

# The Hub's names for kinds of evaluated tasks; all others are text generation.
HUB_TASKS = {"text-classification": "text-classification", "image-classification": "image-classification"}


@dataclass(frozen=True)
class AdapterRow:
    """An adapter on the merged model.

    Attributes:
        task: The adapter's task.
        folder: The adapter's folder in the output.
        folder_in_python: The folder as a Python string literal.
        bytes: The adapter's size.
        energy: The share of the task's change that the adapter holds.
    """

    task: str
    folder: str
    folder_in_python: Markdown
    bytes: int
    energy: float


@dataclass(frozen=True)
class Picture:
    """A picture in the output's folder: its `title`, and its `path`, quoted for a link."""

    title: str
    path: Markdown


def render_merge(record: MergeRecord, folder: Path, *, olds: Sequence[str], licence: Licence | None) -> str:
    """Render the card of a merged model; what people wrote into earlier cards stays."""
    how = loading(folder)
    common = provenance(record, published_recipe(record, folder), licence)
    method_tags = [name.replace("_", "-") for name in record.methods]
    header = ModelCardData(
        base_model_relation="merge" if common["base_model"] else None,
        **common,
        library_name=how.library if how else None,
        pipeline_tag=how.pipeline_tag if how else None,
        tags=["merge", "hf_tsv", *method_tags],
        **_model_index(record),
    )
    sources = source_rows(record)
    tables = tensor_tables(record)
    adapters: list[AdapterRow] = []
    for task, profiles in record.adapters.items():
        for profile, report in profiles.items():
            path = f"{ADAPTERS[profile]}/{task}"
            adapters.append(AdapterRow(task, path, Markdown(json.dumps(path)), report.bytes, report.energy))
    # Pictures in the output's folder `assets`, such as those of `hf-tsv inspect --plots`.
    pictures: list[Picture] = []
    for image in sorted((folder / PICTURES).glob("*.png")):
        address = quote(f"{PICTURES}/{image.name}")
        pictures.append(Picture(image.stem.replace("_", " "), Markdown(address)))
    contents = {
        "record": record,
        "tasks": sources[1:],
        "plural": "" if len(sources) == 2 else "s",  # the base and one task
        "base": base_name(sources),
        "sources": sources,
        "has_folders": have_folders(sources),
        "has_licences": have_licences(sources),
        "licence_sentence": licence_sentence(record, licence),
        "loading": how,
        "dtypes": tables.dtypes,
        "weight_bytes": tables.nbytes,
        "methods": tables.methods,
        "merged": tables.merged,
        "kept": tables.kept,
        "ranks": any(row.rank for row in tables.merged),
        "evaluation": record.evaluation,
        "own_adapters": adapters,
        "masks": record.masks,
        "pictures": pictures,
        "warnings": [without_folders(warning) for warning in record.warnings],
        "recipe": published_lock(record, folder),
        "citations": citations(method.paper for method in tables.methods),
    }
    return compose(header, sections("merge.md.j2", contents), olds)


def _model_index(record: MergeRecord) -> dict[str, Any]:
    """Return the values of the header's `model-index`; empty for a model that wasn't evaluated."""
    if record.evaluation is None:
        return {}
    results: list[EvalResult] = []
    for task, measured in record.evaluation.tasks.items():
        # Only scores of the model that the card is about, not of the base, the fine-tuned models or adapters.
        if "merged" in measured.scores:
            results.append(
                EvalResult(
                    task_type=HUB_TASKS.get(measured.kind, "text-generation"),
                    dataset_type=one_line(measured.data),
                    dataset_name=one_line(task),
                    metric_type=one_line(measured.metric),
                    metric_value=measured.scores["merged"],
                )
            )
    base = one_line(base_name(source_rows(record)))
    tasks = len(record.sources) - 1  # all but the base
    return {"model_name": f"{base}: {tasks} tasks merged by {record.method}", "eval_results": results}
