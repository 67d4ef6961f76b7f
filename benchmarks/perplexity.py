"""What merges of a language model are worth: `python -m benchmarks.perplexity`. README.md explains it."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

import hf_tsv
from benchmarks.accuracy import Results
from benchmarks.lm_zoo import CONTEXT, SEED, LanguageZoo, prepare_language_models, settings
from benchmarks.peers import CACHE
from benchmarks.report import table
from benchmarks.speed import RESULTS
from hf_tsv.evaluation.data import read_examples
from hf_tsv.evaluation.scoring import perplexity
from hf_tsv.evaluation.suite import Perplexity, Suite, load_suite
from hf_tsv.files.disk import write_text
from hf_tsv.recipe import parse_recipe, to_yaml
from hf_tsv.verbs.restore import load_task

BASE, FINE_TUNED = "base", "fine-tuned"
TOKENS = {"test": 2048, "validation": 1024}  # the first of a domain's text
FACTORS = (0.4, 0.6, 0.8, 1.0, 1.3, 1.6)  # on a whole merged change, chosen on validation texts
BUDGETS = (0.05, 0.1)  # of the model's bytes, an adapter
MERGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear": ("linear", {}),
    "task_arithmetic, scale 1": ("task_arithmetic", {}),
    "tsv_m": ("tsv_m", {}),
    "iso_c": ("iso_c", {}),
    "ties": ("ties", {}),
    "svc": ("svc", {}),
    "task_arithmetic, scale 0.4": ("task_arithmetic", {"scale": 0.4}),
    "task_arithmetic, scale 0.7": ("task_arithmetic", {"scale": 0.7}),
    "dare_ties, density 0.2": ("dare_ties", {"density": 0.2}),
}
TUNED: Mapping[str, tuple[str, Mapping[str, Any]]] = {"tsv_m, tuned": ("tsv_m", {}), "iso_c, tuned": ("iso_c", {})}
State = Mapping[str, Tensor]


class Row(NamedTuple):
    """One line of the results.

    Attributes:
        perplexity: By domain.
        shared_bytes: Stored once.
        task_bytes: Stored for each domain beside it, on average.
        factor: Chosen on validation texts, on the whole merged change; None where nothing was chosen.
        seconds: Merging or compressing.
    """

    perplexity: Mapping[str, float]
    shared_bytes: int
    task_bytes: float = 0
    factor: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Bench:
    """The zoo, and the one model in memory that takes everybody's weights."""

    zoo: LanguageZoo

    @cached_property
    def base(self) -> dict[str, Tensor]:
        return load_file(self.zoo.base / "model.safetensors")

    @cached_property
    def finetuned(self) -> dict[str, dict[str, Tensor]]:
        return {name: load_file(folder / "model.safetensors") for name, folder in self.zoo.domains.items()}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.base.values())

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.zoo.base, dtype=torch.float32, local_files_only=True)
        return model.eval(), AutoTokenizer.from_pretrained(self.zoo.base, local_files_only=True)

    @cached_property
    def _suites(self) -> dict[str, Suite]:
        """A suite a split, as `hf-tsv eval --suite` takes it, beside the models."""
        return {split: load_suite(self._written(split)) for split in TOKENS}

    def _written(self, split: str) -> Path:
        tasks = [
            {"name": name, "kind": "perplexity", "data": f"{name}/{split}.txt"}
            | {"context": CONTEXT, "limit": TOKENS[split]}
            for name in self.zoo.domains
        ]
        path = self.zoo.base.parent / f"{split}.yaml"
        write_text(path, to_yaml({"batch_size": 4, "tasks": tasks}))
        return path

    def of_state(self, state: State, domains: Mapping[str, Any], split: str = "test") -> dict[str, float]:
        """Perplexity on each domain of the model with these weights; its head is tied to its embeddings."""
        model, _ = self._loaded
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}
        return {name: self.of_model(model, name, split) for name in domains}

    def of_model(self, model: Any, domain: str, split: str = "test") -> float:
        """Perplexity on one domain, as `hf-tsv eval` has it."""
        suite = self._suites[split]
        (task,) = (task for task in suite.file.tasks if task.name == domain)
        assert isinstance(task, Perplexity)
        examples = read_examples(suite, task)
        return perplexity(model, self._loaded[1], task, examples, suite, lambda share: None).value


Job = Callable[[Bench], Row]


def main() -> None:
    options = _options()
    bench = Bench(prepare_language_models(CACHE / "lm-zoo"))
    results = Results(RESULTS / "perplexity.json", _about(bench))
    domains = len(bench.zoo.domains)
    for name, job in _jobs().items():
        if name in options.only if options.only else not results.has(domains, name):
            started = time.monotonic()
            results.put(domains, name, job(bench))
            results.done(domains, name)
            write_text(RESULTS / "perplexity.md", markdown(results.told))
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perplexity", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=_jobs(), help="these rows, anew")
    return parser.parse_args()


