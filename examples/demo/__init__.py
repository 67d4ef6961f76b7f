"""The whole way on real models, offline: fine-tune all-MiniLM-L6-v2 on real tasks, merge by four methods, compare."""

from examples.demo.compare import evaluate, run, summary, table
from examples.demo.zoo import Task, Zoo, prepare

__all__ = ["Task", "Zoo", "evaluate", "prepare", "run", "summary", "table"]
