"""Which token has which row, and models with different vocabularies seen in one."""
