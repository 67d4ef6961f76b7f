"""Weights in files: what a checkpoint is, how it is read and written, and what its tensors are."""
