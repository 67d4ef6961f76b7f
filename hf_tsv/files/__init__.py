"""Files in general: names in an output folder, bundled files, checksums, locks, and writing to disk."""
