"""What of an output goes to which repository, and whether it may."""
