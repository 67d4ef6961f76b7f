"""The record of a run -> the model card: `README.md`, with a header that the Hub reads.

Names of models, tasks and tensors are strangers' words. So a template escapes all that it prints, but for what a filter
(`code`, `fence`, `link`) has made safe in its own way; the header is escaped by YAML.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_tsv.bundled import bundled
from hf_tsv.checkpoint import TensorInfo
from hf_tsv.methods import METHODS
from hf_tsv.modules import group_of
from hf_tsv.writers import write_text

HUB = "https://huggingface.co"
DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
MODEL_KEYS = ("base_model", "model", "path", "lora", "tokenizer_source")  # keys of a recipe that name a model

# How a transformers class is named, the Auto class that loads all such classes, and their task on the Hub.
AUTO_CLASSES = {
    r"\w+ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    r"\w+ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    r"(?!Data2VecAudio|Hubert|SEW|UniSpeech|Wav2Vec2|WavLM)\w+ForSequenceClassification": (
        "AutoModelForSequenceClassification",
        "text-classification",
    ),
    r"\w+ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    r"\w+ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    r"\w+ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "image-segmentation"),
    r"\w+ForAudioClassification": ("AutoModelForAudioClassification", "audio-classification"),
    r"\w+ForCTC": ("AutoModelForCTC", "automatic-speech-recognition"),
}
# What the kinds of tasks that models are scored on are called on the Hub, where it is otherwise.
HUB_TASKS = {"text-classification": "text-classification", "image-classification": "image-classification"}
# What config_sentence_transformers.json may call the model, and its task on the Hub.
SENTENCE_CLASSES = {
    "SentenceTransformer": "sentence-similarity",
    "SparseEncoder": "feature-extraction",
    "MultiVectorEncoder": "feature-extraction",
    "CrossEncoder": None,  # that depends on its labels
}


def write_card(record: Mapping[str, Any], folder: Path) -> None:
    """Write the card of a merged model into its folder.

    Raises:
        ResourceError: the disk is full.
        OutputError: the file can't be written.
    """
    write_text(folder / "README.md", render_card(record, folder))


def render_card(record: Mapping[str, Any], folder: Path) -> str:
    """The card of a merged model.

    Args:
        record: What was done, as `hf_tsv.json` holds it.
        folder: The merged model: its recipes, and the configuration that tells how it is loaded.
    """
    loading = _loading(folder)
    body = _templates().get_template("merge.md.j2").render(_contents(record, folder, loading))
    return f"---\n{_header(record, folder, loading).to_yaml()}\n---\n\n{body}"


# --- Escaping ---------------------------------------------------------------------------------------------------------


class Markdown(str):
    """Text that is Markdown on purpose, which templates print as it is."""

    __slots__ = ()


_SIGNIFICANT = re.compile(
    r"[\\`\[\]<>&|~$]"  # anywhere
    r"|\*(?!\s)|(?<!\s)\*"  # an asterisk that isn't between spaces
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore that isn't within a word
    r"|^[-+=#]|^\d+(?=[.)](\s|$))"  # lists and headings, at the start of a block
    r"|:(?=//)|(?i:w(?=ww\.))"  # addresses, which the Hub makes links
)
_PLAIN_CODE = re.compile(r"[\w.,:;/@+=*()\[\]{}-]+", re.ASCII)
_PUNCTUATION = re.compile(r"[^\w ]|_")


def text(value: object) -> Markdown:
    """One line that reads as itself within a paragraph, a heading, a table's cell or a link's label."""
    return value if isinstance(value, Markdown) else Markdown(_SIGNIFICANT.sub(_as_entities, _one_line(str(value))))


def code(value: object) -> Markdown:
    """One line in typewriter type. Pipes and backticks have no safe form within backticks in a table."""
    line = _one_line(str(value))
    if _PLAIN_CODE.fullmatch(line):
        return Markdown(f"`{line}`")
    return Markdown("<code>" + _PUNCTUATION.sub(_as_entities, line) + "</code>")


def fence(content: str, language: str) -> Markdown:
    """Lines as they are, between fences longer than any run of backticks in them."""
    longest = max(map(len, re.findall("`+", content)), default=0)
    marks = "`" * max(3, longest + 1)
    content = content.rstrip("\n")
    return Markdown(f"{marks}{language}\n{content}\n{marks}")


def score(value: object) -> str:
    """A measured number with four digits; nothing where it wasn't measured."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def link(label: object, url: str) -> Markdown:
    return Markdown(f"[{text(label)}]({quote(url, safe=':/')})")


