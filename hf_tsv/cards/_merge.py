"""The card of a merged model."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData

from hf_tsv.cards._licences import Licence, inherited
from hf_tsv.cards._loading import Loading, loading
from hf_tsv.cards._markdown import Markdown, one_line, sections
from hf_tsv.cards._published import (
    folder_name,
    places,
    published_lock,
    published_recipe,
    without_folders,
)
from hf_tsv.cards._sections import compose
from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.checkpoints.modules import group_of
from hf_tsv.checkpoints.protocol import TensorInfo
from hf_tsv.files.names import ADAPTERS, PICTURES
from hf_tsv.methods import METHODS
from hf_tsv.recipe import in_repository
from hf_tsv.recipe.bundled import bundled

HUB = "https://huggingface.co"
# What the kinds of tasks that models are scored on are called on the Hub, where it is otherwise.
HUB_TASKS = {"text-classification": "text-classification", "image-classification": "image-classification"}


def render_merge(record: Mapping[str, Any], folder: Path, *, olds: Sequence[str], licence: Licence | None) -> str:
    """The card of a merged model; what people wrote into earlier ones stays."""
    how = loading(folder)
    contents = sections(
        "merge.md.j2", {**_contents(record, folder, how), "licence_said": licence_said(record, licence)}
    )
    return compose(_header(record, folder, how, licence), contents, olds)


def provenance(record: Mapping[str, Any], folder: Path, licence: Licence | None) -> dict[str, Any]:
    """What every header says of where the model comes from."""
    found = [place for source in record["sources"] for place in places(source)]
    terms = all_terms(record)
    chosen = licence or inherited(terms).licence
    return {
        "base_model": list(dict.fromkeys(one_line(in_repository(path)[0]) for path, revision in found if revision))
        or None,
        "license": chosen and one_line(chosen.id),
        "license_name": chosen and chosen.name and one_line(chosen.name),
        "license_link": chosen and chosen.link and one_line(chosen.link),
        "language": _union(terms, "language"),
        "datasets": _union(terms, "datasets"),
        "hf_tsv": {
            "version": record["versions"]["hf_tsv"],
            "recipe_sha256": hashlib.sha256(published_recipe(record, folder).encode()).hexdigest(),
        },
    }


def licence_said(record: Mapping[str, Any], licence: Licence | None) -> str:
    """Which licence the model carries, and why; empty where no source says anything of one."""
    found = inherited(all_terms(record))
    if licence:
        said = f"Licence: {licence.name or licence.id}, as whoever published this has chosen."
    elif found.licence:
        said = f"Licence: {found.licence.name or found.licence.id}; {found.why}."
    else:
        named = any(term.get("license") for term in all_terms(record))
        return f"No licence follows from these: {found.why}." if named else ""
    carried = licence or found.licence
    return said + (" Built with Llama." if carried and carried.id.startswith("llama") else "")


def all_terms(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each model and adapter that a record names says of itself, with its name; the base first."""
    return [
        {"name": path if revision else folder_name(path), **terms}
        for source in record["sources"]
        for (path, revision), terms in zip(places(source), _terms(source), strict=True)
    ]


