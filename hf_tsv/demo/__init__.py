"""The whole way on real models, offline: fine-tune all-MiniLM-L6-v2 on real tasks, merge by four methods, compare."""

from hf_tsv.demo.compare import evaluate, run, summary, table
from hf_tsv.demo.zoo import Task, Zoo, prepare

__all__ = ["Task", "Zoo", "evaluate", "prepare", "run", "summary", "table"]
