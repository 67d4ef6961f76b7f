"""All that knows PEFT and LoRA: the names, reading, writing, the formats, and the check by PEFT itself."""
