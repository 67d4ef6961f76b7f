"""The forms in which an adapter is written, one file each."""
