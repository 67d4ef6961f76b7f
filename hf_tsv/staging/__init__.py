"""A run's working folder: what is complete in it, and how it becomes the output."""