def _terms(source: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return source.get("terms") or [{} for _ in places(source)]


def _union(terms: Iterable[Mapping[str, Any]], key: str) -> list[str] | None:
    return list(dict.fromkeys(one_line(value) for term in terms for value in term.get(key) or ())) or None


def _header(record: Mapping[str, Any], folder: Path, how: Loading | None, licence: Licence | None) -> ModelCardData:
    common = provenance(record, folder, licence)
    return ModelCardData(
        base_model_relation="merge" if common["base_model"] else None,
        **common,
        library_name=how.library if how else None,
        pipeline_tag=how.pipeline_tag if how else None,
        tags=["merge", "hf_tsv", *(name.replace("_", "-") for name in record["methods"])],
        **_measured(record),
    )


def _measured(record: Mapping[str, Any]) -> dict[str, Any]:
    """The header's `model-index`; nothing for a model that was not evaluated."""
    if "evaluation" not in record:
        return {}
    results = [
        EvalResult(
            task_type=HUB_TASKS.get(told["kind"], "text-generation"),
            dataset_type=one_line(told["data"]),
            dataset_name=one_line(task),
            metric_type=one_line(told["metric"]),
            metric_value=told["scores"]["merged"],
        )
        for task, told in record["evaluation"]["tasks"].items()
    ]
    tasks = len(record["sources"]) - 1
    base = PurePosixPath(source_rows(record)[0]["places"][0]["name"]).name
    return {"model_name": f"{one_line(base)}: {tasks} tasks merged by {record['method']}", "eval_results": results}


def _contents(record: Mapping[str, Any], folder: Path, how: Loading | None) -> dict[str, Any]:
    """What the template shows."""
    sources = source_rows(record)
    merged = {name: facts for name, facts in record["tensors"].items() if not _why_kept(facts)}
    methods = {name: [facts for facts in merged.values() if facts["method"] == name] for name in record["methods"]}
    used = {name: tensors for name, tensors in methods.items() if tensors}
    varying = {name: _varying(tensors) for name, tensors in used.items()}
    merged_rows = [_merged_row(group, varying) for group in _grouped(merged)]
    return {
        "record": record,
        "tasks": sources[1:],
        "plural": "" if len(sources) == 2 else "s",
        "base": PurePosixPath(sources[0]["places"][0]["name"]).name,
        "sources": sources,
        "has_folders": any(not place["url"] for source in sources for place in source["places"]),
        "loading": how,
        "dtypes": _dtypes(record),
        "weight_bytes": sum(info.nbytes for info in _infos(record)),
        "methods": [_method(name, tensors, varying[name]) for name, tensors in used.items()],
        "merged": merged_rows,
        "ranks": any(row["rank"] for row in merged_rows),
        "has_licences": any(place["licence"] for source in sources for place in source["places"]),
        "kept": list(_grouped({n: facts for n, facts in record["tensors"].items() if n not in merged})),
        "evaluation": record.get("evaluation"),
        "own_adapters": list(_own_adapters(record)),
        "masks": record.get("masks"),
        "pictures": [_picture(path) for path in sorted((folder / PICTURES).glob("*.png"))],
        "warnings": [without_folders(warning) for warning in record["warnings"]],
        "recipe": published_lock(record, folder),
        "citations": citations(METHODS[name].paper for name in used),
    }


def _own_adapters(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The adapters on the merged model."""
    for task, profiles in record.get("adapters", {}).items():
        for profile, facts in profiles.items():
            folder = f"{ADAPTERS[profile]}/{task}"
            yield {"task": task, "folder": folder, "folder_in_python": Markdown(json.dumps(folder)), **facts}


def _picture(path: Path) -> dict[str, Any]:
    return {"title": path.stem.replace("_", " "), "path": Markdown(quote(f"{PICTURES}/{path.name}"))}


def source_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sources as a table shows them."""
    return [
        {
            "task": source["task"],
            "places": [_place(*place, terms) for place, terms in zip(places(source), _terms(source), strict=True)],
        }
        for source in record["sources"]
    ]


def _place(path: str, revision: str | None, terms: Mapping[str, Any]) -> dict[str, Any]:
    """A Hub id, or a folder's last part: where it lies on somebody's machine is nobody's business."""
    repo_id, folder = in_repository(path)
    return {
        "name": path if revision else folder_name(path),
        "revision": revision,
        "url": "/".join(filter(None, (HUB, repo_id, "tree", revision, folder))) if revision else None,
        "licence": terms.get("license_name") or terms.get("license"),
    }


def _infos(record: Mapping[str, Any]) -> list[TensorInfo]:
    return [TensorInfo(name, tuple(facts["shape"]), facts["dtype"]) for name, facts in record["tensors"].items()]


def _dtypes(record: Mapping[str, Any]) -> list[str]:
    """The dtypes of the floating-point weights, that of the most bytes first."""
    found: Counter[str] = Counter()
    for info in _infos(record):
        if info.dtype in DTYPES and info.is_float:  # a record may have been edited
            found[DTYPES[info.dtype].word] += info.nbytes
    return [dtype for dtype, _ in found.most_common()]


def _why_kept(facts: Mapping[str, Any]) -> str:
    """Why a tensor is the base's; empty when it was merged."""
    unchanged = facts.get("unchanged", False)
    unchanged = all(unchanged) if isinstance(unchanged, Sequence) else unchanged
    return str(facts.get("why", "")) or ("no task changed it" if unchanged else "")


@dataclass(frozen=True)
class _Group:
    """Tensors of one module type that are treated alike."""

    name: str
    shape: str
    method: str
    why: str
    tensors: tuple[Mapping[str, Any], ...]


def _grouped(tensors: Mapping[str, Mapping[str, Any]]) -> Iterator[_Group]:
    found: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for name, facts in tensors.items():
        shape = " × ".join(map(str, facts["shape"])) or "scalar"
        found.setdefault((group_of(name), shape, facts["method"], _why_kept(facts)), []).append(facts)
    return (_Group(*key, tuple(members)) for key, members in found.items())


def _merged_row(group: _Group, varying: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        "group": group,
        "parameters": _parameters(group.tensors, varying[group.method]),
        "rank": _range(_numbers(t.get("rank") for t in group.tensors), str),
        "energy": _range(_numbers(t.get("energy") for t in group.tensors), "{:.1%}".format),
    }


def _method(name: str, tensors: Sequence[Mapping[str, Any]], varying: Sequence[str]) -> dict[str, Any]:
    given = dict.fromkeys(key for facts in tensors for key in facts.get("parameters", {}))
    return {
        "name": name,
        "paper": METHODS[name].paper,
        "summary": METHODS[name].summary,
        "count": len(tensors),
        "parameters": _parameters(tensors, [key for key in given if key not in varying]),
    }


def _varying(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters that a recipe gives some of these tensors otherwise than others."""
    given = [facts.get("parameters", {}) for facts in tensors]
    keys = dict.fromkeys(key for parameters in given for key in parameters)
    return [key for key in keys if len({repr(parameters.get(key)) for parameters in given}) > 1]


def _parameters(tensors: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> list[str]:
    """Each of these parameters with its values, as far as they are given."""
    given = [facts.get("parameters", {}) for facts in tensors]
    values = {key: [parameters[key] for parameters in given if key in parameters] for key in keys}
    return [f"{key} {_values(found)}" for key, found in values.items() if found]


def _values(values: Sequence[Any]) -> str:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return _range(values, "{:g}".format)
    return " or ".join(dict.fromkeys(_value(value) for value in values))


def _value(value: Any) -> str:
    """A parameter as the recipe has it; of one value for each task, those that differ."""
    if not isinstance(value, list | tuple):
        return str(value).lower()
    shown = list(map(_value, value))
    return shown[0] if len(set(shown)) == 1 else "/".join(shown)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers within nested lists: one a task, and for stacked experts one list an expert, or none."""
    if isinstance(value, str) or value is None:
        return
    if isinstance(value, Iterable):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def _range(values: Iterable[float], show: Callable[[float], str]) -> str:
    values = list(values)
    ends = dict.fromkeys((show(min(values)), show(max(values)))) if values else ()
    return " to ".join(ends)


def citations(papers: Iterable[str]) -> str:
    """The BibTeX entries of these papers, each once."""
    entries = re.split(r"\n{2,}", (bundled("cards") / "citations.bib").read_text("utf-8").strip())
    wanted = dict.fromkeys(re.sub(r"https://(arxiv\.org/abs|doi\.org)/", "", paper) for paper in papers)
    return "\n\n".join(
        e for paper in wanted for e in entries if paper and re.search(f"(eprint|doi) = {{{re.escape(paper)}}}", e)
    )
