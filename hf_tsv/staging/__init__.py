"""A run's working folder: its files, its journal of complete tensors, and its publication as the output."""
