"""PEFT folders as checkpoints: a base model seen with an adapter on it."""
