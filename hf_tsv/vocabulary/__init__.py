"""Match the rows of tokens between models with different vocabularies."""
