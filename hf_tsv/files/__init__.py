"""Files as such: the names of what lies in an output, and small files written whole or not at all."""
