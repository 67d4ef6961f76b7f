"""The models that a recipe names: pinned, opened, fetched, and the files beside their weights."""
