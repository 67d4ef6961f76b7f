"""TSV-M by FusionBench, as its documentation uses it from Python. Runs in FusionBench's own environment.

python fusion_bench_tsv_m.py OUT BASE TASK...
"""

import sys

from fusion_bench.method import TaskSingularVectorMerging
from fusion_bench.modelpool import BaseModelPool


def main(out: str, base: str, *tasks: str) -> None:
    models = {"_pretrained_": _model(base)} | {f"task{t}": _model(task) for t, task in enumerate(tasks)}
    merged = TaskSingularVectorMerging(alpha=1.0).run(BaseModelPool(models))
    merged.save_pretrained(out)


def _model(folder: str) -> dict[str, str]:
    return {"_target_": "transformers.AutoModel.from_pretrained", "pretrained_model_name_or_path": folder}


if __name__ == "__main__":
    main(*sys.argv[1:])
