"""What an output says of itself, and the names of its files."""