def _one_line(value: str) -> str:
    """Without line breaks, and without invisible signs that could reorder or hide what stands there."""
    return "".join("\ufffd" if unicodedata.category(c)[0] == "C" else c for c in " ".join(value.split()))


def _as_entities(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(c)};" for c in match[0])


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(bundled("cards")),
        autoescape=False,  # HTML's rules aren't Markdown's
        finalize=text,  # every value that is printed goes through it
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "fence": fence, "link": link, "score": score}
    return environment


# --- The header -------------------------------------------------------------------------------------------------------


def _header(record: Mapping[str, Any], folder: Path, loading: "_Loading | None") -> ModelCardData:
    places = [place for source in record["sources"] for place in _places(source)]
    on_hub = dict.fromkeys(_one_line(path) for path, revision in places if revision)
    return ModelCardData(
        base_model=list(on_hub) or None,
        base_model_relation="merge" if on_hub else None,
        library_name=loading.library if loading else None,
        pipeline_tag=loading.pipeline_tag if loading else None,
        tags=["merge", "hf_tsv", *(name.replace("_", "-") for name in record["methods"])],
        hf_tsv={
            "version": record["versions"]["hf_tsv"],
            "recipe_sha256": hashlib.sha256((folder / "recipe.yaml").read_bytes()).hexdigest(),
        },
        **_measured(record),
    )


def _measured(record: Mapping[str, Any]) -> dict[str, Any]:
    """The header's `model-index`; nothing for a model that was not evaluated."""
    if "evaluation" not in record:
        return {}
    results = [
        EvalResult(
            task_type=HUB_TASKS.get(told["kind"], "text-generation"),
            dataset_type=_one_line(told["data"]),
            dataset_name=_one_line(task),
            metric_type=_one_line(told["metric"]),
            metric_value=told["scores"]["merged"],
        )
        for task, told in record["evaluation"]["tasks"].items()
    ]
    tasks = len(record["sources"]) - 1
    base = _source(record["sources"][0])["places"][0]["name"]
    name = f"{_one_line(PurePosixPath(base).name)}: {tasks} tasks merged by {record['method']}"
    return {"model_name": name, "eval_results": results}


@dataclass(frozen=True)
class _Loading:
    """How the model is loaded.

    Attributes:
        library: The library that does it, as the Hub calls it.
        model_class: Its class for the model.
        input_class: Its class for what prepares the inputs, if there is such a thing beside the model.
        pipeline_tag: The model's task on the Hub, where that is sure.
    """

    library: str
    model_class: str
    input_class: str | None = None
    pipeline_tag: str | None = None


def _loading(folder: Path) -> _Loading | None:
    """None where the configuration isn't one that transformers or sentence-transformers know."""
    if (folder / "modules.json").is_file():
        called = str(_json(folder / "config_sentence_transformers.json").get("model_type"))
        model_class = called if called in SENTENCE_CLASSES else "SentenceTransformer"
        return _Loading("sentence-transformers", model_class, pipeline_tag=SENTENCE_CLASSES[model_class])
    config = _json(folder / "config.json")
    if not {"architectures", "model_type"} & config.keys():
        return None
    model_class, pipeline_tag = _transformers_class(config)
    return _Loading("transformers", model_class, _input_class(folder), pipeline_tag)


