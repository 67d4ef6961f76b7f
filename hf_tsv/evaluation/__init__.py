"""Evaluation of a merge or a compression: scores of the base, the fine-tuned models, and the output's models."""

from hf_tsv.evaluation.contestants import MERGED, RESTORED, Contestant, made
from hf_tsv.evaluation.results import Results
from hf_tsv.evaluation.run import Prepared, prepare, score_all, summarize
from hf_tsv.evaluation.suite import Suite, load_suite

__all__ = [
    "MERGED",
    "RESTORED",
    "Contestant",
    "Prepared",
    "Results",
    "Suite",
    "load_suite",
    "made",
    "prepare",
    "score_all",
    "summarize",
]
