"""Inspection before a merge: what fine-tuning changed, and where tasks interfere with each other."""

from hf_tsv.inspection.measure import Entries, Inspected, Inspection, Interference, Matrices, inspect_plan
from hf_tsv.inspection.page import render_page
from hf_tsv.inspection.plots import write_plots
from hf_tsv.inspection.report import summarize
from hf_tsv.inspection.summary import Summary
from hf_tsv.inspection.tables import print_tables

__all__ = [
    "Entries",
    "Inspected",
    "Inspection",
    "Interference",
    "Matrices",
    "Summary",
    "inspect_plan",
    "print_tables",
    "render_page",
    "summarize",
    "write_plots",
]
