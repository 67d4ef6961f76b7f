"""Reads PEFT adapters as checkpoints: each appears as its base model with the adapter applied."""
