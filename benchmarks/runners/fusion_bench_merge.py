"""A merge by FusionBench, as its documentation does it from Python. Runs in FusionBench's own environment.

python fusion_bench_merge.py METHOD OUT BASE TASK...
"""

import sys

from fusion_bench import method
from fusion_bench.modelpool import BaseModelPool

METHODS = {
    "linear": lambda: method.SimpleAverageAlgorithm(),
    "task_arithmetic": lambda: method.TaskArithmeticAlgorithm(scaling_factor=0.35),
    "ties": lambda: method.TiesMergingAlgorithm(1.0, threshold=20, remove_keys=[], merge_func="mean"),
    "tsv_m": lambda: method.TaskSingularVectorMerging(alpha=1.0),
    "iso_c": lambda: method.ISO_C_Merge(scaling_factor=1.0),
}


def main(name: str, out: str, base: str, *tasks: str) -> None:
    models = {"_pretrained_": _model(base)} | {f"task{t}": _model(task) for t, task in enumerate(tasks)}
    merged = METHODS[name]().run(BaseModelPool(models))
    merged.save_pretrained(out)


def _model(folder: str) -> dict[str, str]:
    return {"_target_": "transformers.AutoModel.from_pretrained", "pretrained_model_name_or_path": folder}


if __name__ == "__main__":
    main(*sys.argv[1:])