def _transformers_class(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The Auto class where it is sure to load the same architecture, else the architecture's own class."""
    listed = config.get("architectures")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else ""
    for named, found in AUTO_CLASSES.items():
        if re.fullmatch(named, architecture):
            return found
    own = re.fullmatch(r"[A-Z][A-Za-z0-9]*", architecture) and "auto_map" not in config
    return (architecture if own else "AutoModel"), None


def _input_class(folder: Path) -> str | None:
    files = {path.name for path in folder.iterdir()}
    if files & {"processor_config.json", "preprocessor_config.json"}:
        return "AutoProcessor"
    return "AutoTokenizer" if files & {"tokenizer_config.json", "tokenizer.json"} else None


def _json(path: Path) -> dict[str, Any]:
    """A configuration; empty if there is none, or none that can be read, which is no reason to lose a merge."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- The body ---------------------------------------------------------------------------------------------------------


def _contents(record: Mapping[str, Any], folder: Path, loading: _Loading | None) -> dict[str, Any]:
    """What the template shows."""
    sources = [_source(source) for source in record["sources"]]
    merged = {name: facts for name, facts in record["tensors"].items() if not _why_kept(facts)}
    methods = {name: [facts for facts in merged.values() if facts["method"] == name] for name in record["methods"]}
    used = {name: tensors for name, tensors in methods.items() if tensors}
    varying = {name: _varying(tensors) for name, tensors in used.items()}
    return {
        "record": record,
        "base": PurePosixPath(sources[0]["places"][0]["name"]).name,
        "sources": sources,
        "has_folders": any(not place["url"] for source in sources for place in source["places"]),
        "loading": loading,
        "dtypes": _dtypes(record),
        "weight_bytes": sum(info.nbytes for info in _infos(record)),
        "methods": [_method(name, tensors, varying[name]) for name, tensors in used.items()],
        "merged": [_merged_row(group, varying) for group in _grouped(merged)],
        "kept": list(_grouped({n: facts for n, facts in record["tensors"].items() if n not in merged})),
        "evaluation": record.get("evaluation"),
        "warnings": [_without_folders(warning) for warning in record["warnings"]],
        "recipe": _published_recipe(record, folder),
        "citations": _citations(METHODS[name].paper for name in used),
    }


def _places(source: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Path and commit of a source's model and of the adapter on top of it, if any; folders have no commit."""
    places = [(str(source["model"]), source["revision"])]
    if adapter := source.get("adapter"):
        path, _, revision = adapter.rpartition("@")
        places.append((path, revision) if re.fullmatch("[0-9a-f]{40}", revision) else (adapter, None))
    return places


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": source["task"], "places": [_place(*place) for place in _places(source)]}


def _place(path: str, revision: str | None) -> dict[str, Any]:
    """A Hub id, or a folder's last part: where it lies on somebody's machine is nobody's business."""
    url = f"{HUB}/{path}/tree/{revision}" if revision else None
    return {"name": path if revision else _folder_name(path), "revision": revision, "url": url}


def _folder_name(path: str) -> str:
    name = PurePosixPath(path).name
    return name if name.strip(".~") else "local folder"


def _infos(record: Mapping[str, Any]) -> list[TensorInfo]:
    return [TensorInfo(name, tuple(facts["shape"]), facts["dtype"]) for name, facts in record["tensors"].items()]


def _dtypes(record: Mapping[str, Any]) -> list[str]:
    """The dtypes of the floating-point weights, that of the most bytes first."""
    found: Counter[str] = Counter()
    for info in _infos(record):
        if info.dtype in DTYPES:
            found[DTYPES[info.dtype]] += info.nbytes
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
    return "/".join(map(_value, value)) if isinstance(value, list | tuple) else str(value).lower()


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


def _without_folders(message: str) -> str:
    """A message without the folders of the machine where it was said: neither the recipe's nor any model's."""
    message = re.sub(r"^.*?([^/]+:\d+: )", r"\1", message)
    return re.sub(r"(?<![\w.~/-])(?:~\w*|\.{1,2})?/(?!/)(?:[^\s/'\"]*/)*", "", message)


def _published_recipe(record: Mapping[str, Any], folder: Path) -> str:
    """The recipe with every Hub model at its commit, and with folders by their names alone."""
    folders = {path for source in record["sources"] for path, revision in _places(source) if not revision}

    def published(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {key: published(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [published(item) for item in value]
        return _reference(value, folders) if key in MODEL_KEYS and isinstance(value, str) else value

    lock = yaml.safe_load((folder / "recipe.lock.yaml").read_text("utf-8"))
    return yaml.safe_dump(published(lock), sort_keys=False, allow_unicode=True)


def _reference(written: str, folders: Collection[str]) -> str:
    """`MODEL` or `MODEL+ADAPTER`, each that is a folder by its name alone: known, or written as one."""
    parts = [written] if written in folders else written.split("+")
    is_folder = [part in folders or re.match(r"[~/]|\.{1,2}(/|$)", part) for part in parts]
    return "+".join(_folder_name(part) if told else part for part, told in zip(parts, is_folder, strict=True))


def _citations(papers: Iterable[str]) -> str:
    """The BibTeX entries of these papers, each once."""
    entries = re.split(r"\n{2,}", (bundled("cards") / "citations.bib").read_text("utf-8").strip())
    wanted = dict.fromkeys(re.sub(r"https://(arxiv\.org/abs|doi\.org)/", "", paper) for paper in papers)
    return "\n\n".join(
        e for paper in wanted for e in entries if paper and re.search(f"(eprint|doi) = {{{re.escape(paper)}}}", e)
    )
