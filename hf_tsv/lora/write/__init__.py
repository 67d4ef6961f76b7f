"""Writes task matrices as PEFT adapters."""
