"""Checkpoints: reading and writing weights, and recognising what each tensor is."""
