"""All code that depends on PEFT's LoRA format: names, reading, writing, formats, and the check with PEFT itself."""