def _about(bench: Bench) -> dict[str, Any]:
    """All that scores depend on, but for our own code: what was measured with others is measured anew."""
    packages = ("torch", "transformers", "peft", "safetensors", "gguf")
    return {
        "versions": {"hf_tsv": hf_tsv.__version__, **{name: version(name) for name in packages}},
        "seed": SEED,
        "tokens": TOKENS,
        "model_bytes": bench.nbytes,
        "tasks": {name: settings(name) for name in bench.zoo.domains},
    }


def _jobs() -> dict[str, Job]:
    return {
        BASE: lambda bench: Row(bench.of_state(bench.base, bench.zoo.domains), bench.nbytes),
        FINE_TUNED: finetuned,
        **{name: partial(merged, *merge) for name, merge in MERGES.items()},
        **{f"tsv_c {share:.0%}": partial(compressed, share) for share in BUDGETS},
        **{name: partial(tuned, *merge) for name, merge in TUNED.items()},
    }


def finetuned(bench: Bench) -> Row:
    """Every fine-tune on its own domain."""
    scores = {name: bench.of_state(state, {name: None})[name] for name, state in bench.finetuned.items()}
    return Row(scores, 0, bench.nbytes)


def merged(method: str, parameters: Mapping[str, Any], bench: Bench) -> Row:
    """One merged model for all domains."""
    started = time.monotonic()
    state = hf_tsv.merge_state_dicts(bench.base, bench.finetuned, method=method, **parameters)
    seconds = round(time.monotonic() - started, 1)
    return Row(bench.of_state(state, bench.zoo.domains), bench.nbytes, seconds=seconds)


def tuned(method: str, parameters: Mapping[str, Any], bench: Bench) -> Row:
    """The same with the factor on all that it changes that is best on validation texts."""
    started = time.monotonic()
    state = hf_tsv.merge_state_dicts(bench.base, bench.finetuned, method=method, **parameters)
    seconds = round(time.monotonic() - started, 1)
    own = {name: bench.of_state(one, {name: None}, "validation")[name] for name, one in bench.finetuned.items()}

    def worth(factor: float) -> float:
        return mean_relative(own, bench.of_state(_scaled(bench, state, factor), own, "validation"))

    factor = max(FACTORS, key=worth)
    scores = bench.of_state(_scaled(bench, state, factor), own)
    return Row(scores, bench.nbytes, factor=factor, seconds=seconds)


def _scaled(bench: Bench, state: State, factor: float) -> dict[str, Tensor]:
    return {name: torch.lerp(base, state[name], factor) for name, base in bench.base.items()}


def compressed(share: float, bench: Bench) -> Row:
    """TSV-C's adapters under a budget, each restored and scored on its own domain."""
    written = {
        "merge_method": "tsv_c",
        "base_model": str(bench.zoo.base.absolute()),
        "models": [{"model": str(path.absolute()), "name": name} for name, path in bench.zoo.domains.items()],
    }
    recipe = parse_recipe(to_yaml(written), "benchmarks/perplexity.py")
    with tempfile.TemporaryDirectory(dir=CACHE / "lm-zoo") as folder:
        out = Path(folder) / "out"
        started = time.monotonic()
        hf_tsv.compress(recipe, out, f"{int(share * bench.nbytes)}B")
        seconds = round(time.monotonic() - started, 1)
        sizes = [file.stat().st_size for file in out.glob("adapters/*/*.safetensors")]
        scores = {name: bench.of_model(load_task(out, name), name) for name in bench.zoo.domains}
    return Row(scores, bench.nbytes, sum(sizes) / len(scores), seconds=seconds)


def mean_relative(own: Mapping[str, float], scores: Mapping[str, float]) -> float:
    """The mean over domains of the fine-tune's perplexity / this one's: 1 is as good, less is worse."""
    return fmean(own[name] / score for name, score in scores.items())


def markdown(told: Mapping[str, Any]) -> str:
    """The table, the best first, behind what it was measured on."""
    rows = {name: next(iter(counts.values())) for name, counts in told["rows"].items()}
    own = rows.get(FINE_TUNED, rows[BASE])["perplexity"]
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    order = sorted(rows, key=lambda name: mean_relative(own, rows[name]["perplexity"]), reverse=True)
    return "\n".join(
        [
            f"# Perplexity\n\nMade by `python -m benchmarks.perplexity`, {told['when']}. Machine: {told['machine']}."
            f" Versions: {versions}. Seed {told['seed']}; the first {told['tokens']['test']} test tokens of every"
            f" domain, {told['tokens']['validation']} validation tokens for the factors.\n",
            "Perplexity on held-out text; relative: the mean over the domains of the fine-tune's perplexity / the"
            " row's, in %.\n",
            table(
                ("", *own, "relative", "MB in all", "s", "factor"),
                [_line(name, rows[name], own) for name in order],
            ),
        ]
    )


def _line(name: str, row: Mapping[str, Any], own: Mapping[str, float]) -> tuple[str, ...]:
    scores = row["perplexity"]
    stored = row["shared_bytes"] + len(scores) * row["task_bytes"]
    return (
        name,
        *(f"{scores[domain]:.2f}" for domain in own),
        f"{100 * mean_relative(own, scores):.1f}",
        f"{stored / 1e6:.0f}",
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
        "" if row["factor"] is None else f"{row['factor']:g}",
    )


if __name__ == "__main__":
    main()
