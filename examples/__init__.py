"""Worked examples that the package is tried on; they are not installed with it."""
