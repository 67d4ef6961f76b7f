"""Time of a TSV-M step whose tasks are LoRA adapters: from their factors, against through their dense deltas.

Run `python benchmarks/bench_adapters.py [--tasks 8] [--rank 16] [--side 2048] [--matrices 2] [--repeats 3]`. A step is
everything that a run does for one tensor: base and adapters read from files, merged, added, rounded. Both ways run in
one process, on one thread, and are measured in that thread's own time; the ratio is of the sums over all matrices.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits
from torch import Tensor

from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.lora.read.adapter import open_adapter
from hf_tsv.merging.engine import merge_step
from hf_tsv.merging.plan import Plan
from hf_tsv.merging.planner import make_plan
from hf_tsv.recipe import parse_recipe


def make(folder: Path, tasks: int, rank: int, side: int, matrices: int) -> None:
    """A base of square matrices and an adapter for each task, all float32."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    modules = [f"layers.{i}.proj" for i in range(matrices)]
    (folder / "base").mkdir()
    save_file({f"{m}.weight": 0.02 * normal(side, side) for m in modules}, folder / "base" / "model.safetensors")
    for t in range(tasks):
        (folder / f"t{t}").mkdir()
        factors = {f"{m}.lora_A.weight": 0.02 * normal(rank, side) for m in modules}
        factors |= {f"{m}.lora_B.weight": 0.02 * normal(side, rank) for m in modules}
        named = {f"base_model.model.{name}": factor for name, factor in factors.items()}
        save_file(named, folder / f"t{t}" / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["proj"]}
        (folder / f"t{t}" / "adapter_config.json").write_text(json.dumps(config))


def plans(folder: Path, tasks: int) -> tuple[Plan, Plan]:
    """The same merge from factors and through dense deltas."""
    models = "".join(f"  - model: {folder}/t{t}\n" for t in range(tasks))
    recipe = parse_recipe(f"merge_method: tsv_m\nbase_model: {folder}/base\nmodels:\n{models}", source="bench")
    base = open_checkpoint(folder / "base")
    factored = [open_adapter(folder / f"t{t}").on(base) for t in range(tasks)]
    dense = [open_adapter(folder / f"t{t}").on(base) for t in range(tasks)]
    for adapter in dense:  # which keep their factors to themselves, so that the engine multiplies them out
        adapter.low_rank = lambda name, row=None: None  # type: ignore[method-assign]  # on these instances alone
    return make_plan(recipe, base, factored), make_plan(recipe, base, dense)


def timed(plan: Plan, repeats: int) -> tuple[float, list[Tensor]]:
    """Seconds of this thread for every step of a plan, the least of the repeats; and what the steps made."""
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        made = [merge_step(plan, step)[0] for step in plan.steps]
        seconds.append(time.thread_time() - start)
    return min(seconds), made


def largest_difference(plan: Plan, one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Of the changes of a tensor, relative, in the Frobenius norm."""
    bases = [plan.base.read(step.name).double() for step in plan.steps]
    found = [float((a - b).double().norm() / (b - base).norm()) for a, b, base in zip(one, other, bases, strict=True)]
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"tasks": 8, "rank": 16, "side": 2048, "matrices": 2, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        make(Path(name), options.tasks, options.rank, options.side, options.matrices)
        factored, dense = plans(Path(name), options.tasks)
        quick, merged = timed(factored, options.repeats)
        slow, expected = timed(dense, 1)
        difference = largest_difference(factored, merged, expected)
    print(
        f"{options.matrices} matrices of {options.side} x {options.side}, {options.tasks} LoRAs of rank {options.rank}"
    )
    print(f"from factors        {quick:9.3f} s")
    print(f"dense deltas        {slow:9.3f} s")
    print(f"times faster        {slow / quick:9.1f}")
    print(f"largest difference  {difference:9.1e}")


if __name__ == "__main__":
    main()
