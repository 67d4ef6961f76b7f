"""Whether PEFT reads an adapter as it was meant."""
