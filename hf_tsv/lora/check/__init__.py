"""Checks that PEFT reads adapters as intended."""
